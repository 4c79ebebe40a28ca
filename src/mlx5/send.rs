//! Send queues: work requests become WQEs, built once in place, and a list of them rings one doorbell.
//!
//! `post` is compiled for connected QPs, for UD and for XRC, so that what a WQE of that transport does not have costs nothing; what
//! an operation is stands in a table ([`super::op`]). The common operations with one entry of data are written in line, everything
//! else is called. A WQE's control segment, which holds its length, is written when its other segments are there.

use std::sync::Arc;

use super::ah::Ah;
use super::builder::Builder;
use super::op::{self, Form, Op, Ops, ops_of, transport};
use super::ring::{FIRST, Meta, Owner, Place, Rows, SendRing, Slot};
use super::uar::{Back, Entered, Register, Short, Use};
use super::wqe::{self, Bind};
use crate::abi::public::*;
use crate::abi::wr::{Atomic, InlineData, Rdma, SendWr, SendWrs, UserBytes};
use crate::error::Errno;
use crate::family::{Objects, Posted, Refused, Single};
use crate::hw::dma::Block;

/// The producer's side of a send queue.
#[derive(Debug)]
pub struct SendQueue {
    pub(super) owner: Arc<Owner>,
    pub(super) producer: Producer,
    /// Where its doorbell is; none where nothing is sent.
    pub(super) register: Option<Arc<Register>>,
    /// Keeps the register ours.
    _back: Option<Arc<Back>>,
}

/// Where posting stands, and what every WQE of the queue has.
#[derive(Debug)]
pub(super) struct Producer {
    /// The next free block.
    pub(super) post: u32,
    /// Work requests posted.
    pub(super) head: u32,
    /// The half of the control segment that has the flags, for each combination of those of [`wqe::SEND_FLAGS`]: one load in place of
    /// three tests, and what is the same for every WQE (all of them complete, whatever their flags) is in it. In the lowest byte, which
    /// is 0 there, is what the next WQE alone has to wait for: the bind or invalidation before it.
    flags: [u64; 8],
    /// Work requests that completed, when it was last looked up.
    pub(super) tail: u32,
    /// The QP's number, where the control segment has it.
    pub(super) qpn_ds: u32,
    pub(super) max_sge: u32,
    pub(super) max_inline: u32,
    /// The same, but no more than fits into a unit.
    pub(super) max_short_inline: u32,
    /// Units of the longest WQE that BlueFlame takes: without inline data, and with. 0: none.
    max_burst: [u32; 2],
    pub(super) transport: u8,
    /// Units in front of an operation's own segments.
    pub(super) prefix: u32,
    atomics: bool,
    ops: &'static Ops,
    /// Those that [`Producer::build`] knows: none where the queue takes no data, nor as long as the next WQE alone has to wait.
    usual_ops: &'static Ops,
    /// The same, as a bit for each `IBV_WR_*`, for [`Producer::post_single`]: none but on connected queues.
    singles: u16,
    /// The same, of those that the `ibv_wr_*` functions know: on connected queues, and for UD.
    pub(super) builds: u16,
    /// Work requests that a queue takes whose gate is closed.
    max_post: u32,
    /// The gate is closed: the device is told nothing any more.
    pub(super) silent: bool,
    /// What the `ibv_wr_*` functions are building.
    pub(super) builder: Builder,
}

/// How far a list was built.
#[derive(Debug, Clone)]
struct At<'a> {
    /// What is left of it.
    wrs: SendWrs<'a>,
    post: u32,
    head: u32,
    /// Work requests that there is room for, as far as was looked.
    room: u32,
}

/// The byte of [`Producer::flags`] that is for one WQE.
const PENDING: u64 = 0xff;
const _: () = assert!(wqe::ctrl_flags(0xff) & PENDING == 0, "the byte is free");

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

/// Immediate data or a key to invalidate, in network order, of operations that have it.
#[inline(always)]
fn imm(op: Op, wr: SendWr<'_>) -> u32 {
    if !op.has(Form::IMM.union(Form::KEY)) {
        0
    } else if op.has(Form::KEY) {
        wr.invalidate_rkey().to_be()
    } else {
        wr.imm_data()
    }
}

/// The operands of an atomic.
#[inline(always)]
fn atomic_operands(op: Op, atomic: Atomic) -> wqe::Unit {
    if op.code() == wqe::opcode::ATOMIC_CS {
        wqe::atomic(atomic.swap, atomic.compare_add)
    } else {
        wqe::atomic(atomic.compare_add, 0)
    }
}

