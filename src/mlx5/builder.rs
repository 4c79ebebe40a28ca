//! The `ibv_wr_*` functions. An operation writes what it has itself; its setter of data adds them and ends the WQE, since only then
//! the length is known. Where none follows, the next operation or `ibv_wr_complete` ends it.
//!
//! Each function has a twin that does the usual, or says that it is not, calls nothing and so saves no registers: a work request
//! takes four of these functions, and saving six registers in each was a third of their instructions.

use super::ah::Ah;
use super::op::{Op, transport};
use super::ring::{SendRing, Slot};
use super::send::{Producer, SendQueue, put_bind, put_datagram, put_inline, put_sges};
use super::uar::Short;
use super::wqe::{self, Bind};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, UserBytes};
use crate::error::Errno;
use crate::family::{SendBuilder, SendOp};
use crate::hw::dma::Block;

/// Work requests between `ibv_wr_start` and `ibv_wr_complete`.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// Where the queue stood at start: `post`, `head`, `common`.
    saved: (u32, u32, u64),
    state: State,
    /// The last WQE: its operation, its first block, its units in front of the data (0: there is no WQE), its length in units.
    op: Op,
    at: u32,
    head: u32,
    ds: u32,
    inline: bool,
    failed: Option<Errno>,
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// The last WQE is whole, or there is none.
    #[default]
    Ended,
    /// The last WQE is without the half of its control segment that has its length, which a setter will tell.
    Open,
    /// Nothing counts any more, by `failed`.
    Failed,
}

/// What an operation has of its own, of those without a bind.
struct Plain {
    op: Op,
    /// In network order.
    imm: u32,
    /// Address and key.
    remote: Option<(u64, u32)>,
    /// Of an atomic.
    operands: Option<wqe::Unit>,
}

impl Plain {
    #[inline(always)]
    fn of(op: SendOp) -> Option<Plain> {
        let (op, imm, remote, operands) = match op {
            SendOp::Send => (Op::SEND, 0, None, None),
            SendOp::SendImm { imm_data } => (Op::SEND_IMM, imm_data, None, None),
            SendOp::SendInv { invalidate_rkey } => (Op::SEND_INV, invalidate_rkey.to_be(), None, None),
            SendOp::Write { rkey, remote_addr } => (Op::WRITE, 0, Some((remote_addr, rkey)), None),
            SendOp::WriteImm { rkey, remote_addr, imm_data } => {
                (Op::WRITE_IMM, imm_data, Some((remote_addr, rkey)), None)
            }
            SendOp::Read { rkey, remote_addr } => (Op::READ, 0, Some((remote_addr, rkey)), None),
            SendOp::CmpSwp { rkey, remote_addr, compare, swap } => {
                (Op::CMP_SWP, 0, Some((remote_addr, rkey)), Some(wqe::atomic(swap, compare)))
            }
            SendOp::FetchAdd { rkey, remote_addr, add } => {
                (Op::FETCH_ADD, 0, Some((remote_addr, rkey)), Some(wqe::atomic(add, 0)))
            }
            _ => return None,
        };
        Some(Plain { op, imm, remote, operands })
    }
}

/// Where a WQE is: its first block, and what is noted of it.
type Place<'a> = (Block<'a>, &'a Slot);

impl Builder {
    fn fail(&mut self, errno: Errno) {
        self.failed.get_or_insert(errno);
        self.state = State::Failed;
    }
}

impl Producer {
    /// Ends the open WQE, of `ds` units.
    #[inline(always)]
    fn end(&mut self, (block, slot): Place<'_>, ds: u32, inline: bool) {
        self.close_next(block, slot, self.builder.op, ds);
        let builder = &mut self.builder;
        (builder.state, builder.ds, builder.inline) = (State::Ended, ds, inline);
    }

    /// A second setter of data: the last one counts.
    fn reopen(&mut self) {
        self.post = self.builder.at;
        self.head = self.head.wrapping_sub(1);
        self.builder.state = State::Open;
    }

