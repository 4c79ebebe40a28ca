//! What post and poll share of a queue: the application's word for each work request, and how far the queue has come.
//!
//! A post, under its queue's lock, writes entries and the doorbell record; a poll, under the completion queue's lock, reads
//! entries and moves `retired` (sends) or `tail` (receives). So each word has one writer, and the lock of the one side never
//! waits for the other.
//!
//! The outstanding work requests of a queue can be listed at any time from what is kept anyway ([`SendRing::outstanding`],
//! [`RecvRing::outstanding`], [`super::srq::Srq::outstanding`]): the doorbell record says how far posting came, `retired`
//! and `tail` how far completing, and each send entry where the next begins. The gate, which every post reads, tells how many
//! may be outstanding. Once it is closed, posts are kept: written into the ring as ever, but the device is not told, and
//! [`SendRing::kept`] and [`RecvRing::kept`] say how far they came in place of the record.

use std::sync::Arc;

use super::Index;
use super::dbrec::Dbrec;
use super::op::Noted;
use super::shape;
use super::srq;
use super::wqe;
use crate::error::Errno;
use crate::ha::gate::Gate;
use crate::ha::ledger::Fate;
pub use crate::ha::ledger::Outstanding;
use crate::ha::life::Life;
use crate::hw::barrier::udma_to_device_barrier;
use crate::hw::dma::{Block, BlockView, Blocks, Memory, Record, UnitView, Units};
use crate::hw::table::{Table, View};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The word of the doorbell record for receives, `MLX5_RCV_DBR`.
pub(super) const RCV_DBR: usize = 0;
/// The word of the doorbell record for sends, `MLX5_SND_DBR`.
pub(super) const SND_DBR: usize = 1;

/// What is noted of a posted send, in one word: `head` its number among the work requests, from [`FIRST`] on, `next` the block where
/// the WQE after it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) head: u32,
    pub(super) next: u16,
    pub(super) noted: Noted,
}

impl Meta {
    #[inline(always)]
    pub(super) const fn pack(self) -> u64 {
        self.head as u64 | (self.next as u64 | (self.noted.0 as u64) << 16) << 32
    }

    #[inline(always)]
    pub(super) const fn unpack(word: u64) -> Meta {
        Meta { head: word as u32, next: (word >> 32) as u16, noted: Noted((word >> 48) as u8) }
    }

    /// Before the first: the next work request is number [`FIRST`], at block 0. Its word is 0, so that slots nobody has written to
    /// are right as they come, in pages that nobody has touched.
    const NONE: Meta = Meta { head: FIRST - 1, next: 0, noted: Noted(0) };
}

/// The number of a send queue's first work request.
pub(super) const FIRST: u32 = 1;

/// One block of the send queue that a WQE may begin in: what a post notes of it, and a poll reads. 16 bytes, so that both are in
/// one cache line.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), derive(zerocopy::FromZeros))]
pub(super) struct Slot {
    wr_id: AtomicU64,
    meta: AtomicU64,
}

impl Slot {
    /// Notes the application's word.
    #[inline(always)]
    pub(super) fn note_id(&self, wr_id: u64) {
        // ORDER: Relaxed: the device's completion, which follows the doorbell, is what tells the poll to read.
        self.wr_id.store(wr_id, Ordering::Relaxed);
    }

    /// Notes the rest.
    #[inline(always)]
    pub(super) fn note(&self, meta: Meta) {
        // ORDER: Relaxed, as in `note_id`.
        self.meta.store(meta.pack(), Ordering::Relaxed);
    }

    /// Notes that the next WQE begins at `next`, and leaves the rest.
    #[inline(always)]
    pub(super) fn note_next(&self, next: u16) {
        // ORDER: Relaxed, as in `note_id`.
        self.note(Meta { next, ..Meta::unpack(self.meta.load(Ordering::Relaxed)) });
    }
}

/// How far posts came that were kept, once there were any, of 16 bits; until then the doorbell record says it.
#[derive(Debug)]
struct Kept {
    up_to: AtomicU32,
    life: Arc<Life>,
}

