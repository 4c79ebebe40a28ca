//! The `ibv_wr_*` functions. An operation writes all but its data, as of a WQE with one unit of them, which nearly all have: the setter of
//! such data has nothing to add to it. What has other data, or none, gets its length right once that is known: by the setter, the next
//! operation or `ibv_wr_complete`.
//!
//! Each function has a twin that does the usual, or says that it is not, calls nothing and so saves no registers: a work request
//! takes four of these functions, and saving six registers in each was a third of their instructions.

use super::ah::Ah;
use super::op::{self, Op, transport};
use super::ring::SendRing;
use super::send::{Producer, SendQueue, put_bind, put_datagram, put_inline, put_sges};
use super::uar::Short;
use super::wqe::{self, Bind};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, UserBytes};
use crate::error::Errno;
use crate::family::{SendBuilder, SendOp};
use crate::hw::dma::Block;

/// Work requests between `ibv_wr_start` and `ibv_wr_complete`.
#[derive(Debug)]
pub(super) struct Builder {
    /// Where the queue stood at start: `post`, `head`.
    saved: (u32, u32),
    /// What every WQE had then, where that may have changed since.
    common: Option<u64>,
    last: Last,
    /// Why nothing counts any more, in that state.
    failed: Errno,
}

/// The last WQE, in 8 bytes, which an operation writes by one store: every store of a post is one more that its doorbell's fence waits
/// for.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
struct Last {
    /// Its first block.
    at: u32,
    /// Units in front of the data; 0: there is no WQE.
    head: u8,
    /// Its length in units.
    ds: u8,
    inline: bool,
    state: State,
}

impl Last {
    /// There is none yet.
    const NONE: Last = Last { at: 0, head: 0, ds: 0, inline: false, state: State::Ended };
}

/// What may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// The last WQE is whole, or there is none.
    Ended,
    /// The last WQE has no data yet, and the length of one with a unit of them.
    Open,
    /// Nothing counts any more, by `failed`.
    Failed,
}

/// What an operation has of its own, of those without a bind.
struct Plain {
    /// `IBV_WR_*`.
    opcode: u32,
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
        let (opcode, imm, remote, operands) = match op {
            SendOp::Send => (IBV_WR_SEND, 0, None, None),
            SendOp::SendImm { imm_data } => (IBV_WR_SEND_WITH_IMM, imm_data, None, None),
            SendOp::SendInv { invalidate_rkey } => {
                (IBV_WR_SEND_WITH_INV, invalidate_rkey.to_be(), None, None)
            }
            SendOp::Write { rkey, remote_addr } => (IBV_WR_RDMA_WRITE, 0, Some((remote_addr, rkey)), None),
            SendOp::WriteImm { rkey, remote_addr, imm_data } => {
                (IBV_WR_RDMA_WRITE_WITH_IMM, imm_data, Some((remote_addr, rkey)), None)
            }
            SendOp::Read { rkey, remote_addr } => (IBV_WR_RDMA_READ, 0, Some((remote_addr, rkey)), None),
            SendOp::CmpSwp { rkey, remote_addr, compare, swap } => {
                let operands = wqe::atomic(swap, compare);
                (IBV_WR_ATOMIC_CMP_AND_SWP, 0, Some((remote_addr, rkey)), Some(operands))
            }
            SendOp::FetchAdd { rkey, remote_addr, add } => {
                (IBV_WR_ATOMIC_FETCH_AND_ADD, 0, Some((remote_addr, rkey)), Some(wqe::atomic(add, 0)))
            }
            _ => return None,
        };
        Some(Plain { opcode, imm, remote, operands })
    }
}

impl Builder {
    pub(super) const NEW: Builder =
        Builder { saved: (0, 0), common: None, last: Last::NONE, failed: Errno::EINVAL };

    /// The first error is the one that counts.
    fn fail(&mut self, errno: Errno) {
        if self.last.state != State::Failed {
            (self.failed, self.last.state) = (errno, State::Failed);
        }
    }
}

impl Producer {
    /// The last WQE ends at `ds` units.
    #[inline(always)]
    fn end(&mut self, ring: &SendRing, ds: u32, inline: bool) {
        let last = &mut self.builder.last;
        (last.state, last.inline, last.ds) = (State::Ended, inline, ds as u8);
        let next = last.at.wrapping_add(wqe::blocks(ds));
        let (block, slot) = (ring.blocks.block(last.at), ring.slot(last.at));
        block.put_wide(0, [wqe::ctrl_with(block.word(0), ds), block.word(1)]);
        slot.note_next(next as u16);
        self.post = next;
    }

