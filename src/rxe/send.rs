//! Send queues and queue pairs: a list of `struct rxe_send_wqe`, then one system call.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use super::ah::Ah;
use super::map_queue;
use super::recv::RecvQueue;
use crate::abi::public::*;
use crate::abi::wr::{InlineData, Rdma, RecvWrs, SendWr, SendWrs};
use crate::error::{Errno, Error, Step as _};
use crate::family::{Objects, QpRequest, QueuePair, Refused, SendBuilder, SendOp};
use crate::hw::shared_queue::{Garbage, SharedQueue, Slot};
use crate::log;
use crate::sync::SpinLock;
use crate::uapi::{self, CmdFd, Handle, rxe as wire};

/// Where SGEs, inline data and an atomic write's value begin in a WQE.
const DATA: usize = size_of::<wire::SendWqe>();
const WR_UNION: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, wr);
const SEND_FLAGS: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, send_flags);
const DMA: usize = offset_of!(wire::SendWqe, dma);

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

/// Whether `ibv_post_send` takes `opcode` on a QP of this type.
fn allowed(qp_type: u32, opcode: u32) -> bool {
    match qp_type {
        IBV_QPT_RC => opcode <= IBV_WR_SEND_WITH_INV,
        IBV_QPT_UC => matches!(
            opcode,
            IBV_WR_RDMA_WRITE
                | IBV_WR_RDMA_WRITE_WITH_IMM
                | IBV_WR_SEND
                | IBV_WR_SEND_WITH_IMM
                | IBV_WR_LOCAL_INV
                | IBV_WR_BIND_MW
                | IBV_WR_SEND_WITH_INV
        ),
        _ => matches!(opcode, IBV_WR_SEND | IBV_WR_SEND_WITH_IMM),
    }
}

/// The producer's side of a QP's send queue.
#[derive(Debug)]
pub struct SendQueue {
    ring: SharedQueue,
    fd: CmdFd,
    handle: Handle,
    qp_type: u32,
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

/// The header of the WQE that `op` makes: everything but the data that follow it.
fn header(wr_id: u64, send_flags: u32, op: SendOp) -> wire::SendWqe {
    let mut wqe = wire::SendWqe::default();
    let rdma = |rkey, remote_addr| wire::SendWr::union_of(&wire::Rdma { remote_addr, rkey, reserved: 0 });
    let atomic = |rkey, remote_addr, compare_add, swap| {
        wire::SendWr::union_of(&wire::Atomic { remote_addr, compare_add, swap, rkey, reserved: 0 })
    };
    let (opcode, ex, iova, union) = match op {
        SendOp::Send => (IBV_WR_SEND, 0, 0, wqe.wr.wr),
        SendOp::SendImm { imm_data } => (IBV_WR_SEND_WITH_IMM, imm_data, 0, wqe.wr.wr),
        SendOp::SendInv { invalidate_rkey } => (IBV_WR_SEND_WITH_INV, invalidate_rkey, 0, wqe.wr.wr),
        SendOp::LocalInv { invalidate_rkey } => (IBV_WR_LOCAL_INV, invalidate_rkey, 0, wqe.wr.wr),
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
            let mw = wire::Mw { addr, length, mr_lkey, mw_rkey, rkey, access };
            (IBV_WR_BIND_MW, 0, 0, wire::SendWr::union_of(&mw))
        }
        SendOp::AtomicWrite { rkey, remote_addr, .. } => {
            (IBV_WR_ATOMIC_WRITE, 0, remote_addr, rdma(rkey, remote_addr))
        }
        SendOp::Flush { rkey, remote_addr, length, r#type, level } => {
            let flush =
                wire::Flush { remote_addr, length: length as u32, rkey, r#type, level, ..Default::default() };
            (IBV_WR_FLUSH, 0, remote_addr, wire::SendWr::union_of(&flush))
        }
    };
    wqe.wr = wire::SendWr { wr_id, reserved: 0, opcode, send_flags, ex, wr: union };
    wqe.iova = iova;
    match op {
        SendOp::AtomicWrite { .. } => wqe.dma = dma(size_of::<u64>() as u32, 0),
        SendOp::Flush { length, .. } => wqe.dma = dma(length as u32, 0),
        _ => {}
    }
    wqe
}

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
    #[inline]
    fn room(&mut self, index: u32) -> Result<bool, Errno> {
        match self.ring.load_consumer() {
            Ok(consumer) => Ok(self.ring.next(index) != consumer),
            Err(found) => Err(self.garbage(found)),
        }
    }