impl Kept {
    /// In place of a number: there were none.
    const NONE: u32 = u32::MAX;

    fn new(life: Arc<Life>) -> Kept {
        Kept { up_to: AtomicU32::new(Kept::NONE), life }
    }

    fn renew(&mut self) {
        self.up_to = AtomicU32::new(Kept::NONE);
    }

    /// Posts up to `end` were kept.
    #[cold]
    fn note(&self, end: u32) {
        // ORDER: Release, partner is the Acquire in `end`: what was noted of them is seen.
        self.up_to.store(end & 0xffff, Ordering::Release);
        self.life.keep();
    }

    /// How far posts came, where the record says `told`.
    fn end(&self, told: impl FnOnce() -> u32) -> u16 {
        // ORDER: Acquire, partner is the Release in `note`.
        match self.up_to.load(Ordering::Acquire) {
            Kept::NONE => told() as u16,
            kept => kept as u16,
        }
    }

    /// The queue is empty, as the record says by `clear`; not that of a device that may be dying, which may still look at it.
    fn reset(&self, clear: impl FnOnce()) {
        if self.life.is_over() {
            // ORDER: Release, as in `note`.
            self.up_to.store(0, Ordering::Release);
        } else {
            clear();
        }
    }
}

/// The shared part of a send queue.
#[derive(Debug)]
pub(super) struct SendRing {
    slots: Table<Slot>,
    /// The [`Meta`] of the last work request that completed.
    retired: AtomicU64,
    /// Work requests that may be outstanding; 0 in states in which nothing is taken.
    pub(super) gate: Gate,
    /// In blocks.
    kept: Kept,
    /// Units of a WQE in front of the operation's own.
    prefix: u32,
    pub(super) blocks: Blocks,
    pub(super) record: Record,
}

impl SendRing {
    /// A ring whose WQEs are in `blocks`, each with `prefix` units in front of the operation's own; `slots` has one for each
    /// block, all zero.
    pub(super) fn new(
        slots: Table<Slot>,
        prefix: u32,
        blocks: Blocks,
        record: Record,
        life: Arc<Life>,
    ) -> SendRing {
        const { assert!(Meta::NONE.pack() == 0) };
        SendRing {
            slots,
            retired: AtomicU64::new(Meta::NONE.pack()),
            gate: Gate::new(),
            kept: Kept::new(life),
            prefix,
            blocks,
            record,
        }
    }

    /// Posts up to block `post` were kept.
    #[cold]
    pub(super) fn keep(&self, post: u32) {
        self.kept.note(post);
    }

    /// The block up to which work requests were posted, of 16 bits.
    fn end(&self) -> u16 {
        self.kept.end(|| self.record.load::<SND_DBR>())
    }

    /// The work request after the one whose [`Meta`] is `last`, if it was posted: its slot and what was noted.
    fn after(&self, last: Meta) -> Option<(&Slot, Meta)> {
        if last.next == self.end() {
            return None;
        }
        let slot = self.slots.at(u32::from(last.next));
        // ORDER: Relaxed: noted before the record, or before `kept`.
        let meta = Meta::unpack(slot.meta.load(Ordering::Relaxed));
        (meta.head == last.head.wrapping_add(1)).then_some((slot, meta))
    }

    /// What was posted in `slot`.
    fn told(slot: &Slot, meta: Meta) -> Outstanding {
        // ORDER: Relaxed, as for `meta` in `after`.
        let (wr_id, opcode) = (slot.wr_id.load(Ordering::Relaxed), meta.noted.opcode());
        Outstanding { wr_id, opcode, fate: Fate::Unknown }
    }

    /// Strikes the oldest work request off that has not completed, to be flushed. Under the lock of the CQ it completes to.
    pub(super) fn flush(&self) -> Option<Outstanding> {
        // ORDER: Relaxed: only polls write it, under the CQ's lock.
        let last = Meta::unpack(self.retired.load(Ordering::Relaxed));
        let (slot, meta) = self.after(last)?;
        let found = SendRing::told(slot, meta);
        // ORDER: Release, partner is the Acquire in `tail`.
        self.retired.store(meta.pack(), Ordering::Release);
        Some(found)
    }