    /// Ends the WQE that is open, if there is one: no setter of data came.
    fn end_open(&mut self, ring: &SendRing) {
        let Last { state, head, .. } = self.builder.last;
        if state == State::Open {
            self.end(ring, u32::from(head), false);
        }
    }

    /// What every WQE has may be about to change.
    fn keep_common(&mut self) {
        let common = self.common();
        self.builder.common.get_or_insert(common);
    }

    fn forget(&mut self) {
        (self.post, self.head) = self.builder.saved;
        if let Some(common) = self.builder.common.take() {
            self.set_common(common);
        }
        self.builder.last = Last::NONE;
    }

    /// Begins the WQE of `op` at `block`, whose own segments are up to unit `head`, and whose other half of the control segment is `flags`;
    /// there is room for it.
    #[inline(always)]
    fn begin(&mut self, ring: &SendRing, block: Block<'_>, wr_id: u64, op: Op, flags: u64, head: u32) {
        let (at, ds) = (self.post, head + 1);
        self.close_next((block, ring.slot(at)), wr_id, op, ds, flags);
        let (head, ds) = (head as u8, ds as u8);
        self.builder.last = Last { at, head, ds, inline: false, state: State::Open };
    }

    /// Begins the WQE of an operation of this kind; there is room for it.
    fn begin_plain(
        &mut self,
        ring: &SendRing,
        (wr_id, wr_flags): (u64, u32),
        Plain { opcode, imm, remote, operands }: Plain,
    ) {
        let (block, prefix) = (ring.blocks.at(self.post), self.prefix);
        if let Some((remote_addr, rkey)) = remote {
            block.put(prefix, wqe::raddr(remote_addr, rkey));
        }
        if let Some(operands) = operands {
            block.put(prefix + 1, operands);
        }
        let own = u32::from(remote.is_some()) + u32::from(operands.is_some());
        self.keep_common();
        let flags = self.flags(wr_flags, imm);
        self.begin(ring, block, wr_id, op::of(opcode), flags, prefix + own);
    }

    /// The same, of an operation of [`Producer::builds`].
    #[inline(always)]
    fn begin_usual(
        &mut self,
        ring: &SendRing,
        (wr_id, wr_flags): (u64, u32),
        Plain { opcode, imm, remote, operands }: Plain,
    ) {
        let block = ring.blocks.at(self.post);
        // At once, for which they take no more registers than there are to be had without saving any.
        if let Some((remote_addr, rkey)) = remote {
            block.put_wide(1, wqe::raddr(remote_addr, rkey));
        }
        if let Some(operands) = operands {
            block.put_wide(2, operands);
        }
        // One with a remote address is of a connected queue.
        let op = op::of(opcode);
        let head = if remote.is_none() { self.prefix } else { op.units() };
        let flags = self.usual_flags(wr_flags) | wqe::ctrl_imm(imm);
        self.begin(ring, block, wr_id, op, flags, head);
    }

    fn umr(&mut self, ring: &SendRing, (wr_id, wr_flags): (u64, u32), op: Op, key: u32, bind: &Bind) {
        // Behind the control segment alone: nothing of an XRC WQE but this.
        let count = put_bind(ring, wqe::unit(self.post, 1), bind);
        self.keep_common();
        let flags = self.flags(wr_flags, key.to_be());
        self.begin(ring, ring.blocks.at(self.post), wr_id, op, flags, 1 + count);
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
            put_datagram(ring.blocks.block(producer.builder.last.at), ah, remote_qpn, remote_qkey);
            Ok(())
        });
    }

    /// Runs a setter on the last WQE.
    #[inline(always)]
    fn set(&mut self, setter: impl FnOnce(&mut Producer, &SendRing) -> Result<(), Errno>) {
        let producer = &mut self.producer;
        if producer.builder.last.state == State::Failed {
            return;
        }
        let result = match &self.owner.send {
            Some(ring) if producer.builder.last.head != 0 => setter(producer, ring),
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
            // A second one counts in place of the first.
            let Last { at, head, .. } = producer.builder.last;
            let units = setter(producer, ring, wqe::unit(at, u32::from(head)))?;
            producer.end(ring, u32::from(head) + units, inline && units != 0);
            Ok(())
        });
    }

    /// The open WQE, for the setters of usual data: the queue, the WQE's place, and the unit of its data.
    #[inline(always)]
    fn open(&mut self) -> Option<(&mut Producer, &SendRing, u32, u32)> {
        let (producer, ring) = (&mut self.producer, self.owner.send.as_ref()?);
        let Last { at, head, state, .. } = producer.builder.last;
        (state == State::Open).then_some((producer, ring, at, u32::from(head)))
    }

    /// `ibv_wr_complete` of what is usual; of WQEs longer than a block, which take six registers more, only those of `LONG`.
    #[inline(always)]
    fn complete_own<const LONG: bool>(&mut self) -> bool {
        let producer = &self.producer;
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return false };
        let count = producer.head.wrapping_sub(producer.builder.saved.1);
        let Last { at, state, ds, inline, .. } = producer.builder.last;
        if state != State::Ended || count == 0 || producer.silent || producer.builder.common.is_some() {
            return false;
        }
        let burst = if count == 1 { producer.burst(u32::from(ds), inline) } else { 0 };
        if LONG {
            let Some(register) = register.enter() else { return false };
            register.ring_wide(&ring.record, producer.post, ring.blocks.view(), at, burst);
            return true;
        }
        let (record, post, block) = (&ring.record, producer.post, ring.blocks.block(at));
        let burst_all = burst <= wqe::UNITS_PER_BB;
        burst_all && register.ring_short(Short { record, post, block, burst: burst != 0 })
    }
}

