//! Shared receive queues: a list of WQEs, linked by index through their first segment. The device takes from its head, we add
//! at its tail what completed. Which of them are free, in the order of the list, stands in a ring of indices beside it, from
//! `head` to `tail`.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

use super::dbrec::Dbrec;
use super::ring::{Outstanding, Owner, RCV_DBR};
use super::shape::Srq as Shape;
use super::{Index, wqe};
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs};
use crate::config::OUTLIVES_DEVICES;
use crate::error::Errno;
use crate::family::{Refused, SharedReceiveQueue};
use crate::ha::ledger::Fate;
use crate::hw::barrier::udma_to_device_barrier;
use crate::hw::dma::{Record, Units};
use crate::hw::table::{Table, View};
use crate::sync::{Guard, Locking, SpinLock};

/// What posts and completions change.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// Posted since the start, which is what the doorbell record says; and the place in the order of the next WQE to post.
    head: u16,
    /// The place of the last free one, which is never posted, so that the list never ends.
    tail: u16,
    /// The unit that links the WQE there to its next.
    last: u32,
}

/// What is noted of a place, both of the order and of the ring of WQEs: in one table, which a post finds once.
#[derive(Debug)]
#[repr(align(16))]
struct Place {
    /// What was given with the WQE that is here.
    wr_id: AtomicU64,
    /// The unit of its first entry, behind that which links it. To shift by what the queue says is two instructions more, in
    /// a post and in a completion.
    first: u32,
    /// The free WQE that stands here in the order of the list, which their first segments tell the device. To go from link to link
    /// instead, as the device does, has each post wait for the load of the one before: 5 of 22 cycles.
    free: AtomicU16,
    /// Whether the device has the WQE that is here. It says which completions can be believed.
    posted: AtomicBool,
}

/// How usual posts are made.
mod usual {
    /// Open, and a WQE has room for one entry.
    pub(super) const ONE: u32 = 0;
    /// Open, and a WQE has room for more, so that entries are ended.
    pub(super) const ENDED: u32 = 1;
    /// The device is not told: none is made.
    pub(super) const CLOSED: u32 = 2;
}

/// The queue, shared with the CQs whose completions name it. All of it but `closed` and `usual` is reached under the list's lock.
#[derive(Debug)]
pub(super) struct Inner {
    places: Table<Place>,
    units: Units,
    max_sge: u32,
    list: SpinLock<List>,
    /// The device is not told of posts any more: they are kept until the SRQ is destroyed.
    closed: AtomicBool,
    /// What every usual post reads instead of `closed` and `max_sge`: one of [`usual`].
    usual: AtomicU32,
    /// That of `_dbrec`, at hand.
    record: Record,
    _dbrec: Arc<Dbrec>,
}

/// A shared receive queue.
#[derive(Debug)]
pub struct Srq {
    pub(super) inner: Arc<Inner>,
    /// The SRQ as XRC completions name it, and its user index.
    pub(super) owner: Option<Arc<Owner>>,
    pub(super) _index: Option<Index>,
}

impl Inner {
    /// A queue of `shape` in `units`, nothing posted.
    pub(super) fn new(shape: Shape, units: Units, dbrec: Arc<Dbrec>, locking: Locking) -> Inner {
        let Shape { count, log_units } = shape;
        let last = count - 1;
        // In the order in which they stand, and each free.
        let mut indices = 0..count;
        let place = || {
            let index = indices.next().unwrap_or_default();
            Place {
                wr_id: AtomicU64::new(0),
                first: (index << log_units) + 1,
                free: AtomicU16::new(index as u16),
                posted: AtomicBool::new(false),
            }
        };
        let queue = Inner {
            places: Table::new(count, place),
            units,
            max_sge: shape.max_sge(),
            list: SpinLock::with(locking, List { head: 0, tail: last as u16, last: last << log_units }),
            closed: AtomicBool::new(false),
            usual: AtomicU32::new(if shape.max_sge() == 1 { usual::ONE } else { usual::ENDED }),
            record: dbrec.record.clone(),
            _dbrec: dbrec,
        };
        for index in 0..last {
            queue.link(index << log_units, (index + 1) as u16);
        }
        queue
    }

    /// Tells the device that `head` receives were posted since the start.
    #[inline(always)]
    fn publish(&self, head: u16) {
        // ORDER: Relaxed: the closer waits for posts that are under way, as for a `Gate`.
        if !OUTLIVES_DEVICES || !self.closed.load(Ordering::Relaxed) {
            self.publish_open(head);
        }
    }

