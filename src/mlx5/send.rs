//! Send queues: work requests become WQEs, built once in place, and a list of them rings one doorbell.
//!
//! `post` is compiled once for each transport, so that what a WQE of that transport does not have costs nothing. A WQE's
//! control segment, which holds its length, is written when its other segments are there.

use std::sync::Arc;

use super::ah::Ah;
use super::ring::{Meta, Owner, SendRing};
use super::uar::{Register, Use};
use super::wqe::{self, Bind, opcode};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, Rdma, SendWr, SendWrs};
use crate::error::Errno;
use crate::family::{Objects, Refused, SendBuilder, SendOp};

/// Transports, as `post` is compiled for.
pub(super) mod transport {
    pub(crate) const RC: u8 = 0;
    pub(crate) const UC: u8 = 1;
    pub(crate) const UD: u8 = 2;
    pub(crate) const XRC: u8 = 3;
}

/// The transport of a QP type that sends.
pub(super) fn transport_of(qp_type: u32) -> u8 {
    match qp_type {
        IBV_QPT_RC => transport::RC,
        IBV_QPT_UC => transport::UC,
        IBV_QPT_UD => transport::UD,
        _ => transport::XRC,
    }
}

/// `IBV_QP_EX_WITH_*` of a QP type, without atomics where the device has none.
pub(super) fn builders(qp_type: u32, atomics: bool) -> u64 {
    const UD: u32 = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    const UC: u32 = UD
        | IBV_QP_EX_WITH_SEND_WITH_INV
        | IBV_QP_EX_WITH_RDMA_WRITE
        | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
        | IBV_QP_EX_WITH_LOCAL_INV
        | IBV_QP_EX_WITH_BIND_MW;
    const ATOMIC: u32 = IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    const RC: u32 = UC | IBV_QP_EX_WITH_RDMA_READ;
    u64::from(match qp_type {
        IBV_QPT_RC | IBV_QPT_XRC_SEND if atomics => RC | ATOMIC,
        IBV_QPT_RC | IBV_QPT_XRC_SEND => RC,
        IBV_QPT_UC => UC,
        IBV_QPT_UD => UD,
        _ => 0,
    })
}

/// A WQE that the `ibv_wr_*` functions are building.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    wr_id: u64,
    opcode: u8,
    fm_ce_se: u8,
    imm: u32,
    /// What [`Meta`] notes.
    noted: u8,
    /// Units in front of the data.
    head: u32,
    /// Units of data.
    data: u32,
    /// Any data given so far were inline.
    inline: bool,
}

/// A WQE of which only the control segment is missing.
struct Finished {
    wr_id: u64,
    opcode: u8,
    /// Its length in units.
    ds: u32,
    fm_ce_se: u8,
    imm: u32,
    /// What [`Meta`] notes.
    noted: u8,
}

/// The producer's side of a send queue.
#[derive(Debug)]
pub struct SendQueue {
    owner: Arc<Owner>,
    producer: Producer,
}

/// Where posting stands, and what every WQE of the queue has.
#[derive(Debug)]
struct Producer {
    /// The next free block.
    post: u32,
    /// Work requests posted.
    head: u32,
    /// Those of them that completed, when it was last looked up.
    tail: u32,
    /// What the next WQE has to wait for: the bind or invalidation before it.
    fence: u8,
    /// Every send completes, whatever its flags.
    signal: u8,
    transport: u8,
    atomics: bool,
    prefer_bf: bool,
    qpn: u32,
    max_sge: u32,
    max_inline: u32,
    /// Units of the longest WQE that BlueFlame takes; 0: none.
    max_burst: u32,
    /// Work requests that a queue takes whose gate is closed.
    max_post: u32,
    /// Where its doorbell is; none once the gate is closed.
    register: Option<Arc<Register>>,
    /// Keeps the register ours.
    _use: Option<Arc<Use>>,
    /// `ibv_wr_*`: where the queue stood at start.
    saved: (u32, u32, u8),
    open: Option<Open>,
    /// The last WQE closed: its first unit, its length, and whether it has inline data.
    last: (u32, u32, bool),
    failed: Option<Errno>,
}

