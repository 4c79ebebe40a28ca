//! Shared receive queues: a list of WQEs, linked by index through their first segment. The device takes from its head, we add
//! at its tail what completed.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
use crate::sync::{Locking, SpinLock};

/// What posts and completions change.
#[derive(Debug)]
struct List {
    /// The next WQE to post; the last of the free ones is never posted, so that the list never ends.
    head: u16,
    tail: u16,
    /// Posted since the start: the doorbell record.
    counter: u16,
    /// A bit for each WQE that the device has. It says which completions can be believed.
    posted: Box<[u64]>,
}

impl List {
    fn bit(&mut self, index: u16) -> Option<(&mut u64, u64)> {
        let word = self.posted.get_mut(usize::from(index) / 64)?;
        Some((word, 1 << (index % 64)))
    }
}

/// The queue, shared with the CQs whose completions name it.
#[derive(Debug)]
pub(super) struct Inner {
    wr_ids: Box<[AtomicU64]>,
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
        for index in 0..last {
            units.put(u32::from(index) << log_units, wqe::srq_next(index + 1));
        }
        let posted = vec![0; (count as usize).div_ceil(64)].into();
        Inner {
            wr_ids: (0..count).map(|_| AtomicU64::new(0)).collect(),
            units,
            log_units,
            max_sge: shape.max_sge(),
            list: SpinLock::with(locking, List { head: 0, tail: last, counter: 0, posted }),
            closed: AtomicBool::new(false),
            dbrec,
        }
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

    #[inline]
    fn next(&self, index: u16) -> u16 {
        wqe::srq_next_of(self.units.get(u32::from(index) << self.log_units))
    }

    #[inline]
    fn link(&self, index: u16, next: u16) {
        self.units.put(u32::from(index) << self.log_units, wqe::srq_next(next));
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
        let slot = self.wr_ids.get(usize::from(index)).ok_or(Errno::EIO)?;
        // ORDER: Relaxed: under the lock.
        slot.store(wr.wr_id(), Ordering::Relaxed);
        if let Some((word, bit)) = list.bit(index) {
            *word |= bit;
        }
        list.head = self.next(index);
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

    /// The receive in place `index` completed: its `wr_id`. `None` where the device does not have it.
    pub(super) fn complete(&self, index: u16) -> Option<u64> {
        let mut list = self.list.lock();
        let (word, bit) = list.bit(index)?;
        if *word & bit == 0 {
            return None;
        }
        *word &= !bit;
        self.link(list.tail, index);
        list.tail = index;
        // ORDER: Relaxed: under the lock; without it the slot might be posted again.
        self.wr_ids.get(usize::from(index)).map(|slot| slot.load(Ordering::Relaxed))
    }

    /// The receive in place `index` found a page missing, which is there now: it is posted once more, unseen by anybody.
    pub(super) fn repost(&self, index: u16) -> Option<()> {
        let mut list = self.list.lock();
        let (word, bit) = list.bit(index)?;
        if *word & bit == 0 {
            return None;
        }
        *word &= !bit;
        self.link(list.tail, index);
        list.tail = index;
        let to = list.head;
        list.head = self.next(to);
        let (word, bit) = list.bit(to)?;
        *word |= bit;
        let (from_slot, to_slot) = (self.wr_ids.get(usize::from(index))?, self.wr_ids.get(usize::from(to))?);
        // ORDER: Relaxed: under the lock.
        to_slot.store(from_slot.load(Ordering::Relaxed), Ordering::Relaxed);
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
        let list = self.list.lock();
        let posted =
            |index: usize| list.posted.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 != 0);
        self.wr_ids
            .iter()
            .enumerate()
            .filter(|(index, _)| posted(*index))
            // ORDER: Relaxed: under the lock.
            .map(|(_, slot)| Outstanding {
                wr_id: slot.load(Ordering::Relaxed),
                opcode: IBV_WC_RECV,
                fate: Fate::Unknown,
            })
            .collect()
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