/// Inline data from `unit` on: how many units.
pub(super) fn put_inline(
    ring: &SendRing,
    unit: u32,
    limit: u32,
    data: &InlineData<'_>,
) -> Result<u32, Errno> {
    let len = data.len();
    if len > limit as usize {
        return Err(Errno::ENOMEM);
    }
    if len == 0 {
        return Ok(0);
    }
    // Within the limit, and so within 32 bits.
    let (units, len) = (ring.blocks.units(), len as u32);
    match data.only() {
        Some(bytes) => units.put_headed(unit, wqe::inline_head(len), bytes),
        None => {
            units.put_headed(unit, wqe::inline_head(len), UserBytes::from_slice(&[]));
            let mut byte = unit.wrapping_mul(16).wrapping_add(4);
            for piece in data.pieces() {
                units.put_user(byte, piece);
                byte = byte.wrapping_add(piece.len() as u32);
            }
        }
    }
    Ok(wqe::inline_units(len))
}

/// Data segments from `unit` on, of those entries that have a length; a data segment of 0 bytes would be one of 2 GiB.
pub(super) fn put_sges(ring: &SendRing, unit: u32, sges: &[ibv_sge]) -> u32 {
    let mut count = 0;
    for sge in sges.iter().filter(|sge| sge.length != 0) {
        ring.blocks.view().put_unit_wide(
            0,
            unit.wrapping_add(count),
            wqe::data(sge.length, sge.lkey, sge.addr),
        );
        count += 1;
    }
    count
}

/// The UMR segments of a bind; how many units.
pub(super) fn put_bind(ring: &SendRing, unit: u32, bind: &Bind) -> u32 {
    let (segments, count) = bind.units();
    for (next, segment) in (0..count).zip(segments) {
        ring.blocks.units().put(unit.wrapping_add(next), segment);
    }
    count
}

/// The datagram segment, behind the control segment.
#[inline(always)]
pub(super) fn put_datagram(block: Block<'_>, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
    let [address, rest, gid] = wqe::datagram(&ah.units, remote_qpn, remote_qkey);
    block.put(1, address);
    block.put(2, rest);
    block.put(3, gid);
}

