//! Send queues and queue pairs: a list of `struct rxe_send_wqe`, then one system call.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use zerocopy::{Immutable, IntoBytes};

use super::ah::Ah;
use super::owed::{self, Owed};
use super::recv::RecvQueue;
use super::{PATIENCE, map_queue, put_sges};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, Rdma, RecvWr, RecvWrs, SendWr, SendWrs, UserBytes};
use crate::error::{Errno, Error, Step as _};
use crate::family::{Objects, QpRequest, QueuePair, Refused, SendBuilder, SendOp};
use crate::ha::gate::Gate;
use crate::ha::ledger::Outstanding;
use crate::ha::life::Life;
use crate::hw::shared_queue::{Garbage, SharedQueue, Slot};
use crate::log;
use crate::sync::SpinLock;
use crate::uapi::{self, CmdFd, Handle, rxe as wire};

/// Where SGEs, inline data and an atomic write's value begin in a WQE.
const DATA: usize = size_of::<wire::SendWqe>();
const WR_UNION: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, wr);
const SEND_FLAGS: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, send_flags);
const DMA: usize = offset_of!(wire::SendWqe, dma);
const TAIL: usize = offset_of!(wire::SendWqe, status);

/// What most operations use of the union in a WQE: all but a datagram's address.
const UNION: usize = 32;

/// The start of a WQE, up to as much of the union as an operation uses. The slot has held other WQEs before, and the kernel reads
/// no more of the union than its opcode calls for.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct HeadSeg {
    wr_id: u64,
    reserved: u32,
    opcode: u32,
    send_flags: u32,
    ex: u32,
    wr: [u8; UNION],
}

/// The end of a WQE: the kernel's own words, which it wants to find 0, and where the data are.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TailSeg {
    status: u32,
    state: u32,
    iova: u64,
    kernel: [u32; 6],
    dma: wire::DmaInfo,
}

const _: () = {
    assert!(offset_of!(HeadSeg, wr) == WR_UNION && offset_of!(HeadSeg, send_flags) == SEND_FLAGS);
    assert!(offset_of!(HeadSeg, opcode) == offset_of!(wire::SendWr, opcode));
    assert!(offset_of!(HeadSeg, ex) == offset_of!(wire::SendWr, ex));
    assert!(size_of::<HeadSeg>() <= TAIL);
    assert!(TAIL + offset_of!(TailSeg, iova) == offset_of!(wire::SendWqe, iova));
    assert!(TAIL + offset_of!(TailSeg, kernel) == offset_of!(wire::SendWqe, mask));
    assert!(TAIL + offset_of!(TailSeg, dma) == DMA && TAIL + size_of::<TailSeg>() == DATA);
};

/// `IBV_QP_EX_WITH_*` per QP type, as far as every kernel has them.
pub(super) fn builders(qp_type: u32) -> u64 {
    const UD: u32 = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    const UC: u32 = UD
        | IBV_QP_EX_WITH_RDMA_WRITE
        | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
        | IBV_QP_EX_WITH_BIND_MW
        | IBV_QP_EX_WITH_SEND_WITH_INV;
    const RC: u32 = UC
        | IBV_QP_EX_WITH_RDMA_READ
        | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
        | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD
        | IBV_QP_EX_WITH_LOCAL_INV;
    match qp_type {
        IBV_QPT_RC => u64::from(RC),
        IBV_QPT_UC => u64::from(UC),
        IBV_QPT_UD => u64::from(UD),
        _ => 0,
    }
}

/// The opcodes that `ibv_post_send` takes on a QP of this type, each a bit.
fn allowed(qp_type: u32) -> u32 {
    const UD: u32 = 1 << IBV_WR_SEND | 1 << IBV_WR_SEND_WITH_IMM;
    const UC: u32 = UD
        | 1 << IBV_WR_RDMA_WRITE
        | 1 << IBV_WR_RDMA_WRITE_WITH_IMM
        | 1 << IBV_WR_LOCAL_INV
        | 1 << IBV_WR_BIND_MW
        | 1 << IBV_WR_SEND_WITH_INV;
    const RC: u32 =
        UC | 1 << IBV_WR_RDMA_READ | 1 << IBV_WR_ATOMIC_CMP_AND_SWP | 1 << IBV_WR_ATOMIC_FETCH_AND_ADD;
    match qp_type {
        IBV_QPT_RC => RC,
        IBV_QPT_UC => UC,
        _ => UD,
    }
}

