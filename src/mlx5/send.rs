//! Send queues: work requests become WQEs, built once in place, and a list of them rings one doorbell.
//!
//! `post` is compiled for connected QPs, for UD and for XRC, so that what a WQE of that transport does not have costs nothing; what
//! an operation is stands in a table ([`super::op`]). The common operations with one entry of data are written in line, everything
//! else is called. A WQE's control segment, which holds its length, is written when its other segments are there.

use std::sync::Arc;

use super::ah::Ah;
use super::builder::Builder;
use super::op::{self, Form, Op, Ops, ops_of, transport};
use super::ring::{Meta, Owner, SendRing, Slot};
use super::uar::{Entered, Register, Use};
use super::wqe::{self, Bind};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, Rdma, SendWr, SendWrs, UserBytes};
use crate::error::Errno;
use crate::family::{Objects, Refused};
use crate::hw::dma::Block;

/// The producer's side of a send queue.
#[derive(Debug)]
pub struct SendQueue {
    pub(super) owner: Arc<Owner>,
    pub(super) producer: Producer,
    /// Where its doorbell is; none where nothing is sent.
    pub(super) register: Option<Arc<Register>>,
    /// Keeps the register ours.
    _use: Option<Arc<Use>>,
}

/// Where posting stands, and what every WQE of the queue has.
#[derive(Debug)]
pub(super) struct Producer {
    /// The next free block.
    pub(super) post: u32,
    /// Work requests posted.
    pub(super) head: u32,
    /// The half of the control segment that has the flags, as far as it is the same for every WQE (all of them complete, whatever
    /// their flags); and in its lowest byte, which is 0 there, what the next one alone has to wait for: the bind or invalidation
    /// before it.
    pub(super) common: u64,
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
    /// Those that [`Producer::build`] knows: none where the queue takes no data.
    usual_ops: &'static Ops,
    /// Work requests that a queue takes whose gate is closed.
    max_post: u32,
    /// The gate is closed: the device is told nothing any more.
    pub(super) silent: bool,
    /// What the `ibv_wr_*` functions are building.
    pub(super) builder: Builder,
}