impl SendBuilder for SendQueue {
    #[inline(always)]
    fn start(&mut self) {
        let producer = &mut self.producer;
        let saved = (producer.post, producer.head);
        (producer.builder.saved, producer.builder.last) = (saved, Last::NONE);
    }

    #[inline(always)]
    fn usual_operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) -> bool {
        let (producer, Some(ring)) = (&mut self.producer, &self.owner.send) else { return false };
        let Some(plain) = Plain::of(op) else { return false };
        let usual = producer.builder.last.state == State::Ended && producer.builds & 1 << plain.opcode != 0;
        if usual && producer.has_room(ring, producer.head, ring.gate.limit()) {
            producer.begin_usual(ring, (wr_id, wr_flags), plain);
            return true;
        }
        false
    }

    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        let producer = &mut self.producer;
        let Some(ring) = &self.owner.send else { return producer.builder.fail(Errno::EINVAL) };
        producer.end_open(ring);
        if producer.builder.last.state == State::Failed {
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
            Some((producer, ring, at, head)) if sge.length != 0 => {
                let data = wqe::data(sge.length, sge.lkey, sge.addr);
                ring.blocks.view().put_unit_wide(at, head, data);
                producer.builder.last.state = State::Ended;
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
        // No more than 12.
        let len = bytes.len() as u32;
        let Some(unit) = bytes.short_headed(wqe::inline_head(len)) else { return false };
        match self.open() {
            // 0 bytes are no segment.
            Some((producer, ring, at, head)) if len.wrapping_sub(1) < producer.max_inline => {
                ring.blocks.view().put_unit_wide(at, head, unit);
                (producer.builder.last.inline, producer.builder.last.state) = (true, State::Ended);
                true
            }
            _ => false,
        }
    }

    #[inline(always)]
    fn set_most_inline_data(&mut self, bytes: UserBytes<'_>) -> bool {
        let Some((producer, ring, at, head)) = self.open() else { return false };
        // 0 bytes are no segment.
        if bytes.len().wrapping_sub(1) >= producer.max_inline as usize {
            return false;
        }
        let (blocks, len) = (ring.blocks.view(), bytes.len() as u32);
        let (inline_head, ds) = (wqe::inline_head(len), head + wqe::inline_units(len));
        if !blocks.put_headed_wide(at, head, inline_head, bytes) {
            return false;
        }
        producer.end(ring, ds, true);
        true
    }

    fn set_inline_data(&mut self, data: &InlineData<'_>) {
        self.set_data(true, |producer, ring, unit| put_inline(ring, unit, producer.max_inline, data));
    }

    fn set_xrc_srqn(&mut self, remote_srqn: u32) {
        self.set(|producer, ring| {
            if producer.transport != transport::XRC {
                return Err(Errno::EINVAL);
            }
            ring.blocks.block(producer.builder.last.at).put(1, wqe::xrc(remote_srqn));
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
        if producer.builder.last.state == State::Failed {
            let errno = producer.builder.failed;
            producer.forget();
            // Before RTS nothing is taken, which stock tells of with another number here than in a post.
            let takes_none = |ring: &SendRing| ring.gate.limit() == 0 && !ring.gate.is_closed();
            return Err(if ring.is_none_or(takes_none) { Errno::EINVAL } else { errno });
        }
        let Some(ring) = ring else { return Ok(false) };
        producer.builder.common = None;
        producer.end_open(ring);
        let count = producer.head.wrapping_sub(producer.builder.saved.1);
        if count != 0 {
            let Last { at, ds, inline, .. } = producer.builder.last;
            let burst = if count == 1 { producer.burst(u32::from(ds), inline) } else { 0 };
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