    fn ud(ah: &Ah, remote_qpn: u32, remote_qkey: u32) -> wire::Ud {
        wire::Ud { remote_qpn, remote_qkey, ah_num: ah.ah_num, av: ah.av, ..Default::default() }
    }

    /// Writes the WQE of `wr` into the slot at `index`.
    fn build<'a>(&mut self, wr: &SendWr<'a>, index: u32, objects: impl Objects<'a, Ah>) -> Result<(), Errno> {
        let opcode = wr.opcode();
        if !allowed(self.qp_type, opcode) {
            return Err(Errno::EINVAL);
        }
        let sges = wr.sges()?;
        let num_sge = sges.len() as u32;
        if num_sge > self.max_sge {
            return Err(Errno::EINVAL);
        }
        let length = total(sges)?;
        let flags = wr.send_flags();
        let inline = flags & IBV_SEND_INLINE != 0;
        if inline && length > self.max_inline {
            return Err(Errno::EINVAL);
        }
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
        let mut wqe = header(wr.wr_id(), flags, op);
        wqe.dma = dma(length, num_sge);
        if self.qp_type == IBV_QPT_UD {
            let ud = wr.ud();
            let ah = objects.ah(ud.ah).ok_or(Errno::EINVAL)?;
            wqe.wr.wr = wire::SendWr::union_of(&Self::ud(ah, ud.remote_qpn, ud.remote_qkey));
        }
        let slot = self.ring.slot(index);
        slot.put(0, &wqe)?;
        match wr.inline_data()? {
            Some(data) => put_inline(&slot, &data),
            None => slot.put(DATA, sges),
        }
    }

    /// One system call: the kernel looks at the queue.
    fn kick(fd: CmdFd, handle: Handle) -> Result<(), Errno> {
        uapi::qp::post_send_kick(fd, handle)
    }

    fn slot(&self) -> Slot<'_> {
        self.ring.slot(self.building)
    }

    /// Runs a setter on the WQE being built, unless an error came before.
    fn set(&mut self, setter: impl FnOnce(&Slot<'_>) -> Result<(), Errno>) {
        if self.failed.is_none() {
            let result = setter(&self.slot());
            self.failed = result.err();
        }
    }
}

/// Copies the pieces of an inline message into the WQE.
fn put_inline(slot: &Slot<'_>, data: &InlineData<'_>) -> Result<(), Errno> {
    let mut at = DATA;
    for piece in data.pieces() {
        slot.put_user(at, piece)?;
        at += piece.len();
    }
    Ok(())
}

impl SendBuilder for SendQueue {
    fn start(&mut self) {
        self.failed = None;
        self.cursor = self.producer;
    }

    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        if self.failed.is_some() {
            return;
        }
        let result = self.room(self.cursor).and_then(|room| {
            if !room {
                return Err(Errno::ENOSPC);
            }
            let slot = self.ring.slot(self.cursor);
            slot.put(0, &header(wr_id, wr_flags, op))?;
            match op {
                SendOp::AtomicWrite { data, .. } => slot.put(DATA, &data),
                SendOp::Flush { length, .. } if u32::try_from(length).is_err() => Err(Errno::EINVAL),
                _ => Ok(()),
            }
        });
        match result {
            Ok(()) => {
                self.building = self.cursor;
                self.building_flags = wr_flags;
                self.cursor = self.ring.next(self.cursor);
            }
            Err(errno) => self.failed = Some(errno),
        }
    }

    fn set_sge(&mut self, sge: ibv_sge) {
        // A length of 0 is no message of 2^31 bytes here, as it would be to hardware: it is no SGE.
        let list = [sge];
        self.set_sge_list(if sge.length == 0 { &[] } else { &list });
    }

    fn set_sge_list(&mut self, list: &[ibv_sge]) {
        let max_sge = self.max_sge as usize;
        self.set(|slot| {
            if list.len() > max_sge {
                return Err(Errno::ENOSPC);
            }
            slot.put(DMA, &dma(total(list)?, list.len() as u32))?;
            slot.put(DATA, list)
        });
    }

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
            put_inline(slot, data)
        });
    }

    fn set_xrc_srqn(&mut self, _remote_srqn: u32) {
        self.refuse(Errno::EINVAL);
    }

    fn refuse(&mut self, errno: Errno) {
        self.failed.get_or_insert(errno);
    }

    fn complete(&mut self) -> Result<(), Errno> {
        if let Some(errno) = self.failed {
            return Err(errno);
        }
        if self.cursor == self.producer {
            return Ok(());
        }
        self.producer = self.cursor;
        self.ring.store_producer(self.producer);
        Self::kick(self.fd, self.handle)
    }

    fn abort(&mut self) {
        self.cursor = self.producer;
    }
}

