//! Send queues: work requests become WQEs, built once in place, and a list of them rings one doorbell.
//!
//! `post` is compiled for connected QPs, for UD and for XRC, so that what a WQE of that transport does not have costs nothing; what
//! an operation is stands in a table ([`super::op`]). The common operations with one entry of data are written in line, everything
//! else is called. A WQE's control segment, which holds its length, is written when its other segments are there.

use std::sync::Arc;

use super::ah::Ah;
use super::op::{Form, Op, Ops, ops_of, transport};
use super::ring::{Meta, Owner, SendRing, Slot};
use super::uar::{Register, Use};
use super::wqe::{self, Bind};
use crate::abi::public::*;
use crate::abi::wr::{InlineData, Rdma, SendWr, SendWrs, UserBytes};
use crate::error::Errno;
use crate::family::{Objects, Refused, SendBuilder, SendOp};
use crate::hw::dma::Block;

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
    /// `fm_ce_se` of every WQE (all of them complete, whatever their flags), and in the bits above what the next one alone has to
    /// wait for: the bind or invalidation before it.
    common: u32,
    /// Work requests that completed, when it was last looked up.
    tail: u32,
    /// The QP's number, where the control segment has it.
    qpn_ds: u32,
    max_sge: u32,
    max_inline: u32,
    /// Units of the longest WQE that BlueFlame takes: without inline data, and with. 0: none.
    max_burst: [u32; 2],
    transport: u8,
    /// Units in front of an operation's own segments.
    prefix: u32,
    atomics: bool,
    ops: &'static Ops,
    /// Where its doorbell is; none once the gate is closed.
    register: Option<Arc<Register>>,
    /// Work requests that a queue takes whose gate is closed.
    max_post: u32,
    /// Keeps the register ours.
    _use: Option<Arc<Use>>,
    /// What the `ibv_wr_*` functions are building.
    builder: Builder,
}