    /// How many of the outstanding ones a completion of the WQE at `counter` speaks of.
    pub(super) fn covered(&self, counter: u16) -> usize {
        // ORDER: Relaxed: noted before the doorbell, and the completion came after it.
        let meta = Meta::unpack(self.slots.at(u32::from(counter)).meta.load(Ordering::Relaxed));
        meta.head.wrapping_add(1).wrapping_sub(self.tail()) as usize
    }

    /// Whether anything is outstanding.
    pub(super) fn owes(&self) -> bool {
        // ORDER: Acquire, as in `tail`.
        self.after(Meta::unpack(self.retired.load(Ordering::Acquire))).is_some()
    }

    /// The number of the oldest work request that has not completed.
    #[inline(always)]
    pub(super) fn tail(&self) -> u32 {
        // ORDER: Acquire, partner is the Release in `complete`: the entry it freed was read before.
        Meta::unpack(self.retired.load(Ordering::Acquire)).head.wrapping_add(1)
    }

    /// What is noted of the WQE that begins at `block`.
    #[inline(always)]
    pub(super) fn slot(&self, block: u32) -> &Slot {
        self.slots.at(block)
    }

    /// The same, and the WQEs.
    #[inline(always)]
    pub(super) fn rows(&self) -> Rows<'_> {
        Rows { blocks: self.blocks.view(), slots: self.slots.view() }
    }

    /// The work request whose WQE began at `counter` completed, and with it all before it: its `wr_id` and what was noted.
    /// `None` where no such work request is outstanding.
    #[inline(always)]
    pub(super) fn complete(&self, counter: u16) -> Option<(u64, Meta)> {
        let slot = self.slots.at(u32::from(counter));
        // ORDER: Relaxed: `note` came before the doorbell, and the completion after it.
        let word = slot.meta.load(Ordering::Relaxed);
        let meta = Meta::unpack(word);
        // ORDER: Relaxed: only polls write it, under the CQ's lock.
        let last = Meta::unpack(self.retired.load(Ordering::Relaxed)).head;
        // Completed before, or never posted: the device repeats itself, or names a block inside of a WQE.
        if !self.slots.has(meta.head.wrapping_sub(last).wrapping_sub(1)) {
            return None;
        }
        // ORDER: Relaxed, as for `meta`.
        let wr_id = slot.wr_id.load(Ordering::Relaxed);
        // ORDER: Release, partner is the Acquire in `tail`.
        self.retired.store(word, Ordering::Release);
        Some((wr_id, meta))
    }

    /// The queue is empty, as after a reset. Nobody posts or polls it meanwhile.
    pub(super) fn reset(&self) {
        self.clear();
        // ORDER: Release, partner is the Acquire in `tail`.
        self.retired.store(Meta::NONE.pack(), Ordering::Release);
        self.kept.reset(|| self.record.store::<SND_DBR>(0));
    }

    /// Nothing is noted of any block.
    fn clear(&self) {
        for slot in self.slots.iter() {
            // ORDER: Relaxed: nobody looks.
            slot.meta.store(Meta::NONE.pack(), Ordering::Relaxed);
        }
    }

    /// As new, with `prefix` as in [`SendRing::new`], but for what is in the blocks, and for the record.
    fn renew(&mut self, prefix: u32) {
        self.clear();
        self.retired = AtomicU64::new(Meta::NONE.pack());
        self.gate = Gate::new();
        self.kept.renew();
        self.prefix = prefix;
    }

    /// What was posted and has not completed, in posting order. Nobody posts or polls meanwhile.
    pub(super) fn outstanding(&self) -> Vec<Outstanding> {
        let mut found = Vec::new();
        // ORDER: Acquire, as in `tail`.
        let mut last = Meta::unpack(self.retired.load(Ordering::Acquire));
        // A record that is not written any more says what the device was told of; once that has ended it lies behind.
        let told = self.record.load::<SND_DBR>() as u16;
        let mut kept = told.wrapping_sub(last.next) > self.end().wrapping_sub(last.next);
        while let Some((slot, meta)) = self.after(last).filter(|_| found.len() < self.slots.len() as usize) {
            kept |= last.next == told;
            let fate = if kept { Fate::NotExecuted } else { Fate::Unknown };
            found.push(Outstanding { fate, ..SendRing::told(slot, meta) });
            last = meta;
        }
        found
    }

    /// Hands data that came in the completion to the buffers of the read or atomic at `counter`.
    pub(super) fn scatter(&self, counter: u16, data: &[u8]) -> Result<(), Errno> {
        let first = u32::from(counter) * wqe::UNITS_PER_BB;
        let [ctrl, _] = self.blocks.units().get(first);
        // The remote address, and the operands of an atomic.
        let own = match wqe::opcode_of(ctrl) {
            wqe::opcode::RDMA_READ => 1,
            wqe::opcode::ATOMIC_CS | wqe::opcode::ATOMIC_FA => 2,
            _ => return Err(Errno::EIO),
        };
        let skip = self.prefix + own;
        let count = wqe::ds_of(ctrl).saturating_sub(skip);
        if self.blocks.units().scatter(first + skip, count, data) == 0 { Ok(()) } else { Err(Errno::EIO) }
    }
}