/// A queue pair.
#[derive(Debug)]
pub struct Qp {
    fd: CmdFd,
    handle: Handle,
    /// `IBV_QPS_*`, by the last modify.
    state: AtomicU32,
    sq: SpinLock<SendQueue>,
    rq: Option<SpinLock<RecvQueue>>,
}

impl Qp {
    /// Maps the queues of a QP that the kernel just made; `cap` is what it granted.
    pub(super) fn map(
        fd: CmdFd,
        handle: Handle,
        request: &QpRequest,
        cap: &ibv_qp_cap,
        resp: &wire::CreateQpResp,
    ) -> Result<Qp, Error> {
        let data = (cap.max_send_sge as usize * size_of::<ibv_sge>()).max(cap.max_inline_data as usize);
        let ring = map_queue(fd, resp.sq_mi, DATA + data).step("map the send queue")?;
        let producer = ring.load_producer().map_err(|_| Errno::EPROTO).step("read the send queue's index")?;
        let rq = match request.srq {
            None => Some(SpinLock::new(RecvQueue::map(fd, resp.rq_mi, cap.max_recv_sge)?)),
            Some(_) => None,
        };
        let sq = SendQueue {
            ring,
            fd,
            handle,
            qp_type: request.qp_type,
            max_sge: cap.max_send_sge,
            max_inline: cap.max_inline_data,
            producer,
            cursor: producer,
            building: 0,
            building_flags: 0,
            failed: None,
            reported: false,
        };
        Ok(Qp { fd, handle, state: AtomicU32::new(IBV_QPS_RESET), sq: SpinLock::new(sq), rq })
    }

    /// The QP is in `state` now.
    pub(super) fn entered(&self, state: u32) {
        // ORDER: Relaxed, see `state`.
        self.state.store(state, Ordering::Relaxed);
    }

    fn state(&self) -> u32 {
        // ORDER: Relaxed: a post that races with a modify may see either state, as with hardware.
        self.state.load(Ordering::Relaxed)
    }
}

impl QueuePair for Qp {
    type Ah = Ah;
    type Sq = SendQueue;

    fn post_send<'a>(
        &self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let first = wrs.as_ptr();
        if self.state() < IBV_QPS_RTS {
            // The kernel would say so too, but only after the WQEs were published, to be sent once the QP gets there.
            return Err(Refused { wr: first, errno: Errno::EINVAL });
        }
        let mut sq = self.sq.lock();
        let mut index = sq.producer;
        let mut result = Ok(());
        for wr in wrs {
            let built = match sq.room(index) {
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
        let posted = index != sq.producer;
        if posted {
            sq.producer = index;
            sq.ring.store_producer(index);
        }
        drop(sq);
        if posted && let Err(errno) = SendQueue::kick(self.fd, self.handle) {
            return Err(Refused { wr: first, errno });
        }
        result
    }

    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        match &self.rq {
            Some(rq) if self.state() != IBV_QPS_RESET => rq.lock().post(wrs),
            _ => Err(Refused { wr: wrs.as_ptr(), errno: Errno::EINVAL }),
        }
    }

    fn send_queue(&self) -> &SpinLock<SendQueue> {
        &self.sq
    }

    fn set_ud_addr(sq: &mut SendQueue, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        sq.set(|slot| slot.put(WR_UNION, &SendQueue::ud(ah, remote_qpn, remote_qkey)));
    }
}