/// The data of a work request that looks like one for [`SendQueue::post_single`]: as far as nothing but itself tells, and with a form
/// of data that costs no look at the entry where there is no inline data.
#[inline(always)]
pub(super) fn single(wr: SendWr<'_>) -> Option<Single<'_>> {
    let Some(sge) = wr.only_sge() else {
        return wr.two_sges().filter(|_| wr.send_flags() & IBV_SEND_INLINE == 0).map(Single::Entries);
    };
    Some(match wr.inline_piece(sge) {
        None => Single::Entry(sge),
        Some(piece) if piece.len() <= wqe::INLINE_IN_UNIT as usize => Single::Inline(piece),
        Some(piece) => Single::Long(piece),
    })
}

/// Units in front of the operation's own segments.
pub(super) const fn prefix(transport: u8) -> u32 {
    match transport {
        transport::UD => 4,
        transport::XRC => 2,
        _ => 1,
    }
}

impl Producer {
    fn new(shape: Shape, max_burst: u32) -> Producer {
        let mut producer = Producer {
            post: 0,
            head: FIRST,
            flags: [0; 8],
            tail: FIRST,
            transport: shape.transport,
            prefix: prefix(shape.transport),
            atomics: shape.atomics,
            ops: ops_of(shape.transport),
            usual_ops: &op::NO_OPS,
            singles: 0,
            builds: 0,
            qpn_ds: shape.qpn << 8,
            max_sge: shape.max_sge,
            max_inline: shape.max_inline,
            max_short_inline: shape.max_inline.min(wqe::INLINE_IN_UNIT),
            max_burst: [if shape.prefer_bf { max_burst } else { 0 }, max_burst],
            max_post: shape.max_post,
            silent: false,
            builder: Builder::NEW,
        };
        producer.set_common(if shape.sq_sig_all { wqe::ctrl_flags(wqe::CTRL_CQ_UPDATE) } else { 0 });
        producer
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.post, self.head, self.tail) = (0, FIRST, FIRST);
        self.set_common(self.common() & !PENDING);
        self.builder = Builder::NEW;
    }

    /// What every WQE has, and what the next one alone.
    #[inline(always)]
    pub(super) fn common(&self) -> u64 {
        let [common, ..] = self.flags;
        common
    }

    /// What every WQE has from now on, and what the next one alone.
    pub(super) fn set_common(&mut self, common: u64) {
        self.flags = wqe::SEND_FLAGS.map(|flags| common | flags);
        self.usual_ops = if self.max_sge == 0 || common & PENDING != 0 { &op::NO_OPS } else { self.ops };
        let without = if self.atomics { Form::empty() } else { Form::ATOMIC };
        let usual = op::set_of(self.usual_ops, without);
        self.singles = if self.transport > transport::UC { 0 } else { usual };
        self.builds = if self.transport == transport::XRC { 0 } else { usual };
    }

    /// Whether a further work request may be posted. The limit is 0 where none may: it closes the queue.
    #[inline(always)]
    pub(super) fn room(&mut self, ring: &SendRing) -> bool {
        let limit = ring.gate.limit();
        self.head.wrapping_sub(self.tail) < limit || self.look(ring, limit)
    }

    /// Looks how much room there really is. Behind a closed gate posts are kept, and the device is not told.
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
        self.silent = true;
        outstanding < self.max_post
    }

    /// The half of the control segment that has the flags; `imm` in network order. No WQE after this one waits for what this one
    /// waits for.
    #[inline(always)]
    pub(super) fn flags(&mut self, send_flags: u32, imm: u32) -> u64 {
        let flags =
            if self.common() & PENDING == 0 { self.usual_flags(send_flags) } else { self.fenced(send_flags) };
        flags | wqe::ctrl_imm(imm)
    }

    /// The same, without `imm`, of a WQE that waits for nothing.
    #[inline(always)]
    pub(super) fn usual_flags(&self, send_flags: u32) -> u64 {
        const { assert!(IBV_SEND_FENCE == 1 && IBV_SEND_SIGNALED == 2 && IBV_SEND_SOLICITED == 4) };
        self.flags.get((send_flags & 7) as usize).copied().unwrap_or_default()
    }

    /// The flags of the WQE behind a bind or an invalidation: it waits for that, unless it waits for all before it anyway.
    #[cold]
    fn fenced(&mut self, send_flags: u32) -> u64 {
        let fence = (self.common() & PENDING) as u8;
        self.set_common(self.common() & !PENDING);
        self.usual_flags(send_flags)
            | wqe::ctrl_flags(if send_flags & IBV_SEND_FENCE == 0 { fence } else { 0 })
    }

    /// The next WQE waits for the one just built.
    pub(super) fn fence_next(&mut self) {
        self.set_common(self.common() | u64::from(wqe::CTRL_INITIATOR_SMALL_FENCE));
    }

    /// Ends the WQE of `ds` units, number `head`, at `post`, whose block and slot these are: the half of the control segment that has
    /// its length, and what is noted of it. Where the next one begins.
    #[inline(always)]
    fn close(&self, post: u32, head: u32, block: Block<'_>, slot: &Slot, op: Op, ds: u32) -> u32 {
        block.put_half::<0>(wqe::ctrl_place(op.code(), post as u16, self.qpn_ds | ds));
        let next = post.wrapping_add(wqe::blocks(ds));
        slot.note(Meta { head, next: next as u16, noted: op.noted() });
        next
    }

    /// Writes the control segment of the queue's next WQE, of `ds` units, whose block and slot these are, by one store, and what is noted of
    /// it; its half with the flags is `flags`. It is posted: the block behind it.
    #[inline(always)]
    pub(super) fn close_next(
        &mut self,
        (block, slot): (Block<'_>, &Slot),
        wr_id: u64,
        op: Op,
        ds: u32,
        flags: u64,
    ) -> u32 {
        let (post, head) = (self.post, self.head);
        block.put_wide(0, [wqe::ctrl_place(op.code(), post as u16, self.qpn_ds | ds), flags]);
        let next = post.wrapping_add(wqe::blocks(ds));
        (self.post, self.head) = (next, head.wrapping_add(1));
        slot.note_id(wr_id);
        slot.note(Meta { head, next: next as u16, noted: op.noted() });
        next
    }

    /// Units of the only WQE of a list that BlueFlame shall have; 0: the doorbell alone.
    #[inline(always)]
    pub(super) fn burst(&self, ds: u32, inline: bool) -> u32 {
        let [without, with] = self.max_burst;
        if ds > 1 && ds <= if inline { with } else { without } { ds } else { 0 }
    }

    /// Lets the device see everything up to `post`, or keeps it. `at` is where the last WQE is, `burst` as [`Producer::burst`] has it.
    #[inline(always)]
    pub(super) fn ring(&self, ring: &SendRing, register: Option<&Register>, at: u32, burst: u32) {
        let told = !self.silent
            && register.is_some_and(|register| {
                register.ring(&ring.record, self.post, ring.blocks.view(), at, burst)
            });
        if !told {
            ring.keep(self.post);
        }
    }

    /// Builds the WQE of one work request, at block `post`, as number `head`: its length in units, and where the next one begins.
    /// `None` where it is of no usual kind; then nothing was done that counts, and it is for [`Producer::build_other`]. Usual are all but
    /// binds, invalidations and what waits for one of these.
    ///
    /// How far the queue is comes by value, and its change is the caller's: a list has both in registers until its end.
    #[inline(always)]
    fn build<'a, 'r, const T: u8>(
        &self,
        rows: impl Place<'r>,
        wr: SendWr<'a>,
        (post, head): (u32, u32),
        objects: impl Objects<'a, Ah>,
    ) -> Option<(u32, u32)> {
        let op = self.usual_ops.get(wr.opcode() as usize).copied().unwrap_or_default();
        if op.has(Form::UMR.union(Form::NONE)) {
            return None;
        }
        let inlined = wr.send_flags() & IBV_SEND_INLINE != 0;
        let only = wr.only_sge().filter(|sge| sge.length != 0);
        let piece = only.and_then(|sge| wr.inline_piece(sge));
        let is_short = |piece: UserBytes<'_>| piece.len() <= self.max_short_inline as usize;
        let block = rows.block(post);
        let mut ds = prefix(T);
        if T == transport::UD {
            let ud = wr.ud();
            put_datagram(block, objects.ah(ud.ah)?, ud.remote_qpn, ud.remote_qkey);
        }
        if T == transport::XRC {
            block.put(1, wqe::xrc(wr.remote_srqn()));
        }
        if T == transport::RC && op.has(Form::ATOMIC) {
            // Whatever the length of the entry: an atomic gives 8 bytes.
            let sge = only.filter(|_| self.atomics)?;
            let atomic = wr.atomic();
            block.put(1, wqe::raddr(atomic.remote_addr, atomic.rkey));
            block.put(2, atomic_operands(op, atomic));
            block.put(3, wqe::data(8, sge.lkey, sge.addr));
            ds = 4;
        } else {
            if T != transport::UD && op.has(Form::REMOTE) {
                if T != transport::RC && op.has(Form::ATOMIC) {
                    return None;
                }
                let Rdma { remote_addr, rkey } = wr.rdma();
                block.put(ds, wqe::raddr(remote_addr, rkey));
                ds += 1;
            }
            // The first unit behind the datagram segment is in the next block.
            let (data, at) =
                if T == transport::UD { (rows.block(post.wrapping_add(1)), 0) } else { (block, ds) };
            match (only, piece) {
                (Some(sge), None) => {
                    data.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
                    ds += 1;
                }
                (_, Some(piece)) if is_short(piece) => {
                    // Of 32 bits: that of an entry.
                    data.put_headed(at, wqe::inline_head(piece.len() as u32), piece);
                    ds += 1;
                }
                (_, Some(piece)) => {
                    let len = piece.len() as u32;
                    if len > self.max_inline
                        || !rows.blocks().put_headed_straight(post, ds, wqe::inline_head(len), piece)
                    {
                        return None;
                    }
                    ds += wqe::inline_units(len);
                }
                _ => {
                    let sges = wr.sges().ok()?;
                    if inlined || sges.len() > self.max_sge as usize {
                        return None;
                    }
                    for sge in sges.iter().filter(|sge| sge.length != 0) {
                        rows.blocks().put_unit(post, ds, wqe::data(sge.length, sge.lkey, sge.addr));
                        ds += 1;
                    }
                }
            }
        }
        block.put_half::<1>(self.usual_flags(wr.send_flags()) | wqe::ctrl_imm(imm(op, wr)));
        let slot = rows.slot(post);
        slot.note_id(wr.wr_id());
        Some((ds, self.close(post, head, block, slot, op, ds)))
    }

    /// Builds the WQE of one work request, whatever it is.
    #[inline(never)]
    fn build_other<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wr: SendWr<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<u32, Errno> {
        let op = self.ops.get(wr.opcode() as usize).copied().unwrap_or_default();
        let sges = wr.sges()?;
        if op.has(Form::NONE) {
            return Err(Errno::EINVAL);
        }
        if sges.len() > self.max_sge as usize {
            return Err(Errno::ENOMEM);
        }
        let (post, units) = (self.post, ring.blocks.units());
        let (block, slot) = (ring.blocks.at(post), ring.slot(post));
        let (mut ds, mut imm) = (prefix(T), imm(op, wr));
        if T == transport::UD {
            let ud = wr.ud();
            let ah = objects.ah(ud.ah).ok_or(Errno::EINVAL)?;
            put_datagram(block, ah, ud.remote_qpn, ud.remote_qkey);
        }
        if op.has(Form::UMR) {
            let (key, bind) = self.bind_of(wr, objects)?;
            imm = key.to_be();
            // Behind the control segment alone: nothing of an XRC WQE but this.
            ds = 1 + put_bind(ring, wqe::unit(post, 1), &bind);
        } else if T == transport::XRC {
            block.put(1, wqe::xrc(wr.remote_srqn()));
        }
        if op.has(Form::ATOMIC) {
            if !self.atomics {
                return Err(Errno::EOPNOTSUPP);
            }
            let atomic = wr.atomic();
            units.put(wqe::unit(post, ds), wqe::raddr(atomic.remote_addr, atomic.rkey));
            units.put(wqe::unit(post, ds + 1), atomic_operands(op, atomic));
            ds += 2;
            // Whatever the length of an entry: an atomic gives 8 bytes.
            for sge in sges.iter().filter(|sge| sge.length != 0) {
                units.put(wqe::unit(post, ds), wqe::data(8, sge.lkey, sge.addr));
                ds += 1;
            }
        } else {
            if op.has(Form::REMOTE) {
                let Rdma { remote_addr, rkey } = wr.rdma();
                units.put(wqe::unit(post, ds), wqe::raddr(remote_addr, rkey));
                ds += 1;
            }
            let unit = wqe::unit(post, ds);
            ds += match wr.inline_data()? {
                Some(data) => put_inline(ring, unit, self.max_inline, &data)?,
                None => put_sges(ring, unit, sges),
            };
        }
        let flags = self.flags(wr.send_flags(), imm);
        if op.has(Form::UMR) {
            self.fence_next();
        }
        self.close_next((block, slot), wr.wr_id(), op, ds, flags);
        Ok(ds)
    }

    /// The key that is acted on, and what is done to it.
    fn bind_of<'a>(&self, wr: SendWr<'a>, objects: impl Objects<'a, Ah>) -> Result<(u32, Bind), Errno> {
        if wr.opcode() == IBV_WR_LOCAL_INV {
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
            qpn: self.qpn_ds >> 8,
            addr: info.addr,
            length: info.length,
            lkey,
            access: info.mw_access_flags,
        };
        Ok((rkey, bind))
    }

    /// Whether a further work request may be posted behind the `head` so far, as far as a look tells that calls nothing.
    #[inline(always)]
    pub(super) fn has_room(&mut self, ring: &SendRing, head: u32, limit: u32) -> bool {
        if head.wrapping_sub(self.tail) >= limit {
            self.tail = ring.tail();
        }
        head.wrapping_sub(self.tail) < limit
    }

    /// Posts one work request `OPCODE`, of a connected queue, whose data are `single`. Otherwise, and where there seems to be no room,
    /// nothing was done.
    ///
    /// All that the operation decides is decided at compile time, so that what there is to write is a straight line: to look the
    /// operation up and ask for each part of it was 50 of 215 instructions.
    #[inline(always)]
    fn post_single<const OPCODE: u32>(
        &mut self,
        ring: &SendRing,
        register: &Register,
        wr: SendWr<'_>,
        single: Single<'_>,
    ) -> Posted {
        let op = const { op::of(OPCODE) };
        let post = self.post;
        if !self.takes_single(ring, OPCODE) {
            return Posted::Not;
        }
        let (block, at) = (ring.blocks.at(post), op.units());
        let mut ds = at + 1;
        let inline = match single {
            Single::Entries([first, second])
                if first.length != 0 && second.length != 0 && self.max_sge > 1 && !op.has(Form::ATOMIC) =>
            {
                block.put_wide(at, wqe::data(first.length, first.lkey, first.addr));
                block.put_wide(at + 1, wqe::data(second.length, second.lkey, second.addr));
                ds = at + 2;
                false
            }
            Single::Entry(sge) if sge.length != 0 => {
                // Whatever the length of the entry: an atomic gives 8 bytes.
                let length = if op.has(Form::ATOMIC) { 8 } else { sge.length };
                block.put_wide(at, wqe::data(length, sge.lkey, sge.addr));
                false
            }
            // Of 32 bits: that of an entry.
            Single::Inline(piece) if piece.len().wrapping_sub(1) < self.max_inline as usize => {
                let Some(unit) = piece.short_headed(wqe::inline_head(piece.len() as u32)) else {
                    return Posted::Not;
                };
                block.put_wide(at, unit);
                true
            }
            Single::Long(piece) if piece.len().wrapping_sub(1) < self.max_inline as usize => {
                let (blocks, len) = (ring.blocks.view(), piece.len() as u32);
                if !blocks.put_headed_wide(post, at, wqe::inline_head(len), piece) {
                    return Posted::Not;
                }
                let ds = at + wqe::inline_units(len);
                let next = self.end_single(ring, block, wr, op, ds);
                let burst = self.burst(ds, true);
                return match register.enter() {
                    Some(register) => {
                        register.ring_wide(&ring.record, next, blocks, post, burst);
                        Posted::Told
                    }
                    None => Posted::Untold { last: post, burst },
                };
            }
            _ => return Posted::Not,
        };
        let next = self.end_single(ring, block, wr, op, ds);
        let burst = self.burst(ds, inline);
        if register.ring_short(Short { record: &ring.record, post: next, block, burst: burst != 0 }) {
            Posted::Told
        } else {
            Posted::Untold { last: post, burst }
        }
    }

    /// Whether [`Producer::post_single`] may post one more, of `opcode`: not behind a closed gate, whose limit is 0.
    #[inline(always)]
    fn takes_single(&self, ring: &SendRing, opcode: u32) -> bool {
        self.singles & 1 << opcode != 0 && self.head.wrapping_sub(self.tail) < ring.gate.limit()
    }

    /// Writes all of the queue's next WQE but its data, which end it at `ds` units, by whole units; it is posted. The block behind it.
    #[inline(always)]
    fn end_single(&mut self, ring: &SendRing, block: Block<'_>, wr: SendWr<'_>, op: Op, ds: u32) -> u32 {
        let post = self.post;
        if op.has(Form::ATOMIC) {
            let atomic = wr.atomic();
            block.put_wide(1, wqe::raddr(atomic.remote_addr, atomic.rkey));
            block.put_wide(2, atomic_operands(op, atomic));
        } else if op.has(Form::REMOTE) {
            let Rdma { remote_addr, rkey } = wr.rdma();
            block.put_wide(1, wqe::raddr(remote_addr, rkey));
        }
        let imm = if op.has(Form::IMM) { wr.imm_data() } else { 0 };
        let flags = self.usual_flags(wr.send_flags()) | wqe::ctrl_imm(imm);
        self.close_next((block, ring.slot(post)), wr.wr_id(), op, ds, flags)
    }

    /// Posts one work request, of any kind that takes no call. Otherwise, and where there is no room, nothing was done.
    ///
    /// The right to ring is only asked for at the end: what it is made of would take two registers from all that comes before.
    #[inline(always)]
    fn post_one<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        register: &Register,
        wr: SendWr<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Posted {
        let (post, head, limit) = (self.post, self.head, ring.gate.limit());
        // Not behind a closed gate, whose limit is 0.
        if !self.has_room(ring, head, limit) {
            return Posted::Not;
        }
        let Some((ds, next)) = self.build::<T>(ring, wr, (post, head), objects) else {
            return Posted::Not;
        };
        (self.post, self.head) = (next, head.wrapping_add(1));
        let burst = self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0);
        match register.enter() {
            Some(register) => {
                register.ring(&ring.record, next, ring.blocks.view(), post, burst);
                Posted::Told
            }
            None => Posted::Untold { last: post, burst },
        }
    }

    /// Posts a list of more than one work request, of a connected queue, all with one entry or one unit of inline data, and none of them
    /// an atomic. False, and what it does, as [`Producer::post_list`].
    ///
    /// A list is made of runs of the same kind, mostly of one: each kind has a loop of its own, as in a poll, 20 instructions a work
    /// request less than what looks each of them up.
    #[inline(always)]
    fn post_plain_list(&mut self, ring: &SendRing, register: &Entered<'_>, wrs: SendWrs<'_>) -> bool {
        let (rows, limit) = (ring.rows(), ring.gate.limit());
        let mut at = At { wrs, post: self.post, head: self.head, room: 0 };
        while let Some(wr) = at.wrs.first() {
            if at.room == 0 {
                if !self.has_room(ring, at.head, limit) {
                    return false;
                }
                at.room = limit.wrapping_sub(at.head.wrapping_sub(self.tail));
            }
            let before = at.head;
            at = match (wr.opcode(), wr.send_flags() & IBV_SEND_INLINE != 0) {
                (IBV_WR_RDMA_WRITE, false) => self.build_run::<IBV_WR_RDMA_WRITE, false>(rows, at),
                (IBV_WR_RDMA_WRITE, true) => self.build_run::<IBV_WR_RDMA_WRITE, true>(rows, at),
                (IBV_WR_SEND, false) => self.build_run::<IBV_WR_SEND, false>(rows, at),
                (IBV_WR_SEND, true) => self.build_run::<IBV_WR_SEND, true>(rows, at),
                (IBV_WR_RDMA_READ, false) => self.build_run::<IBV_WR_RDMA_READ, false>(rows, at),
                _ => at,
            };
            if at.head == before {
                let Some(next) = self.build_plain(rows, wr, (at.post, at.head)) else { return false };
                at = At { wrs: wr.rest(), post: next, head: at.head.wrapping_add(1), room: at.room - 1 };
            }
        }
        (self.post, self.head) = (at.post, at.head);
        register.ring(&ring.record, at.post, rows.blocks, at.post.wrapping_sub(1), 0);
        true
    }

    /// Builds the WQEs of work requests from `at` on, as long as they are `OPCODE`, have one entry with a length, `INLINE` or not, and
    /// there is room: where that ends. It writes units whole, though nobody reads them back: 6 stores in place of 8 are 1 cycle of 18,
    /// for 4 instructions more.
    #[inline(always)]
    fn build_run<'a, const OPCODE: u32, const INLINE: bool>(&self, rows: Rows<'_>, mut at: At<'a>) -> At<'a> {
        let op = const { op::of(OPCODE) };
        if self.singles & 1 << OPCODE == 0 {
            return at;
        }
        while let Some(wr) = at.wrs.first() {
            if at.room == 0 || wr.opcode() != OPCODE {
                break;
            }
            let Some(sge) = wr.only_sge() else { break };
            let block = rows.block(at.post);
            match wr.inline_piece(sge) {
                None if !INLINE && sge.length != 0 => {
                    block.put_wide(op.units(), wqe::data(sge.length, sge.lkey, sge.addr));
                }
                Some(piece) if INLINE && piece.len().wrapping_sub(1) < self.max_short_inline as usize => {
                    block.put_headed(op.units(), wqe::inline_head(piece.len() as u32), piece);
                }
                _ => break,
            }
            if op.has(Form::REMOTE) {
                let Rdma { remote_addr, rkey } = wr.rdma();
                block.put_wide(1, wqe::raddr(remote_addr, rkey));
            }
            block.put_half::<1>(self.usual_flags(wr.send_flags()));
            let slot = rows.slot(at.post);
            slot.note_id(wr.wr_id());
            let post = self.close(at.post, at.head, block, slot, op, op.units() + 1);
            at = At { wrs: wr.rest(), post, head: at.head.wrapping_add(1), room: at.room - 1 };
        }
        at
    }

    /// The WQE of one work request of [`Producer::post_plain_list`], which is one block: where the next one begins.
    #[inline(always)]
    fn build_plain(&self, rows: Rows<'_>, wr: SendWr<'_>, (post, head): (u32, u32)) -> Option<u32> {
        let op = self.usual_ops.get(wr.opcode() as usize).copied().unwrap_or_default();
        if op.has(Form::UMR.union(Form::NONE).union(Form::ATOMIC)) {
            return None;
        }
        let sge = wr.only_sge().filter(|sge| sge.length != 0)?;
        let block = rows.block(post);
        let mut ds = 1;
        if op.has(Form::REMOTE) {
            let Rdma { remote_addr, rkey } = wr.rdma();
            block.put(1, wqe::raddr(remote_addr, rkey));
            ds = 2;
        }
        match wr.inline_piece(sge) {
            None => block.put(ds, wqe::data(sge.length, sge.lkey, sge.addr)),
            Some(piece) if piece.len() <= self.max_short_inline as usize => {
                block.put_headed(ds, wqe::inline_head(sge.length), piece);
            }
            Some(_) => return None,
        }
        let mut flags = self.usual_flags(wr.send_flags());
        if op.has(Form::IMM.union(Form::KEY)) {
            flags |= wqe::ctrl_imm(imm(op, wr));
        }
        block.put_half::<1>(flags);
        let slot = rows.slot(post);
        slot.note_id(wr.wr_id());
        Some(self.close(post, head, block, slot, op, ds + 1))
    }

    /// Posts a list of work requests, of all kinds that take no call. False: there is one of another kind, or no room for all, and
    /// nothing was done that counts: the device reads no WQE before it is told of it.
    ///
    /// It calls nothing, and writes how far the queue is at the end.
    #[inline(always)]
    fn post_list<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        register: &Entered<'_>,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> bool {
        let (rows, limit) = (ring.rows(), ring.gate.limit());
        let (mut post, mut head, mut last, mut burst) = (self.post, self.head, self.post, 0);
        for wr in wrs {
            if !self.has_room(ring, head, limit) {
                return false;
            }
            let Some((ds, next)) = self.build::<T>(rows, wr, (post, head), objects) else {
                return false;
            };
            burst = self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0);
            (last, post, head) = (post, next, head.wrapping_add(1));
        }
        if head.wrapping_sub(self.head) != 1 {
            burst = 0;
        }
        (self.post, self.head) = (post, head);
        register.ring(&ring.record, post, rows.blocks, last, burst);
        true
    }

    /// Posts a list.
    #[inline(never)]
    fn post<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        register: Option<&Register>,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let (rows, before) = (ring.rows(), self.head);
        let mut at = self.post;
        let mut only = 0;
        let mut result = Ok(());
        for wr in wrs {
            let post = self.post;
            let built = if !self.room(ring) {
                Err(Errno::ENOMEM)
            } else if let Some((ds, next)) = self.build::<T>(rows, wr, (post, self.head), objects) {
                (self.post, self.head) = (next, self.head.wrapping_add(1));
                Ok(ds)
            } else {
                self.build_other::<T>(ring, wr, objects)
            };
            match built {
                Ok(ds) => (at, only) = (post, self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0)),
                Err(errno) => {
                    result = Err(Refused { wr: wr.as_ptr(), errno });
                    break;
                }
            }
        }
        match self.head.wrapping_sub(before) {
            0 => {}
            count => self.ring(ring, register, at, if count == 1 { only } else { 0 }),
        }
        result
    }
}