/// Where the WQEs of a send queue are, and what is noted of them: asked anew each time, or held by value, so that what a post stores
/// does not make the compiler load it again for the next one of a list. (For one post alone the former is better: registers are short.)
pub(super) trait Place<'a>: Copy {
    fn block(self, at: u32) -> Block<'a>;
    fn blocks(self) -> BlockView<'a>;
    fn slot(self, at: u32) -> &'a Slot;
}

impl<'a> Place<'a> for &'a SendRing {
    #[inline(always)]
    fn block(self, at: u32) -> Block<'a> {
        self.blocks.at(at)
    }

    #[inline(always)]
    fn blocks(self) -> BlockView<'a> {
        self.blocks.view()
    }

    #[inline(always)]
    fn slot(self, at: u32) -> &'a Slot {
        self.slots.at(at)
    }
}

/// See [`Place`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) blocks: BlockView<'a>,
    slots: View<'a, Slot>,
}

impl<'a> Place<'a> for Rows<'a> {
    #[inline(always)]
    fn block(self, at: u32) -> Block<'a> {
        self.blocks.at_fetched(at)
    }

    #[inline(always)]
    fn blocks(self) -> BlockView<'a> {
        self.blocks
    }

    #[inline(always)]
    fn slot(self, at: u32) -> &'a Slot {
        self.slots.at(at)
    }
}

/// The shared part of a receive queue that is a QP's or a WQ's own.
#[derive(Debug)]
pub(super) struct RecvRing {
    wr_ids: Table<AtomicU64>,
    /// log2 of a WQE's units.
    log_units: u32,
    /// Receives that completed.
    tail: AtomicU32,
    /// Receives that may be outstanding; 0 in states in which nothing is taken.
    pub(super) gate: Gate,
    /// In receives, counted from the start.
    kept: Kept,
    pub(super) units: Units,
    pub(super) record: Record,
}

impl RecvRing {
    /// A ring of as many WQEs as `wr_ids` has places, of `1 << log_units` units.
    pub(super) fn new(
        wr_ids: Table<AtomicU64>,
        log_units: u32,
        units: Units,
        record: Record,
        life: Arc<Life>,
    ) -> RecvRing {
        RecvRing {
            wr_ids,
            log_units,
            tail: AtomicU32::new(0),
            gate: Gate::new(),
            kept: Kept::new(life),
            units,
            record,
        }
    }

    /// Lets the device read the WQEs up to receive number `head`.
    #[inline(always)]
    pub(super) fn publish(&self, head: u32) {
        // The WQEs are in memory before the record lets the device read them.
        udma_to_device_barrier();
        self.record.store::<RCV_DBR>(head & 0xffff);
    }