/// Of [`allowed`], those that are nothing but data, sent, written or read, on a connected QP.
fn usual(qp_type: u32) -> u32 {
    const USUAL: u32 = 1 << IBV_WR_SEND | 1 << IBV_WR_SEND_WITH_IMM | RDMA;
    if qp_type == IBV_QPT_UD { 0 } else { allowed(qp_type) & USUAL }
}

/// Those of them that name memory of the peer, each a bit.
const RDMA: u32 = 1 << IBV_WR_RDMA_WRITE | 1 << IBV_WR_RDMA_WRITE_WITH_IMM | 1 << IBV_WR_RDMA_READ;

/// The producer's side of a QP's send queue.
#[derive(Debug)]
pub struct SendQueue {
    ring: SharedQueue,
    /// The kernel's, once `ring` is a copy of it.
    kernel: Option<SharedQueue>,
    /// Whether `ring` is one.
    copied: bool,
    gate: Arc<Gate>,
    life: Arc<Life>,
    qp_type: u32,
    /// Opcodes of `ibv_post_send`, each a bit, and those of them that [`SendQueue::build_usual`] takes.
    allowed: u32,
    usual: u32,
    max_sge: u32,
    max_inline: u32,
    /// Our index; the one in the mapping is only written.
    producer: u32,
    /// `ibv_wr_*`: the next slot, and the one the setters fill.
    cursor: u32,
    building: u32,
    building_flags: u32,
    /// `ibv_wr_*`: the first error since start.
    failed: Option<Errno>,
    reported: bool,
}

/// `member`, and zeros after it.
#[inline(always)]
fn union_of<T: wire::WrUnion>(member: &T) -> [u8; UNION] {
    const { assert!(size_of::<T>() <= UNION) };
    let mut wr = [0; UNION];
    if let Some((to, _)) = wr.split_at_mut_checked(size_of::<T>()) {
        to.copy_from_slice(member.as_bytes());
    }
    wr
}