impl SendQueue {
    pub(super) fn new(shape: Shape, owner: Arc<Owner>, doorbell: Option<Use>) -> SendQueue {
        let (register, back) = doorbell.map(|doorbell| (doorbell.register, doorbell.back)).unzip();
        let max_burst = register.as_ref().map_or(0, |register| register.half() / 16);
        SendQueue { owner, producer: Producer::new(shape, max_burst), register, _back: back.flatten() }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        self.producer.reset();
    }

    /// Posts one work request that is `OPCODE` and has the data `single`.
    #[inline(always)]
    pub(super) fn post_single<const OPCODE: u32>(&mut self, wr: SendWr<'_>, single: Single<'_>) -> Posted {
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return Posted::Not };
        self.producer.post_single::<OPCODE>(ring, register, wr, single)
    }

    /// Posts one work request, of all kinds that take no call.
    #[inline(always)]
    pub(super) fn post_most<'a>(&mut self, wr: SendWr<'a>, objects: impl Objects<'a, Ah>) -> Posted {
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return Posted::Not };
        let producer = &mut self.producer;
        match producer.transport {
            transport::RC | transport::UC => {
                producer.post_one::<{ transport::RC }>(ring, register, wr, objects)
            }
            transport::UD => producer.post_one::<{ transport::UD }>(ring, register, wr, objects),
            _ => Posted::Not,
        }
    }

    /// Tells the device of what was posted and it was not told of, whoever else uses the register.
    pub(super) fn tell(&mut self, last: u32, burst: u32) {
        if let Some(ring) = &self.owner.send {
            self.producer.ring(ring, self.register.as_deref(), last, burst);
        }
    }

    /// Posts a list of plain ones, of more than one. False: there is something else, and nothing was done.
    #[inline(always)]
    pub(super) fn post_usual_list(&mut self, wrs: SendWrs<'_>) -> bool {
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return false };
        let Some(register) = &register.enter() else { return false };
        self.producer.transport <= transport::UC && self.producer.post_plain_list(ring, register, wrs)
    }

    /// As [`SendQueue::post_usual_list`], of all kinds that take no call.
    #[inline(always)]
    pub(super) fn post_list<'a>(&mut self, wrs: SendWrs<'a>, objects: impl Objects<'a, Ah>) -> bool {
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return false };
        let Some(register) = &register.enter() else { return false };
        let producer = &mut self.producer;
        match producer.transport {
            transport::RC | transport::UC => {
                producer.post_list::<{ transport::RC }>(ring, register, wrs, objects)
            }
            transport::UD => producer.post_list::<{ transport::UD }>(ring, register, wrs, objects),
            _ => false,
        }
    }

    /// Posts a list.
    pub(super) fn post_send<'a>(
        &mut self,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let Some(ring) = &self.owner.send else {
            // A QP that was asked for no sends.
            return Err(Refused { wr: wrs.as_ptr(), errno: Errno::ENOMEM });
        };
        let (producer, register) = (&mut self.producer, self.register.as_deref());
        match producer.transport {
            transport::RC | transport::UC => producer.post::<{ transport::RC }>(ring, register, wrs, objects),
            transport::UD => producer.post::<{ transport::UD }>(ring, register, wrs, objects),
            _ => producer.post::<{ transport::XRC }>(ring, register, wrs, objects),
        }
    }
}