/// What the verbs layer and the kernel agreed on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape {
    pub(super) transport: u8,
    pub(super) sq_sig_all: bool,
    pub(super) atomics: bool,
    pub(super) prefer_bf: bool,
    pub(super) qpn: u32,
    pub(super) max_sge: u32,
    pub(super) max_inline: u32,
    pub(super) max_post: u32,
}

/// The length of a message and its pieces as inline data.
fn put_inline(ring: &SendRing, at: u32, limit: u32, data: &InlineData<'_>) -> Result<u32, Errno> {
    let len = data.len();
    if len > limit as usize {
        return Err(Errno::ENOMEM);
    }
    if len == 0 {
        return Ok(0);
    }
    // Within the limit, and so within 32 bits.
    let len = len as u32;
    ring.units.put(at, wqe::inline_head(len));
    let mut byte = at.wrapping_mul(16).wrapping_add(4);
    for piece in data.pieces() {
        ring.units.put_user(byte, piece);
        byte = byte.wrapping_add(piece.len() as u32);
    }
    Ok(wqe::inline_units(len))
}

/// Data segments of those entries that have a length; a data segment of 0 bytes would be one of 2 GiB.
#[inline(always)]
fn put_sges(ring: &SendRing, at: u32, sges: &[ibv_sge]) -> u32 {
    let mut count = 0;
    for sge in sges {
        if sge.length != 0 {
            ring.units.put(at.wrapping_add(count), wqe::data(sge.length, sge.lkey, sge.addr));
            count += 1;
        }
    }
    count
}