/// Writes all of a WQE that `op` determines, and `dma`; the data that follow it are not.
#[inline(always)]
fn put_wqe(
    slot: &Slot<'_>,
    wr_id: u64,
    send_flags: u32,
    op: SendOp,
    dma: wire::DmaInfo,
) -> Result<(), Errno> {
    let rdma = |rkey, remote_addr| union_of(&wire::Rdma { remote_addr, rkey, reserved: 0 });
    let atomic = |rkey, remote_addr, compare_add, swap| {
        union_of(&wire::Atomic { remote_addr, compare_add, swap, rkey, reserved: 0 })
    };
    let none = [0; UNION];
    let (opcode, ex, iova, wr) = match op {
        SendOp::Send => (IBV_WR_SEND, 0, 0, none),
        SendOp::SendImm { imm_data } => (IBV_WR_SEND_WITH_IMM, imm_data, 0, none),
        SendOp::SendInv { invalidate_rkey } => (IBV_WR_SEND_WITH_INV, invalidate_rkey, 0, none),
        SendOp::LocalInv { invalidate_rkey } => (IBV_WR_LOCAL_INV, invalidate_rkey, 0, none),
        SendOp::Write { rkey, remote_addr } => (IBV_WR_RDMA_WRITE, 0, remote_addr, rdma(rkey, remote_addr)),
        SendOp::WriteImm { rkey, remote_addr, imm_data } => {
            (IBV_WR_RDMA_WRITE_WITH_IMM, imm_data, remote_addr, rdma(rkey, remote_addr))
        }
        SendOp::Read { rkey, remote_addr } => (IBV_WR_RDMA_READ, 0, remote_addr, rdma(rkey, remote_addr)),
        SendOp::CmpSwp { rkey, remote_addr, compare, swap } => {
            (IBV_WR_ATOMIC_CMP_AND_SWP, 0, remote_addr, atomic(rkey, remote_addr, compare, swap))
        }
        SendOp::FetchAdd { rkey, remote_addr, add } => {
            (IBV_WR_ATOMIC_FETCH_AND_ADD, 0, remote_addr, atomic(rkey, remote_addr, add, 0))
        }
        SendOp::BindMw { mw_rkey, rkey, addr, length, mr_lkey, access } => {
            (IBV_WR_BIND_MW, 0, 0, union_of(&wire::Mw { addr, length, mr_lkey, mw_rkey, rkey, access }))
        }
        SendOp::AtomicWrite { rkey, remote_addr, .. } => {
            (IBV_WR_ATOMIC_WRITE, 0, remote_addr, rdma(rkey, remote_addr))
        }
        SendOp::Flush { rkey, remote_addr, length, r#type, level } => {
            let flush =
                wire::Flush { remote_addr, length: length as u32, rkey, r#type, level, ..Default::default() };
            (IBV_WR_FLUSH, 0, remote_addr, union_of(&flush))
        }
    };
    // The tail first: where it fits, the head does.
    slot.put(TAIL, &TailSeg { status: 0, state: 0, iova, kernel: [0; 6], dma })?;
    slot.put(0, &HeadSeg { wr_id, reserved: 0, opcode, send_flags, ex, wr })
}

#[inline(always)]
fn dma(length: u32, num_sge: u32) -> wire::DmaInfo {
    wire::DmaInfo { length, resid: length, num_sge, ..Default::default() }
}

/// The bytes of all SGEs; a sum over 2^32 - 1, which no message can have, is `EINVAL`.
fn total(sges: &[ibv_sge]) -> Result<u32, Errno> {
    let sum: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
    u32::try_from(sum).map_err(|_| Errno::EINVAL)
}

impl SendQueue {
    #[cold]
    fn garbage(&mut self, found: Garbage) -> Errno {
        if !core::mem::replace(&mut self.reported, true) {
            log::error!(
                "send queue: consumer index {:#x} lies outside of the ring (mask {:#x}): something wrote over the mapped \
                 queue; nothing more can be posted to it",
                found.index,
                found.mask
            );
        }
        Errno::EIO
    }

    /// Whether the slot at `index` may be written: the one that always stays free is not it.
    #[inline(always)]
    fn room(&mut self, index: u32) -> Result<bool, Errno> {
        match self.ring.load_consumer() {
            Ok(consumer) => Ok(self.ring.next(index) != consumer),
            Err(found) => Err(self.garbage(found)),
        }
    }

    fn ud(ah: &Ah, remote_qpn: u32, remote_qkey: u32) -> wire::Ud {
        wire::Ud { remote_qpn, remote_qkey, ah_num: ah.ah_num, av: ah.av, ..Default::default() }
    }

    /// Writes the WQE of `wr` into the slot at `index`, if it is of a [`usual`] kind, with data in one place. False: it is something
    /// else, or wrong, which [`SendQueue::build`] tells.
    #[inline(always)]
    fn build_usual(&self, wr: &SendWr<'_>, index: u32) -> bool {
        let Some(kind) = 1_u32.checked_shl(wr.opcode()).filter(|kind| self.usual & kind != 0) else {
            return false;
        };
        let Some(sge) = wr.only_sge() else { return false };
        let slot = self.ring.slot(index);
        let send_flags = wr.send_flags();
        let data = match wr.inline_piece(sge) {
            None => slot.put(DATA, sge),
            Some(piece) if sge.length <= self.max_inline => slot.put_user(DATA, piece),
            Some(_) => return false,
        };
        let Rdma { remote_addr, rkey } = wr.rdma();
        let iova = if kind & RDMA == 0 { 0 } else { remote_addr };
        // What a kind has no use for, the kernel does not read.
        let to = union_of(&wire::Rdma { remote_addr, rkey, reserved: 0 });
        let (wr_id, opcode, ex) = (wr.wr_id(), wr.opcode(), wr.imm_data());
        let head = HeadSeg { wr_id, reserved: 0, opcode, send_flags, ex, wr: to };
        let tail = TailSeg { status: 0, state: 0, iova, kernel: [0; 6], dma: dma(sge.length, 1) };
        data.and_then(|()| slot.put(TAIL, &tail)).and_then(|()| slot.put(0, &head)).is_ok()
    }

    /// Writes the WQE of any `wr` into the slot at `index`.
    #[inline(never)]
    fn build<'a>(&mut self, wr: &SendWr<'a>, index: u32, objects: impl Objects<'a, Ah>) -> Result<(), Errno> {
        let opcode = wr.opcode();
        if 1_u32.checked_shl(opcode).is_none_or(|bit| self.allowed & bit == 0) {
            return Err(Errno::EINVAL);
        }
        let sges = wr.sges()?;
        let num_sge = sges.len() as u32;
        if num_sge > self.max_sge {
            return Err(Errno::EINVAL);
        }
        let slot = self.ring.slot(index);
        let flags = wr.send_flags();
        let length = if flags & IBV_SEND_INLINE == 0 {
            put_sges(&slot, DATA, sges)?
        } else {
            let length = total(sges)?;
            if length > self.max_inline {
                return Err(Errno::EINVAL);
            }
            put_inline(&slot, wr.inline_pieces(sges))?;
            length
        };
        let ex = wr.imm_data();
        let Rdma { remote_addr, rkey } = wr.rdma();
        let op = match opcode {
            IBV_WR_SEND => SendOp::Send,
            IBV_WR_SEND_WITH_IMM => SendOp::SendImm { imm_data: ex },
            IBV_WR_SEND_WITH_INV => SendOp::SendInv { invalidate_rkey: ex },
            IBV_WR_RDMA_WRITE => SendOp::Write { rkey, remote_addr },
            IBV_WR_RDMA_WRITE_WITH_IMM => SendOp::WriteImm { rkey, remote_addr, imm_data: ex },
            IBV_WR_RDMA_READ => SendOp::Read { rkey, remote_addr },
            IBV_WR_LOCAL_INV => SendOp::LocalInv { invalidate_rkey: ex },
            IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD => {
                let atomic = wr.atomic();
                if length < 8 || !atomic.remote_addr.is_multiple_of(8) {
                    return Err(Errno::EINVAL);
                }
                let (remote_addr, rkey) = (atomic.remote_addr, atomic.rkey);
                if opcode == IBV_WR_ATOMIC_CMP_AND_SWP {
                    SendOp::CmpSwp { rkey, remote_addr, compare: atomic.compare_add, swap: atomic.swap }
                } else {
                    SendOp::FetchAdd { rkey, remote_addr, add: atomic.compare_add }
                }
            }
            IBV_WR_BIND_MW => {
                // A bind moves no data and carries no immediate.
                if num_sge != 0 || ex != 0 {
                    return Err(Errno::EINVAL);
                }
                let bind = wr.bind_mw();
                SendOp::BindMw {
                    mw_rkey: objects.mw(bind.mw).ok_or(Errno::EINVAL)?.0,
                    rkey: bind.rkey,
                    addr: bind.bind_info.addr,
                    length: bind.bind_info.length,
                    mr_lkey: objects.mr_lkey(bind.bind_info.mr).ok_or(Errno::EINVAL)?,
                    access: bind.bind_info.mw_access_flags,
                }
            }
            _ => return Err(Errno::EINVAL),
        };
        put_wqe(&slot, wr.wr_id(), flags, op, dma(length, num_sge))?;
        if self.qp_type == IBV_QPT_UD {
            let ud = wr.ud();
            let ah = objects.ah(ud.ah).ok_or(Errno::EINVAL)?;
            slot.put(WR_UNION, &Self::ud(ah, ud.remote_qpn, ud.remote_qkey))?;
        }
        Ok(())
    }

    /// What a builder makes of `found`. Its caller ends with it, and needs no frame for it.
    #[cold]
    extern "C" fn fail_of_garbage(&mut self, index: u32, mask: u32) {
        self.failed = Some(self.garbage(Garbage { index, mask }));
    }

    /// Writes all of the next WQE but its data.
    #[inline(always)]
    fn start_wqe(&mut self, consumer: u32, wr_id: u64, wr_flags: u32, op: SendOp) -> Result<(), Errno> {
        if self.ring.next(self.cursor) == consumer {
            return Err(Errno::ENOSPC);
        }
        let slot = self.ring.slot(self.cursor);
        let length = match op {
            SendOp::AtomicWrite { data, .. } => {
                slot.put(DATA, &data)?;
                size_of_val(&data) as u32
            }
            SendOp::Flush { length, .. } => u32::try_from(length).map_err(|_| Errno::EINVAL)?,
            _ => 0,
        };
        put_wqe(&slot, wr_id, wr_flags, op, dma(length, 0))
    }

    /// What was posted is not for the kernel.
    #[cold]
    fn keep(&self) {
        if self.copied {
            self.ring.store_producer(self.producer);
        }
        self.life.keep();
    }

    fn slot(&self) -> Slot<'_> {
        self.ring.slot(self.building)
    }

    /// Runs a setter on the WQE being built, unless an error came before.
    #[inline(always)]
    fn set(&mut self, setter: impl FnOnce(&Slot<'_>) -> Result<(), Errno>) {
        if self.failed.is_none() {
            let result = setter(&self.slot());
            self.failed = result.err();
        }
    }
}

