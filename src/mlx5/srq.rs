//! Shared receive queues: a list of WQEs, linked by index through their first segment. The device takes from its head, we add
//! at its tail what completed.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
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
use crate::hw::dma::Units;
use crate::hw::table::Table;
use crate::sync::{Locking, SpinLock};

/// What posts and completions change.
#[derive(Debug)]
struct List {
    /// The next WQE to post; the last of the free ones is never posted, so that the list never ends.
    head: u16,
    tail: u16,
    /// Posted since the start: the doorbell record.
    counter: u16,
}

/// The queue, shared with the CQs whose completions name it. All of it but `closed` is reached under the list's lock.
#[derive(Debug)]
pub(super) struct Inner {
    wr_ids: Table<AtomicU64>,
    /// The WQE after each, as its first segment says it to the device, which is not asked: to find the next one there took a
    /// post 10 cycles, of which none could be done meanwhile.
    links: Table<AtomicU16>,
    /// Whether the device has the WQE. It says which completions can be believed.
    posted: Table<AtomicBool>,
    units: Units,
    log_units: u32,
    max_sge: u32,
    list: SpinLock<List>,
    /// The device is not told of posts any more: they are kept until the SRQ is destroyed.
    closed: AtomicBool,
    pub(super) dbrec: Arc<Dbrec>,
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
            links: Table::new(count, || AtomicU16::new(0)),
            posted: Table::new(count, || AtomicBool::new(false)),
            units,
            log_units,
            max_sge: shape.max_sge(),
            list: SpinLock::with(locking, List { head: 0, tail: last, counter: 0 }),
            closed: AtomicBool::new(false),
            dbrec,
        };
        (0..last).for_each(|index| queue.link(index, index + 1));
        queue
    }

    /// Tells the device that `counter` receives were posted since the start.
    #[inline(always)]
    fn publish(&self, counter: u16) {
        // ORDER: Relaxed: the closer waits for posts that are under way, as for a `Gate`.
        if !OUTLIVES_DEVICES || !self.closed.load(Ordering::Relaxed) {
            // The WQEs are in memory before the record lets the device read them.
            udma_to_device_barrier();
            self.dbrec.record.store::<RCV_DBR>(u32::from(counter));
        }
    }

    /// Links `next` behind `index`.
    #[inline(always)]
    fn link(&self, index: u16, next: u16) {
        // ORDER: Relaxed: under the lock, as all of these.
        self.links.at(u32::from(index)).store(next, Ordering::Relaxed);
        self.units.put(u32::from(index) << self.log_units, wqe::srq_next(next));
    }

    /// The WQE at `index`, the list's first, is posted: which is the first one then.
    #[inline(always)]
    fn take(&self, index: u16, wr_id: u64) -> u16 {
        let at = u32::from(index);
        // ORDER: Relaxed, as in `link`.
        self.wr_ids.at(at).store(wr_id, Ordering::Relaxed);
        // ORDER: Relaxed, as in `link`.
        self.posted.at(at).store(true, Ordering::Relaxed);
        // ORDER: Relaxed, as in `link`.
        self.links.at(at).load(Ordering::Relaxed)
    }

    fn post_one(&self, list: &mut List, wr: &RecvWr<'_>) -> Result<(), Errno> {
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::EINVAL);
        }
        let index = list.head;
        if index == list.tail {
            return Err(Errno::ENOMEM);
        }
        list.head = self.take(index, wr.wr_id());
        let mut at = (u32::from(index) << self.log_units) + 1;
        for sge in sges {
            self.units.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
            at += 1;
        }
        if sges.len() < self.max_sge as usize {
            self.units.put(at, wqe::DATA_END);
        }
        list.counter = list.counter.wrapping_add(1);
        Ok(())
    }

    /// Posts a list of receives with one entry each, not an empty one, if this thread owns the lock. False: there is something else, and
    /// nothing was done that counts. It calls nothing.
    #[inline(always)]
    fn post_usual(&self, wrs: RecvWrs<'_>) -> bool {
        let Some(mut list) = self.list.lock_own() else { return false };
        let (units, log_units, max_sge) = (self.units.view(), self.log_units, self.max_sge);
        let List { mut head, tail, mut counter } = *list;
        for wr in wrs {
            let Some(sge) = wr.only_sge() else { return false };
            if head == tail || max_sge == 0 {
                return false;
            }
            let at = (u32::from(head) << log_units) + 1;
            units.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
            if max_sge > 1 {
                units.put(at + 1, wqe::DATA_END);
            }
            head = self.take(head, wr.wr_id());
            counter = counter.wrapping_add(1);
        }
        (list.head, list.counter) = (head, counter);
        self.publish(counter);
        true
    }

    fn post(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        let mut list = self.list.lock();
        let before = list.counter;
        let mut result = Ok(());
        for wr in wrs {
            if let Err(errno) = self.post_one(&mut list, &wr) {
                result = Err(Refused { wr: wr.as_ptr(), errno });
                break;
            }
        }
        if list.counter != before {
            self.publish(list.counter);
        }
        result
    }

    /// The receive in place `index`, if the device has it, has no more: whether that is so.
    #[inline(always)]
    fn give_back(&self, list: &mut List, index: u16) -> bool {
        let at = u32::from(index);
        let posted = self.posted.at(at);
        // ORDER: Relaxed, as in `link`.
        if at >= self.posted.len() || !posted.load(Ordering::Relaxed) {
            return false;
        }
        // ORDER: Relaxed, as in `link`.
        posted.store(false, Ordering::Relaxed);
        self.link(list.tail, index);
        list.tail = index;
        true
    }

    #[inline(always)]
    fn complete_in(&self, list: &mut List, index: u16) -> Option<u64> {
        // ORDER: Relaxed, as in `link`; without the lock the place might be posted again.
        self.give_back(list, index).then(|| self.wr_ids.at(u32::from(index)).load(Ordering::Relaxed))
    }

    /// [`Inner::complete`], if this thread owns the lock; it calls nothing.
    #[inline(always)]
    pub(super) fn complete_own(&self, index: u16) -> Option<u64> {
        self.complete_in(&mut *self.list.lock_own()?, index)
    }

    /// The receive in place `index` completed: its `wr_id`. `None` where the device does not have it.
    #[inline(always)]
    pub(super) fn complete(&self, index: u16) -> Option<u64> {
        #[inline(never)]
        fn any(queue: &Inner, index: u16) -> Option<u64> {
            queue.complete_in(&mut queue.list.lock(), index)
        }
        match self.list.lock_own() {
            Some(mut list) => self.complete_in(&mut list, index),
            None => any(self, index),
        }
    }

    /// The receive in place `index` found a page missing, which is there now: it is posted once more, unseen by anybody.
    pub(super) fn repost(&self, index: u16) -> Option<()> {
        let mut list = self.list.lock();
        let wr_id = self.complete_in(&mut list, index)?;
        let to = list.head;
        list.head = self.take(to, wr_id);
        let (from, to) = (u32::from(index) << self.log_units, u32::from(to) << self.log_units);
        for at in 1..1 << self.log_units {
            self.units.put(to + at, self.units.get(from + at));
        }
        list.counter = list.counter.wrapping_add(1);
        self.publish(list.counter);
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
        // ORDER: Relaxed, as in `link`, both.
        let posted = self.posted.iter().map(|posted| posted.load(Ordering::Relaxed));
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
    fn post_usual_recvs(&self, wrs: RecvWrs<'_>) -> bool {
        self.inner.post_usual(wrs)
    }

    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        self.inner.post(wrs)
    }

    fn close(&self) {
        // ORDER: Relaxed, see `Inner::publish`.
        self.inner.closed.store(true, Ordering::Relaxed);
    }

    fn is_quiet(&self) -> bool {
        self.inner.list.is_idle()
    }
}