impl Producer {
    fn new(shape: Shape, register: Option<Arc<Use>>) -> Producer {
        let max_burst = register.as_ref().map_or(0, |register| register.register.half() / 16);
        Producer {
            post: 0,
            head: 0,
            tail: 0,
            fence: 0,
            signal: if shape.sq_sig_all { wqe::CTRL_CQ_UPDATE } else { 0 },
            transport: shape.transport,
            atomics: shape.atomics,
            prefer_bf: shape.prefer_bf,
            qpn: shape.qpn,
            max_sge: shape.max_sge,
            max_inline: shape.max_inline,
            max_burst,
            max_post: shape.max_post,
            register: register.as_ref().map(|register| register.register.clone()),
            _use: register,
            saved: (0, 0, 0),
            open: None,
            last: (0, 0, false),
            failed: None,
        }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.post, self.head, self.tail, self.fence) = (0, 0, 0, 0);
        self.open = None;
    }

    /// Whether a further work request may be posted. The limit is 0 where none may: it closes the queue.
    #[inline(always)]
    fn room(&mut self, ring: &SendRing) -> bool {
        let limit = ring.gate.limit();
        self.head.wrapping_sub(self.tail) < limit || self.look(ring, limit)
    }

    /// Looks how much room there really is. Behind a closed gate posts are kept: nothing is left to ring with.
    #[inline(never)]
    fn look(&mut self, ring: &SendRing, limit: u32) -> bool {
        self.tail = ring.tail();
        let outstanding = self.head.wrapping_sub(self.tail);
        if outstanding < limit {
            return true;
        }
        if limit != 0 || !ring.gate.is_closed() {
            return false;
        }
        self.register = None;
        outstanding < self.max_post
    }

    #[inline(always)]
    fn flags(&self, send_flags: u32) -> u8 {
        let fence = if send_flags & IBV_SEND_FENCE != 0 { wqe::CTRL_FENCE } else { self.fence };
        // Two of verbs.h's bits, moved to where the device wants them.
        let signal = ((send_flags & IBV_SEND_SIGNALED) << 2) as u8;
        let solicited = ((send_flags & IBV_SEND_SOLICITED) >> 1) as u8;
        const { assert!(IBV_SEND_SIGNALED << 2 == wqe::CTRL_CQ_UPDATE as u32) };
        const { assert!(IBV_SEND_SOLICITED >> 1 == wqe::CTRL_SOLICITED as u32) };
        self.signal | fence | signal | solicited
    }

    /// Writes the control segment of the WQE at `post`, and notes the work request.
    #[inline(always)]
    fn close(&mut self, ring: &SendRing, wqe: &Finished) {
        let post = self.post;
        let at = post.wrapping_mul(wqe::UNITS_PER_BB);
        let ctrl = wqe::ctrl(wqe.opcode, post as u16, self.qpn, wqe.ds, wqe.fm_ce_se, wqe.imm);
        ring.units.put(at, ctrl);
        let next = post.wrapping_add(wqe.ds.div_ceil(wqe::UNITS_PER_BB));
        ring.note(post, wqe.wr_id, Meta { head: self.head, next: next as u16, opcode: wqe.noted });
        self.post = next;
        self.head = self.head.wrapping_add(1);
    }

    /// Lets the device see everything up to `post`: `at`, `ds` and `inline` are those of the last WQE of `count`.
    #[inline(always)]
    fn ring(&self, ring: &SendRing, count: u32, at: u32, ds: u32, inline: bool) {
        let burst = count == 1 && ds > 1 && ds <= self.max_burst && (inline || self.prefer_bf);
        let burst = if burst { ds } else { 0 };
        match &self.register {
            Some(register) => register.ring(&ring.dbrec.record, self.post, &ring.units, at, burst),
            None => ring.keep(self.post),
        }
    }

    /// Builds the WQE of one work request: its length, and whether it has inline data.
    #[inline(always)]
    fn build<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wr: &SendWr<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(u32, bool), Errno> {
        let verb = wr.opcode();
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::ENOMEM);
        }
        let send_flags = wr.send_flags();
        let start = self.post.wrapping_mul(wqe::UNITS_PER_BB);
        let mut at = start.wrapping_add(1);
        let (mut imm, mut noted) = (0, 0);
        let mut fence = 0;
        if T == transport::UD {
            let ud = wr.ud();
            let ah = objects.ah(ud.ah).ok_or(Errno::EINVAL)?;
            for unit in wqe::datagram(&ah.units, ud.remote_qpn, ud.remote_qkey) {
                ring.units.put(at, unit);
                at = at.wrapping_add(1);
            }
        }
        let bind = verb == IBV_WR_BIND_MW || verb == IBV_WR_LOCAL_INV;
        if T == transport::XRC && !bind {
            ring.units.put(at, wqe::xrc(wr.remote_srqn()));
            at = at.wrapping_add(1);
        }
        let code = match verb {
            IBV_WR_SEND => opcode::SEND,
            IBV_WR_SEND_WITH_IMM => {
                imm = u32::from_be(wr.imm_data());
                opcode::SEND_IMM
            }
            IBV_WR_SEND_WITH_INV if T != transport::UD => {
                imm = wr.invalidate_rkey();
                opcode::SEND_INVAL
            }
            IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ
                if T != transport::UD && !(T == transport::UC && verb == IBV_WR_RDMA_READ) =>
            {
                let Rdma { remote_addr, rkey } = wr.rdma();
                ring.units.put(at, wqe::raddr(remote_addr, rkey));
                at = at.wrapping_add(1);
                match verb {
                    IBV_WR_RDMA_WRITE => opcode::RDMA_WRITE,
                    IBV_WR_RDMA_READ => opcode::RDMA_READ,
                    _ => {
                        imm = u32::from_be(wr.imm_data());
                        opcode::RDMA_WRITE_IMM
                    }
                }
            }
            IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD
                if T == transport::RC || T == transport::XRC =>
            {
                if !self.atomics {
                    return Err(Errno::EOPNOTSUPP);
                }
                let atomic = wr.atomic();
                let swaps = verb == IBV_WR_ATOMIC_CMP_AND_SWP;
                ring.units.put(at, wqe::raddr(atomic.remote_addr, atomic.rkey));
                let operands = if swaps {
                    wqe::atomic(atomic.swap, atomic.compare_add)
                } else {
                    wqe::atomic(atomic.compare_add, 0)
                };
                ring.units.put(at.wrapping_add(1), operands);
                at = at.wrapping_add(2);
                // Whatever the length of an entry: an atomic gives 8 bytes.
                for sge in sges.iter().filter(|sge| sge.length != 0) {
                    ring.units.put(at, wqe::data(8, sge.lkey, sge.addr));
                    at = at.wrapping_add(1);
                }
                let code = if swaps { opcode::ATOMIC_CS } else { opcode::ATOMIC_FA };
                let ds = at.wrapping_sub(start);
                let fm_ce_se = self.flags(send_flags);
                self.fence = 0;
                let wqe = Finished { wr_id: wr.wr_id(), opcode: code, ds, fm_ce_se, imm: 0, noted: 0 };
                self.close(ring, &wqe);
                return Ok((ds, false));
            }
            IBV_WR_BIND_MW | IBV_WR_LOCAL_INV if T != transport::UD => {
                let (key, bind) = self.bind_of(wr, verb, objects)?;
                imm = key;
                at = at.wrapping_add(put_bind(ring, at, &bind));
                noted = if verb == IBV_WR_BIND_MW { IBV_WC_BIND_MW } else { IBV_WC_LOCAL_INV } as u8;
                fence = wqe::CTRL_INITIATOR_SMALL_FENCE;
                opcode::UMR
            }
            _ => return Err(Errno::EINVAL),
        };
        let inline = send_flags & IBV_SEND_INLINE != 0 && !sges.is_empty();
        let data = if inline {
            match wr.inline_data()? {
                Some(data) => put_inline(ring, at, self.max_inline, &data)?,
                None => 0,
            }
        } else {
            put_sges(ring, at, sges)
        };
        let ds = at.wrapping_add(data).wrapping_sub(start);
        let fm_ce_se = self.flags(send_flags);
        self.fence = fence;
        self.close(ring, &Finished { wr_id: wr.wr_id(), opcode: code, ds, fm_ce_se, imm, noted });
        Ok((ds, inline))
    }

    /// The key that is acted on, and what is done to it.
    #[cold]
    fn bind_of<'a>(
        &self,
        wr: &SendWr<'a>,
        verb: u32,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(u32, Bind), Errno> {
        if verb == IBV_WR_LOCAL_INV {
            return Ok((wr.invalidate_rkey(), Bind::INVALIDATE));
        }
        let work = wr.bind_mw();
        let (rkey, mw_type) = objects.mw(work.mw).ok_or(Errno::EINVAL)?;
        let info = &work.bind_info;
        if info.length > wqe::BIND_MAX {
            return Err(Errno::EOPNOTSUPP);
        }
        // A window of no length is unbound, and needs no region.
        let lkey = if info.length == 0 { 0 } else { objects.mr_lkey(info.mr).ok_or(Errno::EINVAL)? };
        let bind = Bind {
            type_2: mw_type == IBV_MW_TYPE_2,
            rkey: work.rkey,
            qpn: self.qpn,
            addr: info.addr,
            length: info.length,
            lkey,
            access: info.mw_access_flags,
        };
        Ok((rkey, bind))
    }

    #[inline(always)]
    fn post<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let mut result = Ok(());
        let (mut count, mut ds, mut inline, mut at) = (0_u32, 0, false, 0);
        for wr in wrs {
            let begin = self.post.wrapping_mul(wqe::UNITS_PER_BB);
            let built =
                if self.room(ring) { self.build::<T>(ring, &wr, objects) } else { Err(Errno::ENOMEM) };
            match built {
                Ok((length, has_inline)) => {
                    (count, ds, at) = (count + 1, length, begin);
                    inline |= has_inline;
                }
                Err(errno) => {
                    result = Err(Refused { wr: wr.as_ptr(), errno });
                    break;
                }
            }
        }
        if count != 0 {
            self.ring(ring, count, at, ds, inline);
        }
        result
    }

    /// Closes the WQE that the builders left open.
    #[inline]
    fn finish(&mut self, ring: &SendRing) {
        let Some(open) = self.open.take() else { return };
        let ds = open.head + open.data;
        self.last = (self.post.wrapping_mul(wqe::UNITS_PER_BB), ds, self.last.2 | open.inline);
        let Open { wr_id, opcode, fm_ce_se, imm, noted, .. } = open;
        self.close(ring, &Finished { wr_id, opcode, ds, fm_ce_se, imm, noted });
    }

    fn abort(&mut self) {
        (self.post, self.head, self.fence) = self.saved;
        self.open = None;
    }
}