/// Copies the pieces of an inline message into the WQE.
#[inline(always)]
fn put_inline<'a>(slot: &Slot<'_>, pieces: impl Iterator<Item = UserBytes<'a>>) -> Result<(), Errno> {
    let mut at = DATA;
    for piece in pieces {
        slot.put_user(at, piece)?;
        at += piece.len();
    }
    Ok(())
}

impl SendBuilder for SendQueue {
    #[inline(always)]
    fn start(&mut self) {
        self.failed = None;
        self.cursor = self.producer;
    }

    #[inline(always)]
    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        if self.failed.is_some() {
            return;
        }
        let consumer = match self.ring.load_consumer() {
            Ok(consumer) => consumer,
            Err(found) => return self.fail_of_garbage(found.index, found.mask),
        };
        match self.start_wqe(consumer, wr_id, wr_flags, op) {
            Ok(()) => {
                self.building = self.cursor;
                self.building_flags = wr_flags;
                self.cursor = self.ring.next(self.cursor);
            }
            Err(errno) => self.failed = Some(errno),
        }
    }

    #[inline(always)]
    fn set_sge(&mut self, sge: ibv_sge) {
        // A length of 0 is no message of 2^31 bytes here, as it would be to hardware: it is no SGE.
        let num_sge = u32::from(sge.length != 0);
        if num_sge > self.max_sge {
            return self.refuse(Errno::ENOSPC);
        }
        self.set(|slot| {
            // The data first: where they fit, the words before them do.
            slot.put(DATA, &sge)?;
            slot.put(DMA, &dma(sge.length, num_sge))
        });
    }

    #[inline(always)]
    fn set_sge_list(&mut self, list: &[ibv_sge]) {
        let max_sge = self.max_sge as usize;
        self.set(|slot| {
            if list.len() > max_sge {
                return Err(Errno::ENOSPC);
            }
            let length = put_sges(slot, DATA, list)?;
            slot.put(DMA, &dma(length, list.len() as u32))
        });
    }

    #[inline(always)]
    fn set_inline_data(&mut self, data: &InlineData<'_>) {
        let (limit, flags) = (self.max_inline as usize, self.building_flags | IBV_SEND_INLINE);
        self.set(|slot| {
            let length = data.len();
            if length > limit {
                return Err(Errno::ENOSPC);
            }
            // The kernel tells inline data by this flag, which the builders' callers need not give.
            slot.put(SEND_FLAGS, &flags)?;
            slot.put(DMA, &dma(length as u32, 0))?;
            put_inline(slot, data.pieces())
        });
    }

    fn set_xrc_srqn(&mut self, _remote_srqn: u32) {
        self.refuse(Errno::EINVAL);
    }

    fn refuse(&mut self, errno: Errno) {
        self.failed.get_or_insert(errno);
    }

    #[inline(always)]
    fn complete(&mut self) -> Result<bool, Errno> {
        if let Some(errno) = self.failed {
            return Err(errno);
        }
        if self.cursor == self.producer {
            return Ok(false);
        }
        self.producer = self.cursor;
        if self.gate.limit() & SENDS == 0 && self.gate.is_closed() {
            self.keep();
            return Ok(false);
        }
        self.ring.store_producer(self.producer);
        Ok(true)
    }

    fn abort(&mut self) {
        self.cursor = self.producer;
    }
}