/// Work requests between `ibv_wr_start` and `ibv_wr_complete`.
#[derive(Debug, Default)]
struct Builder {
    /// Where the queue stood at start: `post`, `head`, `common`.
    saved: (u32, u32, u32),
    /// The last WQE: its first block and its length in units.
    at: u32,
    ds: u32,
    inline: bool,
    /// It is still without the half of its control segment that has its length, which a setter will tell.
    open: bool,
    op: Op,
    /// Its units in front of the data; 0: there is no WQE.
    head: u32,
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

/// One piece of inline data, from unit `at` of the WQE at block `post` on: how many units. `block` is that block.
#[inline(always)]
fn put_inline(
    ring: &SendRing,
    (post, block): (u32, Block<'_>),
    at: u32,
    limit: u32,
    bytes: UserBytes<'_>,
) -> Result<u32, Errno> {
    if bytes.len() > limit as usize {
        return Err(Errno::ENOMEM);
    }
    // Within the limit, and so within 32 bits.
    let len = bytes.len() as u32;
    let head = wqe::inline_head(len);
    if len <= wqe::INLINE_IN_UNIT && at < wqe::UNITS_PER_BB {
        if len == 0 {
            return Ok(0);
        }
        block.put_headed(at, head, bytes);
        return Ok(1);
    }
    Ok(put_longer(ring, wqe::unit(post, at), head, bytes))
}

/// Inline data of more than a unit. Not in line: what needs so many instructions anyway does not mind the call.
#[inline(never)]
fn put_longer(ring: &SendRing, unit: u32, head: u32, bytes: UserBytes<'_>) -> u32 {
    if bytes.is_empty() {
        return 0;
    }
    ring.blocks.units().put_headed(unit, head, bytes);
    wqe::inline_units(bytes.len() as u32)
}

/// Inline data in pieces.
#[inline(never)]
fn put_inline_pieces(ring: &SendRing, unit: u32, limit: u32, data: &InlineData<'_>) -> Result<u32, Errno> {
    let len = data.len();
    if len > limit as usize {
        return Err(Errno::ENOMEM);
    }
    if len == 0 {
        return Ok(0);
    }
    let (units, len) = (ring.blocks.units(), len as u32);
    units.put_headed(unit, wqe::inline_head(len), UserBytes::from_slice(&[]));
    let mut byte = unit.wrapping_mul(16).wrapping_add(4);
    for piece in data.pieces() {
        units.put_user(byte, piece);
        byte = byte.wrapping_add(piece.len() as u32);
    }
    Ok(wqe::inline_units(len))
}

/// Data segments from `unit` on, of those entries that have a length; a data segment of 0 bytes would be one of 2 GiB.
fn put_sges(ring: &SendRing, unit: u32, sges: &[ibv_sge]) -> u32 {
    let mut count = 0;
    for sge in sges.iter().filter(|sge| sge.length != 0) {
        ring.blocks.units().put(unit.wrapping_add(count), wqe::data(sge.length, sge.lkey, sge.addr));
        count += 1;
    }
    count
}

/// One data segment at unit `at` of a WQE; none for no length.
#[inline(always)]
fn put_sge(ring: &SendRing, (post, block): (u32, Block<'_>), at: u32, sge: &ibv_sge) -> u32 {
    if sge.length == 0 {
        return 0;
    }
    let segment = wqe::data(sge.length, sge.lkey, sge.addr);
    if at < wqe::UNITS_PER_BB {
        block.put(at, segment);
    } else {
        ring.blocks.units().put(wqe::unit(post, at), segment);
    }
    1
}

/// The UMR segments of a bind; how many units.
fn put_bind(ring: &SendRing, unit: u32, bind: &Bind) -> u32 {
    let (segments, count) = bind.units();
    for (next, segment) in (0..count).zip(segments) {
        ring.blocks.units().put(unit.wrapping_add(next), segment);
    }
    count
}

/// The datagram segment, behind the control segment.
#[inline(always)]
fn put_datagram(block: Block<'_>, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
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
    fn new(shape: Shape, register: Option<Arc<Use>>) -> Producer {
        let max_burst = register.as_ref().map_or(0, |register| register.register.half() / 16);
        Producer {
            post: 0,
            head: 0,
            common: if shape.sq_sig_all { wqe::CTRL_CQ_UPDATE.into() } else { 0 },
            tail: 0,
            transport: shape.transport,
            prefix: prefix(shape.transport),
            atomics: shape.atomics,
            ops: ops_of(shape.transport),
            qpn_ds: shape.qpn << 8,
            max_sge: shape.max_sge,
            max_inline: shape.max_inline,
            max_burst: [if shape.prefer_bf { max_burst } else { 0 }, max_burst],
            max_post: shape.max_post,
            register: register.as_ref().map(|register| register.register.clone()),
            _use: register,
            builder: Builder::default(),
        }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.post, self.head, self.tail) = (0, 0, 0);
        self.common &= wqe::FM_CE_SE;
        self.builder = Builder::default();
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

    /// The half of the control segment that has the flags; `imm` in network order. No WQE after this one waits for what this one
    /// waits for.
    #[inline(always)]
    fn flags(&mut self, send_flags: u32, imm: u32) -> u64 {
        let mut flags = wqe::flags(send_flags) | self.common as u8;
        if self.common > wqe::FM_CE_SE {
            flags |= self.pending_fence(send_flags);
        }
        wqe::ctrl_flags(flags, imm)
    }

    /// What a WQE waits for because of the one before it; one that waits for all of them anyway needs no more.
    #[cold]
    fn pending_fence(&mut self, send_flags: u32) -> u8 {
        let fence = (self.common >> 8) as u8;
        self.common &= wqe::FM_CE_SE;
        if send_flags & IBV_SEND_FENCE == 0 { fence } else { 0 }
    }

    /// The next WQE waits for the one just built.
    fn fence_next(&mut self) {
        self.common |= u32::from(wqe::CTRL_INITIATOR_SMALL_FENCE) << 8;
    }

    /// Ends the WQE of `ds` units at `post`, which is that of the queue, and whose block and slot these are: the half of the control segment that has its length,
    /// and what is noted of it.
    #[inline(always)]
    fn close(&mut self, post: u32, block: Block<'_>, slot: &Slot, op: Op, ds: u32) {
        let head = self.head;
        block.put_half::<0>(wqe::ctrl_place(op.code(), post as u16, self.qpn_ds | ds));
        let next = post.wrapping_add(wqe::blocks(ds));
        slot.note(Meta { head, next: next as u16, noted: op.noted() });
        (self.post, self.head) = (next, head.wrapping_add(1));
    }

    /// Units of the only WQE of a list that BlueFlame shall have; 0: the doorbell alone.
    #[inline(always)]
    fn burst(&self, ds: u32, inline: bool) -> u32 {
        let [without, with] = self.max_burst;
        if ds > 1 && ds <= if inline { with } else { without } { ds } else { 0 }
    }

    /// Lets the device see everything up to `post`. `at` is where the last WQE is, `burst` as [`Producer::burst`] has it.
    #[inline(always)]
    fn ring(&self, ring: &SendRing, at: (u32, Block<'_>), burst: u32) {
        match &self.register {
            Some(register) => register.ring(&ring.record, self.post, &ring.blocks, at, burst),
            None => ring.keep(self.post),
        }
    }

    /// Builds the WQE of one work request, at block `post` of the queue, which is given along: its length in units.
    #[inline(always)]
    fn build<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wr: SendWr<'a>,
        (post, block): (u32, Block<'_>),
        objects: impl Objects<'a, Ah>,
    ) -> Result<u32, Errno> {
        let op = self.ops.get(wr.opcode() as usize).copied().unwrap_or_default();
        if op.has(Form::ATOMIC.union(Form::UMR).union(Form::NONE)) {
            return self.build_other::<T>(ring, wr, objects, op);
        }
        let slot = ring.slot(post);
        let mut ds = prefix(T);
        if T == transport::UD {
            let ud = wr.ud();
            let ah = objects.ah(ud.ah).ok_or(Errno::EINVAL)?;
            put_datagram(block, ah, ud.remote_qpn, ud.remote_qkey);
        }
        if T == transport::XRC {
            block.put(1, wqe::xrc(wr.remote_srqn()));
        }
        if T != transport::UD && op.has(Form::REMOTE) {
            let Rdma { remote_addr, rkey } = wr.rdma();
            block.put(ds, wqe::raddr(remote_addr, rkey));
            ds += 1;
        }
        let send_flags = wr.send_flags();
        ds += match wr.only_sge() {
            Some(sge) if self.max_sge != 0 => match wr.inline_piece(sge) {
                Some(bytes) => put_inline(ring, (post, block), ds, self.max_inline, bytes)?,
                None => put_sge(ring, (post, block), ds, sge),
            },
            _ => self.put_data(ring, wqe::unit(post, ds), wr)?,
        };
        let mut imm = 0;
        if op.has(Form::IMM.union(Form::KEY)) {
            imm = if op.has(Form::KEY) { wr.invalidate_rkey().to_be() } else { wr.imm_data() };
        }
        block.put_half::<1>(self.flags(send_flags, imm));
        slot.note_id(wr.wr_id());
        self.close(post, block, slot, op, ds);
        Ok(ds)
    }

    /// The data of a work request with other than one entry: how many units.
    #[inline(never)]
    fn put_data(&self, ring: &SendRing, unit: u32, wr: SendWr<'_>) -> Result<u32, Errno> {
        if wr.sges()?.len() > self.max_sge as usize {
            return Err(Errno::ENOMEM);
        }
        match wr.inline_data()? {
            Some(data) => put_inline_pieces(ring, unit, self.max_inline, &data),
            None => Ok(put_sges(ring, unit, wr.sges()?)),
        }
    }

    /// [`Producer::build`] for atomics, binds, invalidations, and what the QP type does not have.
    #[inline(never)]
    fn build_other<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wr: SendWr<'a>,
        objects: impl Objects<'a, Ah>,
        op: Op,
    ) -> Result<u32, Errno> {
        if op.has(Form::NONE) {
            return Err(Errno::EINVAL);
        }
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::ENOMEM);
        }
        let (post, units) = (self.post, ring.blocks.units());
        let (block, slot) = (ring.blocks.at(post), ring.slot(post));
        let (mut ds, mut imm) = (1, 0);
        if op.has(Form::ATOMIC) {
            if !self.atomics {
                return Err(Errno::EOPNOTSUPP);
            }
            if T == transport::XRC {
                block.put(1, wqe::xrc(wr.remote_srqn()));
                ds += 1;
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
            let (key, bind) = self.bind_of(wr, objects)?;
            imm = key.to_be();
            ds += put_bind(ring, wqe::unit(post, ds), &bind);
            ds += self.put_data(ring, wqe::unit(post, ds), wr)?;
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

    /// Posts one work request. Most posts are of one: nothing has to be kept for a next.
    #[inline(always)]
    fn post_one<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wr: SendWr<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let refused = |errno| Refused { wr: wr.as_ptr(), errno };
        if !self.room(ring) {
            return Err(refused(Errno::ENOMEM));
        }
        let at = (self.post, ring.blocks.at(self.post));
        let ds = self.build::<T>(ring, wr, at, objects).map_err(refused)?;
        self.ring(ring, at, self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0));
        Ok(())
    }

    /// Posts a list of several.
    #[inline(never)]
    fn post_list<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        let before = self.head;
        let mut at = (self.post, ring.blocks.at(self.post));
        let mut burst = 0;
        let mut result = Ok(());
        for wr in wrs {
            let here = (self.post, ring.blocks.at(self.post));
            let built =
                if self.room(ring) { self.build::<T>(ring, wr, here, objects) } else { Err(Errno::ENOMEM) };
            match built {
                Ok(ds) if self.head == before.wrapping_add(1) => {
                    (at, burst) = (here, self.burst(ds, wr.send_flags() & IBV_SEND_INLINE != 0));
                }
                Ok(_) => (at, burst) = (here, 0),
                Err(errno) => {
                    result = Err(Refused { wr: wr.as_ptr(), errno });
                    break;
                }
            }
        }
        if self.head != before {
            self.ring(ring, at, burst);
        }
        result
    }

    #[inline(always)]
    fn post<'a, const T: u8>(
        &mut self,
        ring: &SendRing,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        match wrs.only() {
            Some(wr) => self.post_one::<T>(ring, wr, objects),
            None => self.post_list::<T>(ring, wrs, objects),
        }
    }