    /// Ends the WQE that is open, if there is one: no setter of data came.
    fn end_open(&mut self, ring: &SendRing) {
        if self.builder.state == State::Open {
            self.end((ring.blocks.block(self.post), ring.slot(self.post)), self.builder.head, false);
        }
    }

    fn forget(&mut self) {
        let (post, head, common) = self.builder.saved;
        (self.post, self.head) = (post, head);
        self.set_common(common);
        (self.builder.state, self.builder.head) = (State::Ended, 0);
    }

    /// Begins the WQE of `op`, whose own segments are up to unit `head`; there is room for it.
    #[inline(always)]
    fn begin<'r>(
        &mut self,
        ring: &'r SendRing,
        (wr_id, wr_flags): (u64, u32),
        op: Op,
        imm: u32,
        head: u32,
    ) -> Block<'r> {
        let post = self.post;
        let block = ring.blocks.at(post);
        block.put_half::<1>(self.flags(wr_flags, imm));
        ring.slot(post).note_id(wr_id);
        let builder = &mut self.builder;
        (builder.state, builder.op, builder.at, builder.head) = (State::Open, op, post, head);
        block
    }

    /// Begins the WQE of an operation of this kind; there is room for it.
    fn begin_plain(&mut self, ring: &SendRing, wr: (u64, u32), Plain { op, imm, remote, operands }: Plain) {
        let prefix = self.prefix;
        let own = u32::from(remote.is_some()) + u32::from(operands.is_some());
        let block = self.begin(ring, wr, op, imm, prefix + own);
        if let Some((remote_addr, rkey)) = remote {
            block.put(prefix, wqe::raddr(remote_addr, rkey));
        }
        if let Some(operands) = operands {
            block.put(prefix + 1, operands);
        }
    }

    /// Begins the WQE of an operation of a connected QP, or one without a remote address. False: it is another.
    #[inline(always)]
    fn begin_usual(
        &mut self,
        ring: &SendRing,
        (wr_id, wr_flags): (u64, u32),
        Plain { op, imm, remote, operands }: Plain,
    ) -> bool {
        let post = self.post;
        let block = ring.blocks.at(post);
        let mut head = self.prefix;
        if let Some((remote_addr, rkey)) = remote {
            if head != 1 {
                return false;
            }
            head = 2;
            block.put(1, wqe::raddr(remote_addr, rkey));
        }
        if let Some(operands) = operands {
            head = 3;
            block.put(2, operands);
        }
        ring.slot(post).note_id(wr_id);
        block.put_half::<1>(self.usual_flags(wr_flags) | wqe::ctrl_imm(imm));
        let builder = &mut self.builder;
        (builder.state, builder.op, builder.at, builder.head) = (State::Open, op, post, head);
        true
    }

    fn umr(&mut self, ring: &SendRing, wr: (u64, u32), op: Op, key: u32, bind: &Bind) {
        // Behind the control segment alone: nothing of an XRC WQE but this.
        let count = put_bind(ring, wqe::unit(self.post, 1), bind);
        self.begin(ring, wr, op, key.to_be(), 1 + count);
        self.fence_next();
    }
}

impl SendQueue {
    /// `ibv_wr_set_ud_addr`.
    #[inline(always)]
    pub(super) fn set_ud_addr(&mut self, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        self.set(|producer, ring| {
            if producer.transport != transport::UD {
                return Err(Errno::EINVAL);
            }
            put_datagram(ring.blocks.block(producer.builder.at), ah, remote_qpn, remote_qkey);
            Ok(())
        });
    }

    /// Runs a setter on the last WQE.
    #[inline(always)]
    fn set(&mut self, setter: impl FnOnce(&mut Producer, &SendRing) -> Result<(), Errno>) {
        let producer = &mut self.producer;
        if producer.builder.state == State::Failed {
            return;
        }
        let result = match &self.owner.send {
            Some(ring) if producer.builder.head != 0 => setter(producer, ring),
            // A setter with nothing to set: the application forgot the operation.
            _ => Err(Errno::EINVAL),
        };
        if let Err(errno) = result {
            producer.builder.fail(errno);
        }
    }