/// What the gate of a QP lets through: sends.
const SENDS: u32 = 1;
/// Receives.
const RECEIVES: u32 = 2;

/// A queue pair.
#[derive(Debug)]
pub struct Qp {
    fd: CmdFd,
    handle: Handle,
    /// `IBV_QPS_*`, by the last modify.
    state: AtomicU32,
    /// [`SENDS`] and [`RECEIVES`], as the state takes them.
    gate: Arc<Gate>,
    /// Posts that are in the system call, for which they hold no lock.
    kicking: AtomicU32,
    sq: SpinLock<SendQueue>,
    rq: Option<SpinLock<RecvQueue>>,
    /// What is left of them, for the CQs that they complete to.
    pub(super) sends: Arc<Owed>,
    pub(super) receives: Arc<Owed>,
    life: Arc<Life>,
}

impl Qp {
    /// Maps the queues of a QP that the kernel just made; `cap` is what it granted.
    pub(super) fn map(
        fd: CmdFd,
        made: (Handle, u32),
        request: &QpRequest,
        cap: &ibv_qp_cap,
        resp: &wire::CreateQpResp,
        life: &Arc<Life>,
    ) -> Result<Qp, Error> {
        let (handle, qp_num) = made;
        let data = (cap.max_send_sge as usize * size_of::<ibv_sge>()).max(cap.max_inline_data as usize);
        let ring = map_queue(fd, resp.sq_mi, DATA + data).step("map the send queue")?;
        let producer = ring.load_producer().map_err(|_| Errno::EPROTO).step("read the send queue's index")?;
        let rq = match request.srq {
            None => Some(SpinLock::new(RecvQueue::map(fd, resp.rq_mi, cap.max_recv_sge)?)),
            Some(_) => None,
        };
        let gate = Arc::new(Gate::new());
        let sq = SendQueue {
            ring,
            kernel: None,
            copied: false,
            gate: gate.clone(),
            life: life.clone(),
            qp_type: request.qp_type,
            allowed: allowed(request.qp_type),
            usual: if cap.max_send_sge == 0 { 0 } else { usual(request.qp_type) },
            max_sge: cap.max_send_sge,
            max_inline: cap.max_inline_data,
            producer,
            cursor: producer,
            building: 0,
            building_flags: 0,
            failed: None,
            reported: false,
        };
        Ok(Qp {
            fd,
            handle,
            state: AtomicU32::new(IBV_QPS_RESET),
            gate,
            kicking: AtomicU32::new(0),
            sq: SpinLock::new(sq),
            rq,
            sends: Arc::new(Owed::new(qp_num, true)),
            receives: Arc::new(Owed::new(qp_num, false)),
            life: life.clone(),
        })
    }