    /// [`Producer::post`] for other than connected QPs: a function of its own keeps theirs small.
    #[inline(never)]
    fn post_other<'a>(
        &mut self,
        ring: &SendRing,
        wrs: SendWrs<'a>,
        objects: impl Objects<'a, Ah>,
    ) -> Result<(), Refused<ibv_send_wr>> {
        if self.transport == transport::UD {
            self.post::<{ transport::UD }>(ring, wrs, objects)
        } else {
            self.post::<{ transport::XRC }>(ring, wrs, objects)
        }
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
        if producer.transport <= transport::UC {
            producer.post::<{ transport::RC }>(ring, wrs, objects)
        } else {
            producer.post_other(ring, wrs, objects)
        }
    }

    /// `ibv_wr_set_ud_addr`.
    #[inline(always)]
    pub(super) fn set_ud_addr(&mut self, ah: &Ah, remote_qpn: u32, remote_qkey: u32) {
        self.set(|producer, ring| {
            if producer.transport != transport::UD {
                return Err(Errno::EINVAL);
            }
            put_datagram(ring.blocks.at(producer.builder.at), ah, remote_qpn, remote_qkey);
            Ok(())
        });
    }

    /// Runs a setter on the last WQE.
    #[inline(always)]
    fn set(&mut self, setter: impl FnOnce(&mut Producer, &SendRing) -> Result<(), Errno>) {
        let producer = &mut self.producer;
        if producer.builder.failed.is_some() {
            return;
        }
        let result = match &self.owner.send {
            Some(ring) if producer.builder.head != 0 => setter(producer, ring),
            // A setter with nothing to set: the application forgot the operation.
            _ => Err(Errno::EINVAL),
        };
        if let Err(errno) = result {
            producer.builder.failed = Some(errno);
        }
    }

    /// Runs a setter of data, which is given the WQE's first block and the unit of the data and says how many there are, and
    /// ends the WQE with them.
    #[inline(always)]
    fn set_data(
        &mut self,
        inline: bool,
        setter: impl FnOnce(&Producer, &SendRing, (u32, Block<'_>), u32) -> Result<u32, Errno>,
    ) {
        self.set(|producer, ring| {
            if !producer.builder.open {
                producer.reopen();
            }
            let (post, head) = (producer.post, producer.builder.head);
            let block = ring.blocks.at(post);
            let units = setter(producer, ring, (post, block), head)?;
            producer.builder.inline = inline && units != 0;
            producer.end(post, block, ring.slot(post), head + units);
            Ok(())
        });
    }
}

// The builders. An operation writes what it has itself; its setter of data adds them and ends the WQE, since only then the length
// is known. Where none follows, the next operation or `ibv_wr_complete` ends it.
impl Producer {
    /// Ends the open WQE, of `ds` units.
    #[inline(always)]
    fn end(&mut self, post: u32, block: Block<'_>, slot: &Slot, ds: u32) {
        self.close(post, block, slot, self.builder.op, ds);
        (self.builder.open, self.builder.ds) = (false, ds);
    }

    /// A second setter of data: the last one counts.
    #[cold]
    fn reopen(&mut self) {
        self.post = self.builder.at;
        self.head = self.head.wrapping_sub(1);
        self.builder.open = true;
    }

    /// No setter of data came.
    #[cold]
    fn end_without_data(&mut self, ring: &SendRing) {
        let post = self.post;
        self.end(post, ring.blocks.at(post), ring.slot(post), self.builder.head);
    }

    #[cold]
    fn abort(&mut self) {
        (self.post, self.head, self.common) = self.builder.saved;
        (self.builder.open, self.builder.head) = (false, 0);
    }

    /// Begins the WQE of `op`, whose own segments are up to unit `head`: its block.
    #[inline(always)]
    fn begin<'r>(
        &mut self,
        ring: &'r SendRing,
        (wr_id, wr_flags): (u64, u32),
        op: Op,
        imm: u32,
        head: u32,
    ) -> Option<Block<'r>> {
        if self.builder.open {
            self.end_without_data(ring);
        }
        if self.builder.failed.is_some() {
            return None;
        }
        if !self.room(ring) {
            self.builder.failed = Some(Errno::ENOMEM);
            return None;
        }
        let post = self.post;
        let block = ring.blocks.at(post);
        block.put_half::<1>(self.flags(wr_flags, imm));
        ring.slot(post).note_id(wr_id);
        let builder = &mut self.builder;
        (builder.op, builder.open, builder.head) = (op, true, head);
        (builder.at, builder.ds, builder.inline) = (post, head, false);
        Some(block)
    }

    /// An operation without segments of its own, or with a remote address.
    #[inline(always)]
    fn plain(&mut self, ring: &SendRing, wr: (u64, u32), op: Op, imm: u32, remote: Option<(u64, u32)>) {
        let prefix = self.prefix;
        let Some(block) = self.begin(ring, wr, op, imm, prefix + u32::from(remote.is_some())) else { return };
        if let Some((remote_addr, rkey)) = remote {
            block.put(prefix, wqe::raddr(remote_addr, rkey));
        }
    }

    fn atomic(
        &mut self,
        ring: &SendRing,
        wr: (u64, u32),
        op: Op,
        (remote_addr, rkey): (u64, u32),
        operands: wqe::Unit,
    ) {
        let prefix = self.prefix;
        let Some(block) = self.begin(ring, wr, op, 0, prefix + 2) else { return };
        block.put(prefix, wqe::raddr(remote_addr, rkey));
        block.put(prefix + 1, operands);
    }

    fn umr(&mut self, ring: &SendRing, wr: (u64, u32), op: Op, key: u32, bind: &Bind) {
        // Behind the control segment alone: nothing of an XRC WQE but this.
        let (_, count) = bind.units();
        if self.begin(ring, wr, op, key.to_be(), 1 + count).is_some() {
            self.fence_next();
            put_bind(ring, wqe::unit(self.post, 1), bind);
        }
    }
}