    /// The same, of a queue that was open under the lock.
    #[inline(always)]
    fn publish_open(&self, head: u16) {
        // The WQEs are in memory before the record lets the device read them.
        udma_to_device_barrier();
        self.record.store::<RCV_DBR>(u32::from(head));
    }

    /// How usual posts are made, one of [`usual`]. Asked under the lock.
    #[inline(always)]
    fn usual(&self) -> u32 {
        // ORDER: Relaxed, as in `publish`.
        self.usual.load(Ordering::Relaxed)
    }

    /// Links the WQE `next` behind that which the unit `last` begins.
    #[inline(always)]
    fn link(&self, last: u32, next: u16) {
        self.units.put(last, wqe::srq_next(next));
    }

    /// The WQE at a place of the order, which is posted: the unit of its first entry.
    #[inline(always)]
    fn note(places: View<'_, Place>, head: u16, wr_id: u64) -> u32 {
        // ORDER: Relaxed: under the lock, as all of these.
        let index = places.at(u32::from(head)).free.load(Ordering::Relaxed);
        let place = places.at(u32::from(index));
        // ORDER: Relaxed, as above.
        place.wr_id.store(wr_id, Ordering::Relaxed);
        // ORDER: Relaxed, as above.
        place.posted.store(true, Ordering::Relaxed);
        place.first
    }