    /// The QP is in `state` now.
    pub(super) fn entered(&self, state: u32) {
        // ORDER: Relaxed: a post that races with a modify may see either state, as with hardware.
        self.state.store(state, Ordering::Relaxed);
        self.gate.set(self.takes());
    }

    /// [`SENDS`] and [`RECEIVES`], as the state takes them.
    fn takes(&self) -> u32 {
        // ORDER: Relaxed, see `entered`.
        let state = self.state.load(Ordering::Relaxed);
        // The kernel would say so too, but only after the WQEs were published, to be sent once the QP gets there.
        let sends = if state < IBV_QPS_RTS { 0 } else { SENDS };
        let receives = if state == IBV_QPS_RESET { 0 } else { RECEIVES };
        sends | receives
    }

    /// Whether posts of `kind` are kept, where the gate lets none through.
    #[cold]
    fn keeps(&self, kind: u32) -> bool {
        self.gate.is_closed() && self.takes() & kind != 0
    }

    /// Whether the kernel's refusal of a kick is only the death of its QP: what was posted is flushed then.
    #[cold]
    fn refused(&self, errno: Errno) -> Result<(), Errno> {
        if !self.gate.is_closed() {
            return Err(errno);
        }
        self.life.keep();
        Ok(())
    }

    /// [`QueuePair::freeze`] of the sends.
    fn freeze_sends(&self, forgotten: bool) -> Result<(), Errno> {
        let mut sq = self.sq.lock_within(PATIENCE).ok_or(Errno::EBUSY)?;
        if let Some(kernel) = &sq.kernel {
            self.sends.catch_up(kernel);
        } else if !sq.copied {
            let producer = sq.producer;
            sq.kernel = Some(self.sends.freeze(&mut sq.ring, producer, forgotten)?);
            sq.copied = true;
        }
        Ok(())
    }
}

impl QueuePair for Qp {
    type Ah = Ah;
    type Sq = SendQueue;

    const USUAL_SENDS: bool = false;

    #[inline(always)]
    fn post_usual_recv(&self, wr: RecvWr<'_>) -> bool {
        // Under the lock, as for sends.
        self.rq
            .as_ref()
            .and_then(SpinLock::lock_own)
            .is_some_and(|mut rq| self.gate.limit() & RECEIVES != 0 && rq.post_usual(&wr))
    }