impl SendQueue {
    pub(super) fn new(shape: Shape, owner: Arc<Owner>, register: Option<Arc<Use>>) -> SendQueue {
        SendQueue { owner, producer: Producer::new(shape, register) }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        self.producer.reset();
    }

    /// Posts a list.
    #[inline(always)]
    pub(super) fn post_send<'a>(
        &mut self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let Some(ring) = &self.owner.send else {
            // A QP that was asked for no sends.
            return Err(Refused { wr: wrs.as_ptr(), errno: Errno::ENOMEM });
        };
        let producer = &mut self.producer;
        match producer.transport {
            transport::RC => producer.post::<{ transport::RC }>(ring, wrs, objects),
            transport::UD => producer.post::<{ transport::UD }>(ring, wrs, objects),
            transport::UC => producer.post::<{ transport::UC }>(ring, wrs, objects),
            _ => producer.post::<{ transport::XRC }>(ring, wrs, objects),
        }
    }

    /// Runs a setter on the ring and the open WQE, whose first unit it is given.
    #[inline(always)]
    fn set(&mut self, setter: impl FnOnce(&Producer, &SendRing, &mut Open, u32) -> Result<(), Errno>) {
        let producer = &mut self.producer;
        if producer.failed.is_some() {
            return;
        }
        let at = producer.post.wrapping_mul(wqe::UNITS_PER_BB);
        let result = match (producer.open, &self.owner.send) {
            (Some(mut open), Some(ring)) => {
                setter(producer, ring, &mut open, at).map(|()| producer.open = Some(open))
            }
            // A setter with nothing to set: the application forgot the operation.
            _ => Err(Errno::EINVAL),
        };
        producer.failed = result.err();
    }

    /// `ibv_wr_set_ud_addr`.
    pub(super) fn set_ud_addr(&mut self, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        self.set(|sq, ring, _, at| {
            if sq.transport != transport::UD {
                return Err(Errno::EINVAL);
            }
            for (next, unit) in (1..).zip(wqe::datagram(&ah.units, remote_qpn, remote_qkey)) {
                ring.units.put(at.wrapping_add(next), unit);
            }
            Ok(())
        });
    }
}