    /// Where the WQEs are, and their `wr_id`.
    #[inline(always)]
    pub(super) fn rows(&self) -> RecvRows<'_> {
        RecvRows { units: self.units.view(), wr_ids: self.wr_ids.view(), log_units: self.log_units }
    }

    /// WQEs in the ring.
    #[inline(always)]
    pub(super) fn count(&self) -> u32 {
        self.wr_ids.len()
    }

    /// Receives up to number `head` were kept.
    #[cold]
    pub(super) fn keep(&self, head: u32) {
        self.kept.note(head);
    }

    /// How many were posted since the start, of 16 bits.
    fn end(&self) -> u16 {
        self.kept.end(|| self.record.load::<RCV_DBR>())
    }

    fn told(&self, number: u32) -> Outstanding {
        // ORDER: Relaxed: noted before the record, or before `kept`.
        let wr_id = self.wr_ids.at(number).load(Ordering::Relaxed);
        Outstanding { wr_id, opcode: crate::abi::public::IBV_WC_RECV, fate: Fate::Unknown }
    }

    /// Strikes the oldest receive off that has not completed, to be flushed. Under the lock of the CQ it completes to.
    pub(super) fn flush(&self) -> Option<Outstanding> {
        // ORDER: Relaxed: only polls write it, under the CQ's lock.
        let tail = self.tail.load(Ordering::Relaxed);
        if self.end() == tail as u16 {
            return None;
        }
        let found = self.told(tail);
        // ORDER: Release, partner is the Acquire in `tail`.
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Some(found)
    }

    /// Whether anything is outstanding.
    pub(super) fn owes(&self) -> bool {
        self.end() != self.tail() as u16
    }

    #[inline(always)]
    pub(super) fn tail(&self) -> u32 {
        // ORDER: Acquire, partner is the Release in `complete`: the entry it freed was read before.
        self.tail.load(Ordering::Acquire)
    }

    /// The receive in place `counter` completed: its `wr_id`. `None` where none is outstanding.
    #[inline(always)]
    pub(super) fn complete(&self, counter: u16) -> Option<u64> {
        // ORDER: Relaxed: only polls write it, under the CQ's lock.
        let tail = self.tail.load(Ordering::Relaxed);
        if self.record.load::<RCV_DBR>() as u16 == tail as u16 {
            return None;
        }
        // ORDER: Relaxed, see [`RecvRows::note`].
        let wr_id = self.wr_ids.at(u32::from(counter)).load(Ordering::Relaxed);
        // ORDER: Release, partner is the Acquire in `tail`.
        self.tail.store(tail.wrapping_add(1), Ordering::Release);
        Some(wr_id)
    }

    /// The queue is empty, as after a reset. Nobody posts or polls it meanwhile.
    pub(super) fn reset(&self) {
        // ORDER: Release, partner is the Acquire in `tail`.
        self.tail.store(0, Ordering::Release);
        self.kept.reset(|| self.record.store::<RCV_DBR>(0));
    }

    /// As new, but for what is in the units and beside them, and for the record.
    fn renew(&mut self) {
        self.tail = AtomicU32::new(0);
        self.gate = Gate::new();
        self.kept.renew();
    }

    /// What was posted and has not completed, in posting order. Nobody posts or polls meanwhile.
    pub(super) fn outstanding(&self) -> Vec<Outstanding> {
        let tail = self.tail();
        let posted = self.end().wrapping_sub(tail as u16);
        // As for sends: what the device was told of may have ended.
        let told = Some((self.record.load::<RCV_DBR>() as u16).wrapping_sub(tail as u16));
        let told = u32::from(told.filter(|told| *told <= posted).unwrap_or(0));
        let fate = |at: u32| if at < told { Fate::Unknown } else { Fate::NotExecuted };
        (0..u32::from(posted))
            .map(|at| Outstanding { fate: fate(at), ..self.told(tail.wrapping_add(at)) })
            .collect()
    }

    /// Hands data that came in the completion to the buffers of the receive in place `counter`.
    pub(super) fn scatter(&self, counter: u16, data: &[u8]) -> Result<(), Errno> {
        let first = self.rows().first_unit(u32::from(counter));
        if self.units.scatter(first, 1 << self.log_units, data) == 0 { Ok(()) } else { Err(Errno::EIO) }
    }
}