    #[inline(always)]
    fn post_send<'a>(
        &self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let first = wrs.as_ptr();
        let mut sq = self.sq.lock();
        // Under the lock: whoever closes the gate waits for it.
        let open = self.gate.limit() & SENDS != 0;
        if !open && !self.keeps(SENDS) {
            return Err(Refused { wr: first, errno: Errno::EINVAL });
        }
        let mut index = sq.producer;
        let mut result = Ok(());
        for wr in wrs {
            let built = match sq.room(index) {
                Ok(true) if sq.build_usual(&wr, index) => Ok(()),
                Ok(true) => sq.build(&wr, index, objects),
                Ok(false) => Err(Errno::ENOMEM),
                Err(errno) => Err(errno),
            };
            if let Err(errno) = built {
                result = Err(Refused { wr: wr.as_ptr(), errno });
                break;
            }
            index = sq.ring.next(index);
        }
        if index == sq.producer {
            return result;
        }
        sq.producer = index;
        if !open {
            sq.keep();
            return result;
        }
        sq.ring.store_producer(index);
        self.will_kick();
        drop(sq);
        match self.kick() {
            Ok(()) => result,
            Err(errno) => Err(Refused { wr: first, errno }),
        }
    }

    #[inline(always)]
    fn will_kick(&self) {
        // ORDER: Relaxed: seen by whoever finds the lock given back.
        self.kicking.fetch_add(1, Ordering::Relaxed);
    }

    /// One system call, in which some kernels send it all. Without the lock: whoever stops the queue needs that.
    #[inline(always)]
    fn kick(&self) -> Result<(), Errno> {
        let kicked = uapi::qp::post_send_kick(self.fd, self.handle);
        // ORDER: Release, partner is the Acquire in `is_quiet`.
        self.kicking.fetch_sub(1, Ordering::Release);
        kicked.or_else(|errno| self.refused(errno))
    }

    #[inline(always)]
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        let Some(rq) = &self.rq else { return Err(Refused { wr: wrs.as_ptr(), errno: Errno::EINVAL }) };
        let mut rq = rq.lock();
        // Under the lock, as for sends.
        let open = self.gate.limit() & RECEIVES != 0;
        if !open && !self.keeps(RECEIVES) {
            return Err(Refused { wr: wrs.as_ptr(), errno: Errno::EINVAL });
        }
        rq.post(wrs, open, &self.life)
    }

    fn send_queue(&self) -> &SpinLock<SendQueue> {
        &self.sq
    }

    fn set_ud_addr(sq: &mut SendQueue, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        sq.set(|slot| slot.put(WR_UNION, &SendQueue::ud(ah, remote_qpn, remote_qkey)));
    }

    fn close(&self) {
        self.gate.close();
    }

    fn is_quiet(&self) -> bool {
        self.sq.is_idle()
            && self.rq.as_ref().is_none_or(SpinLock::is_idle)
            // ORDER: Acquire, partner is the Release in `kick`. After the lock: who counted had it.
            && self.kicking.load(Ordering::Acquire) == 0
    }

    fn outstanding(&self) -> Vec<Outstanding> {
        let sq = self.sq.lock();
        let told = sq.kernel.as_ref().unwrap_or(&sq.ring).load_producer().unwrap_or(sq.producer);
        let mut found = owed::outstanding(&sq.ring, sq.producer, told, true);
        drop(sq);
        if let Some(rq) = &self.rq {
            found.extend(rq.lock().outstanding());
        }
        found
    }

    fn freeze(&self) -> Result<(), Errno> {
        // ORDER: Relaxed, see `entered`.
        let forgotten = self.state.load(Ordering::Relaxed) == IBV_QPS_RESET;
        // Where a thread stays in a send the receives are kept all the same.
        let sends = self.freeze_sends(forgotten);
        let Some(rq) = &self.rq else { return sends };
        let mut rq = rq.lock_within(PATIENCE).ok_or(Errno::EBUSY)?;
        rq.freeze(&self.receives, forgotten).and(sends)
    }

    fn let_go(&self) {
        if let Some(mut sq) = self.sq.lock_within(PATIENCE) {
            sq.kernel = None;
        }
        if let Some(mut rq) = self.rq.as_ref().and_then(|rq| rq.lock_within(PATIENCE)) {
            rq.let_go();
        }
    }
}
