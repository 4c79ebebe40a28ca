//! What a queue still owes once its device is gone.
//!
//! The kernel takes a work request off its ring as it completes it, but when the QP is destroyed it takes off what is left
//! too, and says nothing. So before that the ring is copied to memory of our own, from which posts and flushes go on, and in
//! the kernel's each outstanding work request gets a tag in place of its `wr_id`: the completions that still come name
//! exactly what they complete. [`Owed::settle`] gives them their `wr_id` back, and strikes off what they retire.
//!
//! The copy is used as the ring was: the post, under its queue's lock, produces; the poll, under the CQ's lock, consumes.
//! Neither waits for the other.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::OnceLock;

use crate::abi::public::*;
use crate::error::Errno;
use crate::ha::ledger::{Fate, Outstanding};
use crate::hw::shared_queue::{Garbage, SharedQueue};
use crate::uapi::rxe as wire;

const WR_ID: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, wr_id);
const OPCODE: usize = offset_of!(wire::SendWqe, wr) + offset_of!(wire::SendWr, opcode);

// Both kinds of WQE begin with it, and a CQE does.
const _: () = assert!(WR_ID == 0 && offset_of!(wire::RecvWqe, wr_id) == 0);
const _: () = assert!(offset_of!(crate::uapi::wire::Wc, wr_id) == 0);

/// What a queue and the CQ that it completes to share; see the module.
#[derive(Debug)]
pub(super) struct Owed {
    qp_num: u32,
    /// A send queue; else a receive queue.
    sends: bool,
    left: OnceLock<Left>,
}

#[derive(Debug)]
struct Left {
    /// The copy.
    ring: SharedQueue,
    /// Those that the kernel had not completed: where they begin in the ring, and how many they are.
    first: u32,
    count: u32,
    /// The tag of the first one; the others follow.
    tags: u64,
}

/// The first of 2^32 tags that nobody else has. Their upper half begins at a random number, so that a `wr_id` of the application's is not
/// one of them.
fn tags() -> u64 {
    static NEXT: OnceLock<AtomicU32> = OnceLock::new();
    let next =
        NEXT.get_or_init(|| AtomicU32::new(std::hash::RandomState::new().build_hasher().finish() as u32));
    // ORDER: Relaxed: a number.
    u64::from(next.fetch_add(1, Ordering::Relaxed)) << 32
}

impl Owed {
    pub(super) fn new(qp_num: u32, sends: bool) -> Owed {
        Owed { qp_num, sends, left: OnceLock::new() }
    }

    pub(super) fn qp_num(&self) -> u32 {
        self.qp_num
    }

    /// Puts a copy in place of `ring`, under the queue's lock, and gives the kernel's back; `producer` is our own index. Nothing is owed where
    /// `forgotten`.
    pub(super) fn freeze(
        &self,
        ring: &mut SharedQueue,
        producer: u32,
        forgotten: bool,
    ) -> Result<SharedQueue, Errno> {
        let garbage = |_: Garbage| Errno::EIO;
        let (first, told) = (ring.load_consumer().map_err(garbage)?, ring.load_producer().map_err(garbage)?);
        let copy = ring.copy()?;
        copy.store_producer(producer);
        copy.store_consumer(if forgotten { producer } else { first });
        let (count, tags) = (ring.between(first, told), tags());
        let left = Left { ring: copy.share(), first, count, tags };
        // One queue is frozen once.
        self.left.set(left).map_err(|_| Errno::EBUSY)?;
        for at in 0..count {
            ring.slot(first.wrapping_add(at)).put(WR_ID, &(tags + u64::from(at)))?;
        }
        Ok(core::mem::replace(ring, copy))
    }

    /// The kernel's ring says how far it came: what was completed before the tags were written is not owed.
    pub(super) fn catch_up(&self, kernel: &SharedQueue) {
        let Some(left) = self.left.get() else { return };
        if let Ok(consumer) = kernel.load_consumer() {
            left.retire(left.ring.between(left.first, consumer));
        }
    }