impl SendBuilder for SendQueue {
    #[inline(always)]
    fn start(&mut self) {
        let producer = &mut self.producer;
        let builder = &mut producer.builder;
        builder.saved = (producer.post, producer.head, producer.common);
        (builder.open, builder.head, builder.failed) = (false, 0, None);
    }

    #[inline(always)]
    fn operation(&mut self, wr_id: u64, wr_flags: u32, op: SendOp) {
        let Some(ring) = &self.owner.send else {
            self.producer.builder.failed = Some(Errno::EINVAL);
            return;
        };
        let producer = &mut self.producer;
        let wr = (wr_id, wr_flags);
        match op {
            SendOp::Send => producer.plain(ring, wr, Op::SEND, 0, None),
            SendOp::SendImm { imm_data } => producer.plain(ring, wr, Op::SEND_IMM, imm_data, None),
            SendOp::SendInv { invalidate_rkey } => {
                producer.plain(ring, wr, Op::SEND_INV, invalidate_rkey.to_be(), None);
            }
            SendOp::Write { rkey, remote_addr } => {
                producer.plain(ring, wr, Op::WRITE, 0, Some((remote_addr, rkey)));
            }
            SendOp::WriteImm { rkey, remote_addr, imm_data } => {
                producer.plain(ring, wr, Op::WRITE_IMM, imm_data, Some((remote_addr, rkey)));
            }
            SendOp::Read { rkey, remote_addr } => {
                producer.plain(ring, wr, Op::READ, 0, Some((remote_addr, rkey)));
            }
            SendOp::CmpSwp { rkey, remote_addr, compare, swap } => {
                producer.atomic(ring, wr, Op::CMP_SWP, (remote_addr, rkey), wqe::atomic(swap, compare));
            }
            SendOp::FetchAdd { rkey, remote_addr, add } => {
                producer.atomic(ring, wr, Op::FETCH_ADD, (remote_addr, rkey), wqe::atomic(add, 0));
            }
            SendOp::LocalInv { invalidate_rkey } => {
                producer.umr(ring, wr, Op::LOCAL_INV, invalidate_rkey, &Bind::INVALIDATE);
            }
            SendOp::BindMw { mw_rkey, rkey, addr, length, mr_lkey, access } => {
                if length > wqe::BIND_MAX {
                    producer.builder.failed.get_or_insert(Errno::EOPNOTSUPP);
                    return;
                }
                // Type 1 windows are bound by ibv_bind_mw only.
                let qpn = producer.qpn_ds >> 8;
                let bind = Bind { type_2: true, rkey, qpn, addr, length, lkey: mr_lkey, access };
                producer.umr(ring, wr, Op::BIND_MW, mw_rkey, &bind);
            }
            // Never given out by `builders`.
            SendOp::AtomicWrite { .. } | SendOp::Flush { .. } => {
                producer.builder.failed.get_or_insert(Errno::EOPNOTSUPP);
            }
        }
    }