    /// Runs a setter of data, which is given the unit of the data and says how many there are, and ends the WQE with them.
    fn set_data(
        &mut self,
        inline: bool,
        setter: impl FnOnce(&Producer, &SendRing, u32) -> Result<u32, Errno>,
    ) {
        self.set(|producer, ring| {
            if producer.builder.state != State::Open {
                producer.reopen();
            }
            let (post, head) = (producer.post, producer.builder.head);
            let units = setter(producer, ring, wqe::unit(post, head))?;
            let place = (ring.blocks.block(post), ring.slot(post));
            producer.end(place, head + units, inline && units != 0);
            Ok(())
        });
    }

    /// The open WQE, for the setters of usual data: the queue, the WQE's place, and the unit of its data.
    #[inline(always)]
    fn open(&mut self) -> Option<(&mut Producer, &SendRing, Place<'_>, u32)> {
        let (producer, ring) = (&mut self.producer, self.owner.send.as_ref()?);
        if producer.builder.state != State::Open {
            return None;
        }
        let (post, head) = (producer.post, producer.builder.head);
        Some((producer, ring, (ring.blocks.block(post), ring.slot(post)), head))
    }

    /// `ibv_wr_complete` of what is usual; of WQEs longer than a block, which take six registers more, only those of `LONG`.
    #[inline(always)]
    fn complete_own<const LONG: bool>(&mut self) -> bool {
        let producer = &self.producer;
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return false };
        let count = producer.head.wrapping_sub(producer.builder.saved.1);
        if producer.builder.state != State::Ended || count == 0 || producer.silent {
            return false;
        }
        let Builder { at, ds, inline, .. } = producer.builder;
        let burst = if count == 1 { producer.burst(ds, inline) } else { 0 };
        if LONG {
            let Some(register) = register.enter() else { return false };
            register.ring(&ring.record, producer.post, ring.blocks.view(), at, burst);
            return true;
        }
        let (record, post, block) = (&ring.record, producer.post, ring.blocks.at(at));
        let burst_all = burst <= wqe::UNITS_PER_BB;
        burst_all && register.ring_short(Short { record, post, block, burst: burst != 0, wide: false })
    }
}

impl SendBuilder for SendQueue {
    #[inline(always)]
    fn start(&mut self) {
        let producer = &mut self.producer;
        let saved = (producer.post, producer.head, producer.common());
        let builder = &mut producer.builder;
        builder.saved = saved;
        (builder.state, builder.head, builder.failed) = (State::Ended, 0, None);
    }