    /// The first tag.
    pub(super) fn tags(&self) -> Option<u64> {
        self.left.get().map(|left| left.tags)
    }

    /// The `wr_id` behind the tag in a completion of `qp_num`, which retires it. Under the CQ's lock, as all that follow.
    pub(super) fn settle(&self, qp_num: u32, tag: u64) -> Option<u64> {
        let left = self.left.get()?;
        let at = tag.wrapping_sub(left.tags);
        if qp_num != self.qp_num || at >= u64::from(left.count) {
            return None;
        }
        let at = at as u32;
        left.retire(at + 1);
        left.ring.slot(left.first.wrapping_add(at)).get(WR_ID).ok()
    }

    /// Strikes the oldest one off, to be flushed.
    pub(super) fn flush(&self) -> Option<Outstanding> {
        let ring = &self.left.get()?.ring;
        let (consumer, producer) = (ring.load_consumer().ok()?, ring.load_producer().ok()?);
        if consumer == producer {
            return None;
        }
        let found = told(ring, consumer, self.sends);
        ring.store_consumer(ring.next(consumer));
        Some(found)
    }

    /// Nothing is owed any more: the QP was reset.
    pub(super) fn forget(&self) {
        if let Some(Left { ring, .. }) = self.left.get()
            && let Ok(producer) = ring.load_producer()
        {
            ring.store_consumer(producer);
        }
    }

    /// Whether there is one.
    pub(super) fn owes(&self) -> bool {
        self.left.get().is_some_and(|Left { ring, .. }| ring.load_consumer() != ring.load_producer())
    }
}

impl Left {
    /// The first `count` are not owed.
    fn retire(&self, count: u32) {
        let count = count.min(self.count);
        if self.ring.load_consumer().is_ok_and(|now| self.ring.between(self.first, now) < count) {
            self.ring.store_consumer(self.first.wrapping_add(count));
        }
    }
}

/// What was posted in the slot at `index`.
fn told(ring: &SharedQueue, index: u32, sends: bool) -> Outstanding {
    let slot = ring.slot(index);
    let opcode = if sends { wc_opcode(slot.get(OPCODE).unwrap_or_default()) } else { IBV_WC_RECV };
    // Every slot has room for these.
    Outstanding { wr_id: slot.get(WR_ID).unwrap_or_default(), opcode, fate: Fate::Unknown }
}

/// What a queue has outstanding, `told` of it to the kernel and the rest up to `producer` kept, in posting order.
pub(super) fn outstanding(ring: &SharedQueue, producer: u32, told_to: u32, sends: bool) -> Vec<Outstanding> {
    let Ok(first) = ring.load_consumer() else { return Vec::new() };
    let (count, published) = (ring.between(first, producer), ring.between(first, told_to));
    (0..count)
        .map(|at| {
            let fate = if at < published { Fate::Unknown } else { Fate::NotExecuted };
            Outstanding { fate, ..told(ring, first.wrapping_add(at), sends) }
        })
        .collect()
}

/// `ibv_wc_opcode` of `ibv_wr_opcode`.
fn wc_opcode(opcode: u32) -> u32 {
    match opcode {
        IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM => IBV_WC_RDMA_WRITE,
        IBV_WR_RDMA_READ => IBV_WC_RDMA_READ,
        IBV_WR_ATOMIC_CMP_AND_SWP => IBV_WC_COMP_SWAP,
        IBV_WR_ATOMIC_FETCH_AND_ADD => IBV_WC_FETCH_ADD,
        IBV_WR_BIND_MW => IBV_WC_BIND_MW,
        IBV_WR_LOCAL_INV => IBV_WC_LOCAL_INV,
        IBV_WR_FLUSH => IBV_WC_FLUSH,
        IBV_WR_ATOMIC_WRITE => IBV_WC_ATOMIC_WRITE,
        _ => IBV_WC_SEND,
    }
}