/// As [`Rows`], of a receive queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecvRows<'a> {
    pub(super) units: UnitView<'a>,
    wr_ids: View<'a, AtomicU64>,
    log_units: u32,
}

impl RecvRows<'_> {
    /// Where the WQE of receive number `number` begins.
    #[inline(always)]
    pub(super) fn first_unit(self, number: u32) -> u32 {
        // The ring holds whole WQEs: what is beyond its end is cut off.
        number << self.log_units
    }

    #[inline(always)]
    pub(super) fn note(self, head: u32, wr_id: u64) {
        // ORDER: Relaxed: the device's completion tells the poll to read.
        self.wr_ids.at(head).store(wr_id, Ordering::Relaxed);
    }
}

/// Where a QP's receives come from.
#[derive(Debug)]
pub(super) enum Receives {
    None,
    Own(RecvRing),
    Shared(Arc<srq::Inner>),
}

/// A QP, an XRC SRQ or a WQ, as completions name it: what a CQ needs to know of it.
#[derive(Debug)]
pub(super) struct Owner {
    /// What completions call it: see [`Key`].
    pub(super) key: Key,
    pub(super) send: Option<SendRing>,
    pub(super) receives: Receives,
    /// The QP's number, for completions that we make.
    pub(super) qpn: u32,
    /// Received packets carry a checksum verdict.
    pub(super) csum: AtomicBool,
    /// Of a QP that the device knows of.
    pub(super) parts: Option<Parts>,
}

/// What the rings of a QP are in, and its name: nobody else gets them as long as it is there.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) sizes: shape::Qp,
    pub(super) memory: Arc<Memory>,
    pub(super) dbrec: Dbrec,
    /// Given back when the CQs have forgotten it.
    pub(super) index: Option<Index>,
}

impl Owner {
    #[inline]
    pub(super) fn checks_sums(&self) -> bool {
        // ORDER: Relaxed: set by a modify long before a packet comes.
        self.csum.load(Ordering::Relaxed)
    }

    /// Whether its queues may be another QP's when it is destroyed: not those that an SRQ belongs to, nor a device that is dying.
    pub(super) fn serves_again(&self) -> bool {
        let life = match (&self.send, &self.receives) {
            (_, Receives::Shared(_)) | (None, Receives::None) => return false,
            (Some(send), _) => &send.kept.life,
            (None, Receives::Own(ring)) => &ring.kept.life,
        };
        !life.is_over()
    }

    /// As new, for a QP whose WQEs have `prefix` units in front of the operation's own; it has yet to be named.
    pub(super) fn renew(&mut self, prefix: u32) {
        if let Some(send) = &mut self.send {
            send.renew(prefix);
        }
        if let Receives::Own(ring) = &mut self.receives {
            ring.renew();
        }
        if let Some(parts) = &self.parts {
            parts.dbrec.record.store::<RCV_DBR>(0);
            parts.dbrec.record.store::<SND_DBR>(0);
        }
        self.csum = AtomicBool::new(false);
    }
}

/// The number by which completions name their queue: with CQE version 1 the user index that we chose, with version 0 the number of
/// the QP or SRQ. Each kind is told from the others by a bit above the 24 of the number itself, and user indices have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key(pub(super) u32);

impl Key {
    pub(super) const fn user_index(uidx: u32) -> Key {
        Key(uidx)
    }

    pub(super) const fn qp(qpn: u32) -> Key {
        Key(qpn | 1 << 30)
    }

    pub(super) const fn srq(srqn: u32) -> Key {
        Key(srqn | 1 << 31)
    }
}