/// The UMR segments of a bind; how many units.
fn put_bind(ring: &SendRing, at: u32, bind: &Bind) -> u32 {
    let (units, count) = bind.units();
    for (next, unit) in (0..count).zip(units) {
        ring.units.put(at.wrapping_add(next), unit);
    }
    count
}

impl SendBuilder for SendQueue {
    #[inline]
    fn start(&mut self) {
        let producer = &mut self.producer;
        producer.saved = (producer.post, producer.head, producer.fence);
        producer.open = None;
        producer.last = (0, 0, false);
        producer.failed = None;
    }

    #[inline(always)]
    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        let Some(ring) = &self.owner.send else {
            self.producer.failed = Some(Errno::EINVAL);
            return;
        };
        let producer = &mut self.producer;
        producer.finish(ring);
        if producer.failed.is_some() {
            return;
        }
        if !producer.room(ring) {
            producer.failed = Some(Errno::ENOMEM);
            return;
        }
        let begin = producer.post.wrapping_mul(wqe::UNITS_PER_BB);
        let mut open = Open { wr_id, fm_ce_se: producer.flags(wr_flags), head: 1, ..Open::default() };
        producer.fence = 0;
        let binds = matches!(op, SendOp::BindMw { .. } | SendOp::LocalInv { .. });
        match producer.transport {
            transport::UD => open.head += 3,
            transport::XRC if !binds => open.head += 1,
            _ => {}
        }
        let at = begin.wrapping_add(open.head);
        let rdma = |open: &mut Open, rkey, remote_addr| {
            ring.units.put(at, wqe::raddr(remote_addr, rkey));
            open.head += 1;
        };
        let atomic = |open: &mut Open, operands| {
            ring.units.put(at.wrapping_add(1), operands);
            open.head += 1;
        };
        let bind = |open: &mut Open, key, verb, bind: &Bind| {
            open.imm = key;
            open.noted = verb as u8;
            open.head += put_bind(ring, at, bind);
            opcode::UMR
        };
        open.opcode = match op {
            SendOp::Send => opcode::SEND,
            SendOp::SendImm { imm_data } => {
                open.imm = u32::from_be(imm_data);
                opcode::SEND_IMM
            }
            SendOp::SendInv { invalidate_rkey } => {
                open.imm = invalidate_rkey;
                opcode::SEND_INVAL
            }
            SendOp::Write { rkey, remote_addr } => {
                rdma(&mut open, rkey, remote_addr);
                opcode::RDMA_WRITE
            }
            SendOp::WriteImm { rkey, remote_addr, imm_data } => {
                rdma(&mut open, rkey, remote_addr);
                open.imm = u32::from_be(imm_data);
                opcode::RDMA_WRITE_IMM
            }
            SendOp::Read { rkey, remote_addr } => {
                rdma(&mut open, rkey, remote_addr);
                opcode::RDMA_READ
            }
            SendOp::CmpSwp { rkey, remote_addr, compare, swap } => {
                rdma(&mut open, rkey, remote_addr);
                atomic(&mut open, wqe::atomic(swap, compare));
                opcode::ATOMIC_CS
            }
            SendOp::FetchAdd { rkey, remote_addr, add } => {
                rdma(&mut open, rkey, remote_addr);
                atomic(&mut open, wqe::atomic(add, 0));
                opcode::ATOMIC_FA
            }
            SendOp::LocalInv { invalidate_rkey } => {
                producer.fence = wqe::CTRL_INITIATOR_SMALL_FENCE;
                bind(&mut open, invalidate_rkey, IBV_WC_LOCAL_INV, &Bind::INVALIDATE)
            }
            SendOp::BindMw { mw_rkey, rkey, addr, length, mr_lkey, access } => {
                if length > wqe::BIND_MAX {
                    producer.failed = Some(Errno::EOPNOTSUPP);
                    return;
                }
                producer.fence = wqe::CTRL_INITIATOR_SMALL_FENCE;
                // Type 1 windows are bound by ibv_bind_mw only.
                let bound =
                    Bind { type_2: true, rkey, qpn: producer.qpn, addr, length, lkey: mr_lkey, access };
                bind(&mut open, mw_rkey, IBV_WC_BIND_MW, &bound)
            }
            // Never given out by `builders`.
            SendOp::AtomicWrite { .. } | SendOp::Flush { .. } => {
                producer.failed = Some(Errno::EOPNOTSUPP);
                return;
            }
        };
        producer.open = Some(open);
    }

    #[inline(always)]
    fn set_sge(&mut self, sge: ibv_sge) {
        self.set(|_, ring, open, at| {
            open.data = put_sges(ring, at.wrapping_add(open.head), &[sge]);
            Ok(())
        });
    }

    fn set_sge_list(&mut self, list: &[ibv_sge]) {
        self.set(|sq, ring, open, at| {
            if list.len() > sq.max_sge as usize {
                return Err(Errno::ENOMEM);
            }
            open.data = put_sges(ring, at.wrapping_add(open.head), list);
            Ok(())
        });
    }

    #[inline(always)]
    fn set_inline_data(&mut self, data: &InlineData<'_>) {
        self.set(|sq, ring, open, at| {
            open.data = put_inline(ring, at.wrapping_add(open.head), sq.max_inline, data)?;
            open.inline = open.data != 0;
            Ok(())
        });
    }

    fn set_xrc_srqn(&mut self, remote_srqn: u32) {
        self.set(|sq, ring, _, at| {
            if sq.transport != transport::XRC {
                return Err(Errno::EINVAL);
            }
            ring.units.put(at.wrapping_add(1), wqe::xrc(remote_srqn));
            Ok(())
        });
    }

    fn refuse(&mut self, errno: Errno) {
        self.producer.failed.get_or_insert(errno);
    }

    #[inline]
    fn complete(&mut self) -> Result<(), Errno> {
        let (producer, ring) = (&mut self.producer, self.owner.send.as_ref());
        if let Some(errno) = producer.failed {
            producer.abort();
            // Before RTS nothing is taken, which stock tells of with another number here than in a post.
            return Err(if ring.is_none_or(|ring| ring.gate.limit() == 0) { Errno::EINVAL } else { errno });
        }
        let Some(ring) = ring else { return Ok(()) };
        producer.finish(ring);
        let count = producer.head.wrapping_sub(producer.saved.1);
        if count != 0 {
            let (at, ds, inline) = producer.last;
            producer.ring(ring, count, at, ds, inline);
        }
        Ok(())
    }

    fn abort(&mut self) {
        self.producer.abort();
    }
}