    fn post_one(&self, list: &mut List, wr: &RecvWr<'_>) -> Result<(), Errno> {
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::EINVAL);
        }
        if list.head == list.tail {
            return Err(Errno::ENOMEM);
        }
        let mut at = Inner::note(self.places.view(), list.head, wr.wr_id());
        for sge in sges {
            self.units.put(at, wqe::entry(sge));
            at += 1;
        }
        if sges.len() < self.max_sge as usize {
            self.units.put(at, wqe::DATA_END);
        }
        list.head = list.head.wrapping_add(1);
        Ok(())
    }

    /// Posts a receive with one entry, if this thread owns the lock. False: it is something else, and nothing was done. It calls
    /// nothing, nor does the next.
    #[inline(always)]
    fn post_usual(&self, wr: &RecvWr<'_>) -> bool {
        let Some(mut list) = self.list.lock_own() else { return false };
        // By one test. The other two are asked for apart: as one choice of three, the usual one was found last.
        if self.usual() == usual::ONE {
            return self.post_open::<false>(&mut list, wr);
        }
        self.usual() == usual::ENDED && self.post_open::<true>(&mut list, wr)
    }

    /// The same, of a queue that is open, whose WQEs have room for more than one entry where `ENDED`.
    #[inline(always)]
    fn post_open<const ENDED: bool>(&self, list: &mut List, wr: &RecvWr<'_>) -> bool {
        let Some(sge) = wr.only_sge() else { return false };
        let head = list.head;
        if head == list.tail {
            return false;
        }
        // First, for which the request itself is not needed any more: no register is saved.
        let at = Inner::note(self.places.view(), head, wr.wr_id());
        self.units.put(at, wqe::entry(sge));
        if ENDED {
            self.units.put(at + 1, wqe::DATA_END);
        }
        let head = head.wrapping_add(1);
        list.head = head;
        self.publish_open(head);
        true
    }

    /// As [`Inner::post_usual`], of a list, not an empty one. False: there is something else, and nothing was done that counts.
    #[inline(always)]
    fn post_usual_list(&self, wrs: RecvWrs<'_>) -> bool {
        let Some(mut list) = self.list.lock_own() else { return false };
        let usual = self.usual();
        if usual == usual::CLOSED {
            return false;
        }
        let (units, places) = (self.units.view(), self.places.view());
        let List { mut head, tail, .. } = *list;
        for wr in wrs {
            let Some(sge) = wr.only_sge() else { return false };
            if head == tail {
                return false;
            }
            let at = Inner::note(places, head, wr.wr_id());
            units.put(at, wqe::entry(sge));
            if usual != usual::ONE {
                units.put(at + 1, wqe::DATA_END);
            }
            head = head.wrapping_add(1);
        }
        list.head = head;
        self.publish_open(head);
        true
    }

    fn post(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        let mut list = self.list.lock();
        let before = list.head;
        let mut result = Ok(());
        for wr in wrs {
            if let Err(errno) = self.post_one(&mut list, &wr) {
                result = Err(Refused { wr: wr.as_ptr(), errno });
                break;
            }
        }
        if list.head != before {
            self.publish(list.head);
        }
        result
    }

    /// As [`Inner::complete`], under the lock, of the list or of a copy that takes its place: a barrier between two of them does not make
    /// the compiler load that again.
    #[inline(always)]
    pub(super) fn complete_in(&self, list: &mut List, index: u16) -> Option<u64> {
        let place = self.places.at(u32::from(index));
        // ORDER: Relaxed, as in `note`.
        if !self.places.has(u32::from(index)) || !place.posted.load(Ordering::Relaxed) {
            return None;
        }
        // ORDER: Relaxed, as in `note`.
        place.posted.store(false, Ordering::Relaxed);
        list.tail = list.tail.wrapping_add(1);
        // ORDER: Relaxed, as in `note`.
        self.places.at(u32::from(list.tail)).free.store(index, Ordering::Relaxed);
        self.link(list.last, index);
        list.last = place.first - 1;
        // ORDER: Relaxed, as in `note`; without the lock the place might be posted again. Last, for which a register less is saved.
        Some(place.wr_id.load(Ordering::Relaxed))
    }

    /// [`Inner::complete`], if this thread owns the lock; it calls nothing.
    #[inline(always)]
    pub(super) fn complete_own(&self, index: u16) -> Option<u64> {
        self.complete_in(&mut *self.list.lock_own()?, index)
    }

    /// The receive in place `index` completed: its `wr_id`. `None` where the device does not have it.
    pub(super) fn complete(&self, index: u16) -> Option<u64> {
        self.complete_in(&mut self.list.lock(), index)
    }

    /// The list, for [`Inner::complete_in`].
    #[inline(always)]
    pub(super) fn list(&self) -> Guard<'_, List> {
        self.list.lock()
    }

    /// The receive in place `index` found a page missing, which is there now: it is posted once more, unseen by anybody.
    pub(super) fn repost(&self, index: u16) -> Option<()> {
        let mut list = self.list.lock();
        let wr_id = self.complete_in(&mut list, index)?;
        let (from, to) = (self.first(index), Inner::note(self.places.view(), list.head, wr_id));
        for at in 0..self.max_sge {
            self.units.put(to + at, self.units.get(from + at));
        }
        list.head = list.head.wrapping_add(1);
        self.publish(list.head);
        Some(())
    }

    /// The unit of the first entry of the receive in place `index`.
    fn first(&self, index: u16) -> u32 {
        self.places.at(u32::from(index)).first
    }

    /// Hands data that came in the completion to the buffers of the receive in place `index`.
    pub(super) fn scatter(&self, index: u16, data: &[u8]) -> Result<(), Errno> {
        if self.units.scatter(self.first(index), self.max_sge, data) == 0 { Ok(()) } else { Err(Errno::EIO) }
    }

    /// What was posted and has not completed, in no order.
    pub(super) fn outstanding(&self) -> Vec<Outstanding> {
        let _list = self.list.lock();
        // ORDER: Relaxed, as in `note`.
        let posted = self.places.iter().filter(|place| place.posted.load(Ordering::Relaxed));
        // ORDER: Relaxed, as in `note`.
        let wr_ids = posted.map(|place| place.wr_id.load(Ordering::Relaxed));
        wr_ids.map(|wr_id| Outstanding { wr_id, opcode: IBV_WC_RECV, fate: Fate::Unknown }).collect()
    }
}

impl Srq {
    /// What was posted and has not completed, in no order.
    #[must_use]
    pub fn outstanding(&self) -> Vec<Outstanding> {
        self.inner.outstanding()
    }
}

impl SharedReceiveQueue for Srq {
    #[inline(always)]
    fn post_usual_recv(&self, wr: RecvWr<'_>) -> bool {
        self.inner.post_usual(&wr)
    }

    #[inline(always)]
    fn post_usual_recvs(&self, wrs: RecvWrs<'_>) -> bool {
        self.inner.post_usual_list(wrs)
    }

    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        self.inner.post(wrs)
    }

    fn close(&self) {
        // ORDER: Relaxed, see `Inner::publish`, both.
        self.inner.closed.store(true, Ordering::Relaxed);
        self.inner.usual.store(usual::CLOSED, Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        self.inner.list.is_idle()
    }
}