    #[inline(always)]
    fn set_sge(&mut self, sge: ibv_sge) {
        self.set_data(false, |_, ring, wqe, at| Ok(put_sge(ring, wqe, at, &sge)));
    }

    fn set_sge_list(&mut self, list: &[ibv_sge]) {
        self.set_data(false, |producer, ring, (post, _), at| {
            if list.len() > producer.max_sge as usize {
                return Err(Errno::ENOMEM);
            }
            Ok(put_sges(ring, wqe::unit(post, at), list))
        });
    }

    #[inline(always)]
    fn set_inline_data(&mut self, data: &InlineData<'_>) {
        self.set_data(true, |producer, ring, (post, block), at| match data.only() {
            Some(bytes) => put_inline(ring, (post, block), at, producer.max_inline, bytes),
            None => put_inline_pieces(ring, wqe::unit(post, at), producer.max_inline, data),
        });
    }

    fn set_xrc_srqn(&mut self, remote_srqn: u32) {
        self.set(|producer, ring| {
            if producer.transport != transport::XRC {
                return Err(Errno::EINVAL);
            }
            ring.blocks.at(producer.builder.at).put(1, wqe::xrc(remote_srqn));
            Ok(())
        });
    }

    fn refuse(&mut self, errno: Errno) {
        self.producer.builder.failed.get_or_insert(errno);
    }

    #[inline(always)]
    fn complete(&mut self) -> Result<(), Errno> {
        let (producer, ring) = (&mut self.producer, self.owner.send.as_ref());
        if let Some(errno) = producer.builder.failed {
            producer.abort();
            // Before RTS nothing is taken, which stock tells of with another number here than in a post.
            let takes_none = |ring: &SendRing| ring.gate.limit() == 0 && !ring.gate.is_closed();
            return Err(if ring.is_none_or(takes_none) { Errno::EINVAL } else { errno });
        }
        let Some(ring) = ring else { return Ok(()) };
        if producer.builder.open {
            producer.end_without_data(ring);
        }
        let count = producer.head.wrapping_sub(producer.builder.saved.1);
        if count != 0 {
            let Builder { at, ds, inline, .. } = producer.builder;
            producer.ring(
                ring,
                (at, ring.blocks.at(at)),
                if count == 1 { producer.burst(ds, inline) } else { 0 },
            );
        }
        Ok(())
    }

    fn abort(&mut self) {
        self.producer.abort();
    }
}