/// The byte of [`Producer::common`] that is for one WQE.
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
        ring.blocks.units().put(unit.wrapping_add(count), wqe::data(sge.length, sge.lkey, sge.addr));
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
        Producer {
            post: 0,
            head: 0,
            common: if shape.sq_sig_all { wqe::ctrl_flags(wqe::CTRL_CQ_UPDATE) } else { 0 },
            tail: 0,
            transport: shape.transport,
            prefix: prefix(shape.transport),
            atomics: shape.atomics,
            ops: ops_of(shape.transport),
            usual_ops: if shape.max_sge == 0 { &op::NO_OPS } else { ops_of(shape.transport) },
            qpn_ds: shape.qpn << 8,
            max_sge: shape.max_sge,
            max_inline: shape.max_inline,
            max_short_inline: shape.max_inline.min(wqe::INLINE_IN_UNIT),
            max_burst: [if shape.prefer_bf { max_burst } else { 0 }, max_burst],
            max_post: shape.max_post,
            silent: false,
            builder: Builder::default(),
        }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.post, self.head, self.tail) = (0, 0, 0);
        self.common &= !PENDING;
        self.builder = Builder::default();
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
        let mut common = self.common;
        if common & PENDING != 0 {
            common = self.fenced(send_flags);
        }
        common | wqe::send_flags(send_flags) | wqe::ctrl_imm(imm)
    }

    /// What is common, of the WQE behind a bind or an invalidation: it waits for that, unless it waits for all before it anyway.
    #[cold]
    fn fenced(&mut self, send_flags: u32) -> u64 {
        let fence = (self.common & PENDING) as u8;
        self.common &= !PENDING;
        self.common | wqe::ctrl_flags(if send_flags & IBV_SEND_FENCE == 0 { fence } else { 0 })
    }

    /// The next WQE waits for the one just built.
    pub(super) fn fence_next(&mut self) {
        self.common |= u64::from(wqe::CTRL_INITIATOR_SMALL_FENCE);
    }

    /// Ends the WQE of `ds` units at `post`, which is that of the queue, and whose block and slot these are: the half of the control segment that has its length,
    /// and what is noted of it.
    #[inline(always)]
    pub(super) fn close(&mut self, post: u32, block: Block<'_>, slot: &Slot, op: Op, ds: u32) {
        let head = self.head;
        block.put_half::<0>(wqe::ctrl_place(op.code(), post as u16, self.qpn_ds | ds));
        let next = post.wrapping_add(wqe::blocks(ds));
        slot.note(Meta { head, next: next as u16, noted: op.noted() });
        (self.post, self.head) = (next, head.wrapping_add(1));
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
        match register {
            Some(register) if !self.silent => {
                register.ring(&ring.record, self.post, &ring.blocks, (at, ring.blocks.at(at)), burst);
            }
            _ => ring.keep(self.post),
        }
    }

    /// Builds the WQE of one work request, at block `post` of the queue, which is given along: its length in units. `None` where it
    /// is no plain operation with one entry of data, or its inline data are longer than a unit and `LONG` is false, or go around the
    /// ring's end; then nothing was done that counts, and it is for [`Producer::build_other`].
    #[inline(always)]
    fn build<'a, const T: u8, const LONG: bool>(
        &mut self,
        ring: &SendRing,
        wr: SendWr<'a>,
        (post, block): (u32, Block<'_>),
        objects: impl Objects<'a, Ah>,
    ) -> Option<u32> {
        let op = self.usual_ops.get(wr.opcode() as usize).copied().unwrap_or_default();
        if op.has(Form::ATOMIC.union(Form::UMR).union(Form::NONE)) {
            return None;
        }
        let sge = wr.only_sge()?;
        if sge.length == 0 {
            return None;
        }
        let mut ds = prefix(T);
        if T == transport::UD {
            let ud = wr.ud();
            put_datagram(block, objects.ah(ud.ah)?, ud.remote_qpn, ud.remote_qkey);
        }
        if T == transport::XRC {
            block.put(1, wqe::xrc(wr.remote_srqn()));
        }
        if T != transport::UD && op.has(Form::REMOTE) {
            let Rdma { remote_addr, rkey } = wr.rdma();
            block.put(ds, wqe::raddr(remote_addr, rkey));
            ds += 1;
        }
        // The first unit behind the datagram segment is in the next block.
        let (data, at) =
            if T == transport::UD { (ring.blocks.at(post.wrapping_add(1)), 0) } else { (block, ds) };
        if let Some(bytes) = wr.inline_piece(sge) {
            let head = wqe::inline_head(sge.length);
            if sge.length <= self.max_short_inline {
                data.put_headed(at, head, bytes);
                ds += 1;
            } else {
                let fits = sge.length <= self.max_inline;
                if !LONG
                    || !fits
                    || !ring.blocks.units().put_headed_straight(wqe::unit(post, ds), head, bytes)
                {
                    return None;
                }
                ds += wqe::inline_units(sge.length);
            }
        } else {
            data.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
            ds += 1;
        }
        let slot = ring.slot(post);
        let imm = imm(op, wr);
        block.put_half::<1>(self.flags(wr.send_flags(), imm));
        slot.note_id(wr.wr_id());
        self.close(post, block, slot, op, ds);
        Some(ds)
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
            let operands = if op.code() == wqe::opcode::ATOMIC_CS {
                wqe::atomic(atomic.swap, atomic.compare_add)
            } else {
                wqe::atomic(atomic.compare_add, 0)
            };
            units.put(wqe::unit(post, ds + 1), operands);
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
        block.put_half::<1>(self.flags(wr.send_flags(), imm));
        if op.has(Form::UMR) {
            self.fence_next();
        }
        slot.note_id(wr.wr_id());
        self.close(post, block, slot, op, ds);
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

    /// Posts one work request of a kind that [`Producer::build`] knows. False: it is something else, or there is no room, and
    /// nothing was done.
    #[inline(always)]
    fn post_usual<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        register: &Entered<'_>,
        wr: SendWr<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> bool {
        // Not behind a closed gate, whose limit is 0.
        if self.head.wrapping_sub(self.tail) >= ring.gate.limit() {
            return false;
        }
        let at = (self.post, ring.blocks.at(self.post));
        let Some(ds) = self.build::<T, false>(ring, wr, at, objects) else { return false };
        let burst = self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0);
        register.ring(&ring.record, self.post, &ring.blocks, at, burst);
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
        let before = self.head;
        let mut at = self.post;
        let mut only = 0;
        let mut result = Ok(());
        for wr in wrs {
            let post = self.post;
            let built = if !self.room(ring) {
                Err(Errno::ENOMEM)
            } else if let Some(ds) = self.build::<T, true>(ring, wr, (post, ring.blocks.at(post)), objects) {
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
    pub(super) fn new(shape: Shape, owner: Arc<Owner>, register: Option<Arc<Use>>) -> SendQueue {
        let max_burst = register.as_ref().map_or(0, |register| register.register.half() / 16);
        SendQueue {
            owner,
            producer: Producer::new(shape, max_burst),
            register: register.as_ref().map(|register| register.register.clone()),
            _use: register,
        }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        self.producer.reset();
    }

    /// Posts one work request of a usual kind. False: it is something else, and nothing was done.
    #[inline(always)]
    pub(super) fn post_usual<'a>(&mut self, wr: SendWr<'a>, objects: impl Objects<'a, Ah>) -> bool {
        let (Some(ring), Some(register)) = (&self.owner.send, &self.register) else { return false };
        let Some(register) = &register.enter() else { return false };
        let producer = &mut self.producer;
        match producer.transport {
            transport::RC | transport::UC => {
                producer.post_usual::<{ transport::RC }>(ring, register, wr, objects)
            }
            transport::UD => producer.post_usual::<{ transport::UD }>(ring, register, wr, objects),
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
