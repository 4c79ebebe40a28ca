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
use crate::hw::table::Table;
use crate::sync::{Guard, Locking, SpinLock};

/// What posts and completions change.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// Posted since the start, which is what the doorbell record says; and the place in the order of the next WQE to post.
    head: u16,
    /// The place of the last free one, which is never posted, so that the list never ends.
    tail: u16,
    /// The WQE there.
    last: u16,
}

/// What is noted of a place, both of the order and of the ring of WQEs: in one table, which a post finds once.
#[derive(Debug)]
struct Place {
    /// The free WQE that stands here in the order of the list, which their first segments tell the device. To go from link to link
    /// instead, as the device does, has each post wait for the load of the one before: 5 of 22 cycles.
    free: AtomicU16,
    /// Whether the device has the WQE that is here. It says which completions can be believed.
    posted: AtomicBool,
}

/// The queue, shared with the CQs whose completions name it. All of it but `closed` and `usual_sge` is reached under the list's lock.
#[derive(Debug)]
pub(super) struct Inner {
    wr_ids: Table<AtomicU64>,
    places: Table<Place>,
    units: Units,
    log_units: u32,
    max_sge: u32,
    list: SpinLock<List>,
    /// The device is not told of posts any more: they are kept until the SRQ is destroyed.
    closed: AtomicBool,
    /// `max_sge` of a queue that is open; then 0: what every usual post reads instead of `closed`.
    usual_sge: AtomicU32,
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
        let last = (count - 1) as u16;
        let queue = Inner {
            wr_ids: Table::new(count, || AtomicU64::new(0)),
            places: Table::new(count, || Place { free: AtomicU16::new(0), posted: AtomicBool::new(false) }),
            units,
            log_units,
            max_sge: shape.max_sge(),
            list: SpinLock::with(locking, List { head: 0, tail: last, last }),
            closed: AtomicBool::new(false),
            usual_sge: AtomicU32::new(shape.max_sge()),
            record: dbrec.record.clone(),
            _dbrec: dbrec,
        };
        for index in 0..=last {
            // ORDER: Relaxed: nobody else has it yet.
            queue.places.at(u32::from(index)).free.store(index, Ordering::Relaxed);
            if index < last {
                queue.link(index, index + 1);
            }
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

    /// Entries of a WQE, if posts are made and told as usual. Asked under the lock.
    #[inline(always)]
    fn usual(&self) -> Option<u32> {
        // ORDER: Relaxed, as in `publish`.
        let max_sge = if OUTLIVES_DEVICES { self.usual_sge.load(Ordering::Relaxed) } else { self.max_sge };
        (max_sge != 0).then_some(max_sge)
    }

    /// Links the WQE `next` behind that at `index`.
    #[inline(always)]
    fn link(&self, index: u16, next: u16) {
        self.units.put(u32::from(index) << self.log_units, wqe::srq_next(next));
    }

    /// The WQE at a place of the order.
    #[inline(always)]
    fn index(&self, place: u16) -> u16 {
        // ORDER: Relaxed: under the lock, as all of these.
        self.places.at(u32::from(place)).free.load(Ordering::Relaxed)
    }

    /// The WQE at `index` is posted.
    #[inline(always)]
    fn note(&self, index: u16, wr_id: u64) {
        let at = u32::from(index);
        // ORDER: Relaxed, as in `index`.
        self.wr_ids.at(at).store(wr_id, Ordering::Relaxed);
        // ORDER: Relaxed, as in `index`.
        self.places.at(at).posted.store(true, Ordering::Relaxed);
    }

    fn post_one(&self, list: &mut List, wr: &RecvWr<'_>) -> Result<(), Errno> {
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::EINVAL);
        }
        if list.head == list.tail {
            return Err(Errno::ENOMEM);
        }
        let index = self.index(list.head);
        self.note(index, wr.wr_id());
        let mut at = (u32::from(index) << self.log_units) + 1;
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
        let List { head, tail, .. } = *list;
        let (Some(max_sge), Some(sge)) = (self.usual(), wr.only_sge()) else { return false };
        if head == tail {
            return false;
        }
        let index = self.index(head);
        // First, for which the request itself is not needed any more: no register is saved.
        self.note(index, wr.wr_id());
        let at = (u32::from(index) << self.log_units) + 1;
        self.units.put(at, wqe::entry(sge));
        if max_sge > 1 {
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
        let Some(max_sge) = self.usual() else { return false };
        let (units, log_units) = (self.units.view(), self.log_units);
        let List { mut head, tail, .. } = *list;
        for wr in wrs {
            let Some(sge) = wr.only_sge() else { return false };
            if head == tail {
                return false;
            }
            let index = self.index(head);
            let at = (u32::from(index) << log_units) + 1;
            units.put(at, wqe::entry(sge));
            if max_sge > 1 {
                units.put(at + 1, wqe::DATA_END);
            }
            self.note(index, wr.wr_id());
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

    /// The receive in place `index`, if the device has it, has no more: whether that is so.
    #[inline(always)]
    fn give_back(&self, list: &mut List, index: u16) -> bool {
        let at = u32::from(index);
        let posted = &self.places.at(at).posted;
        // ORDER: Relaxed, as in `index`.
        if !self.places.has(at) || !posted.load(Ordering::Relaxed) {
            return false;
        }
        // ORDER: Relaxed, as in `index`.
        posted.store(false, Ordering::Relaxed);
        self.link(list.last, index);
        (list.tail, list.last) = (list.tail.wrapping_add(1), index);
        // ORDER: Relaxed, as in `index`.
        self.places.at(u32::from(list.tail)).free.store(index, Ordering::Relaxed);
        true
    }

    /// As [`Inner::complete`], under the lock, of the list or of a copy that takes its place: a barrier between two of them does not make
    /// the compiler load that again.
    #[inline(always)]
    pub(super) fn complete_in(&self, list: &mut List, index: u16) -> Option<u64> {
        // ORDER: Relaxed, as in `index`; without the lock the place might be posted again.
        self.give_back(list, index).then(|| self.wr_ids.at(u32::from(index)).load(Ordering::Relaxed))
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
        let to = self.index(list.head);
        self.note(to, wr_id);
        let (from, to) = (u32::from(index) << self.log_units, u32::from(to) << self.log_units);
        for at in 1..1 << self.log_units {
            self.units.put(to + at, self.units.get(from + at));
        }
        list.head = list.head.wrapping_add(1);
        self.publish(list.head);
        Some(())
    }

    /// Hands data that came in the completion to the buffers of the receive in place `index`.
    pub(super) fn scatter(&self, index: u16, data: &[u8]) -> Result<(), Errno> {
        let first = (u32::from(index) << self.log_units) + 1;
        if self.units.scatter(first, self.max_sge, data) == 0 { Ok(()) } else { Err(Errno::EIO) }
    }

    /// What was posted and has not completed, in no order.
    pub(super) fn outstanding(&self) -> Vec<Outstanding> {
        let _list = self.list.lock();
        // ORDER: Relaxed, as in `index`, both.
        let posted = self.places.iter().map(|place| place.posted.load(Ordering::Relaxed));
        let wr_ids = self.wr_ids.iter().map(|wr_id| wr_id.load(Ordering::Relaxed));
        let posted = posted.zip(wr_ids).filter(|(posted, _)| *posted);
        posted.map(|(_, wr_id)| Outstanding { wr_id, opcode: IBV_WC_RECV, fate: Fate::Unknown }).collect()
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
        self.inner.usual_sge.store(0, Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        self.inner.list.is_idle()
    }
}