    #[inline(always)]
    fn usual_operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) -> bool {
        let (producer, Some(ring)) = (&mut self.producer, &self.owner.send) else { return false };
        if producer.builder.state != State::Ended || !producer.has_usual_room(ring) {
            return false;
        }
        Plain::of(op).is_some_and(|plain| producer.begin_usual(ring, (wr_id, wr_flags), plain))
    }

    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        let producer = &mut self.producer;
        let Some(ring) = &self.owner.send else { return producer.builder.fail(Errno::EINVAL) };
        producer.end_open(ring);
        if producer.builder.state == State::Failed {
            return;
        }
        if !producer.room(ring) {
            return producer.builder.fail(Errno::ENOMEM);
        }
        let wr = (wr_id, wr_flags);
        match op {
            SendOp::LocalInv { invalidate_rkey } => {
                producer.umr(ring, wr, Op::LOCAL_INV, invalidate_rkey, &Bind::INVALIDATE);
            }
            SendOp::BindMw { mw_rkey, rkey, addr, length, mr_lkey, access } if length <= wqe::BIND_MAX => {
                // Type 1 windows are bound by ibv_bind_mw only.
                let qpn = producer.qpn_ds >> 8;
                let bind = Bind { type_2: true, rkey, qpn, addr, length, lkey: mr_lkey, access };
                producer.umr(ring, wr, Op::BIND_MW, mw_rkey, &bind);
            }
            op => match Plain::of(op) {
                Some(plain) => producer.begin_plain(ring, wr, plain),
                // A window too long, and what is never given out by `builders`.
                None => producer.builder.fail(Errno::EOPNOTSUPP),
            },
        }
    }

    #[inline(always)]
    fn set_usual_sge(&mut self, sge: ibv_sge) -> bool {
        match self.open() {
            Some((producer, ring, place, head)) if sge.length != 0 => {
                let at = wqe::unit(producer.post, head);
                ring.blocks.units().put(at, wqe::data(sge.length, sge.lkey, sge.addr));
                producer.end(place, head + 1, false);
                true
            }
            _ => false,
        }
    }

    fn set_sge(&mut self, sge: ibv_sge) {
        self.set_data(false, |_, ring, unit| Ok(put_sges(ring, unit, &[sge])));
    }

    fn set_sge_list(&mut self, list: &[ibv_sge]) {
        self.set_data(false, |producer, ring, unit| {
            if list.len() > producer.max_sge as usize {
                return Err(Errno::ENOMEM);
            }
            Ok(put_sges(ring, unit, list))
        });
    }

    #[inline(always)]
    fn set_usual_inline_data(&mut self, bytes: UserBytes<'_>) -> bool {
        match self.open() {
            // 0 bytes are no segment.
            Some((producer, ring, place, head))
                if bytes.len().wrapping_sub(1) < producer.max_inline as usize =>
            {
                let (at, len) = (wqe::unit(producer.post, head), bytes.len() as u32);
                if !ring.blocks.units().put_headed_straight(at, wqe::inline_head(len), bytes) {
                    return false;
                }
                producer.end(place, head + wqe::inline_units(len), true);
                true
            }
            _ => false,
        }
    }

    fn set_inline_data(&mut self, data: &InlineData<'_>) {
        self.set_data(true, |producer, ring, unit| put_inline(ring, unit, producer.max_inline, data));
    }

    fn set_xrc_srqn(&mut self, remote_srqn: u32) {
        self.set(|producer, ring| {
            if producer.transport != transport::XRC {
                return Err(Errno::EINVAL);
            }
            ring.blocks.block(producer.builder.at).put(1, wqe::xrc(remote_srqn));
            Ok(())
        });
    }

    fn refuse(&mut self, errno: Errno) {
        self.producer.builder.fail(errno);
    }

    #[inline(always)]
    fn complete_usual(&mut self) -> bool {
        self.complete_own::<false>()
    }

    #[inline(always)]
    fn complete_most(&mut self) -> bool {
        self.complete_own::<true>()
    }

    fn complete(&mut self) -> Result<bool, Errno> {
        let (producer, ring) = (&mut self.producer, self.owner.send.as_ref());
        if let Some(errno) = producer.builder.failed {
            producer.forget();
            // Before RTS nothing is taken, which stock tells of with another number here than in a post.
            let takes_none = |ring: &SendRing| ring.gate.limit() == 0 && !ring.gate.is_closed();
            return Err(if ring.is_none_or(takes_none) { Errno::EINVAL } else { errno });
        }
        let Some(ring) = ring else { return Ok(false) };
        producer.end_open(ring);
        let count = producer.head.wrapping_sub(producer.builder.saved.1);
        if count != 0 {
            let Builder { at, ds, inline, .. } = producer.builder;
            let burst = if count == 1 { producer.burst(ds, inline) } else { 0 };
            producer.ring(ring, self.register.as_deref(), at, burst);
        }
        Ok(false)
    }

    fn tell(&mut self, last: u32, burst: u32) {
        SendQueue::tell(self, last, burst);
    }

    fn abort(&mut self) {
        self.producer.forget();
    }
}
