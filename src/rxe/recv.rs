//! Receive queues, a QP's own and shared ones: a list of `struct rxe_recv_wqe`, and no system call.

use super::owed::{self, Owed};
use super::{PATIENCE, map_queue, put_sges};
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs};
use crate::error::{Errno, Error, Step as _};
use crate::family::{Refused, SharedReceiveQueue};
use crate::ha::gate::Gate;
use crate::ha::ledger::Outstanding;
use crate::ha::life::Life;
use crate::hw::shared_queue::{Garbage, SharedQueue, Slot};
use crate::log;
use crate::sync::SpinLock;
use crate::uapi::{CmdFd, rxe as wire};
use std::sync::Arc;

/// Where the SGEs begin in a WQE.
const DATA: usize = size_of::<wire::RecvWqe>();

/// The producer's side of a receive queue.
#[derive(Debug)]
pub(super) struct RecvQueue {
    /// `None` after a resize whose new queue could not be mapped.
    ring: Option<SharedQueue>,
    /// The kernel's, once `ring` is a copy of it.
    kernel: Option<SharedQueue>,
    /// Whether `ring` is one.
    copied: bool,
    max_sge: u32,
    /// Our index; the one in the mapping is only written.
    producer: u32,
    reported: bool,
}

/// Writes a WQE but for its SGEs.
#[inline(always)]
fn put_wqe(slot: &Slot<'_>, wr_id: u64, length: u32, num_sge: u32) -> Result<(), Errno> {
    let dma = wire::DmaInfo { length, resid: length, num_sge, ..Default::default() };
    slot.put(0, &wire::RecvWqe { wr_id, dma, ..Default::default() })
}

impl RecvQueue {
    pub(super) fn map(fd: CmdFd, info: wire::MmInfo, max_sge: u32) -> Result<RecvQueue, Error> {
        let elem = DATA + max_sge as usize * size_of::<ibv_sge>();
        let ring = map_queue(fd, info, elem).step("map the receive queue")?;
        let producer =
            ring.load_producer().map_err(|_| Errno::EPROTO).step("read the receive queue's index")?;
        Ok(RecvQueue { ring: Some(ring), kernel: None, copied: false, max_sge, producer, reported: false })
    }

    /// Takes the queue of a resize in place of the one that the kernel already gave up.
    pub(super) fn replace(&mut self, fd: CmdFd, info: wire::MmInfo) -> Result<(), Error> {
        self.ring = None;
        *self = RecvQueue::map(fd, info, self.max_sge)?;
        Ok(())
    }

    #[cold]
    fn garbage(&mut self, found: Garbage) -> Errno {
        if !core::mem::replace(&mut self.reported, true) {
            log::error!(
                "receive queue: consumer index {:#x} lies outside of the ring (mask {:#x}): something wrote over the mapped \
                 queue; nothing more can be posted to it",
                found.index,
                found.mask
            );
        }
        Errno::EIO
    }

    /// Posts one work request with one SGE to a queue that is open. False: it is something else, or there is no room, and nothing was
    /// done.
    #[inline(always)]
    pub(super) fn post_usual(&mut self, wr: &RecvWr<'_>) -> bool {
        let (Some(ring), Some(sge), 1..) = (&self.ring, wr.only_sge(), self.max_sge) else { return false };
        let next = ring.next(self.producer);
        let slot = ring.slot(self.producer);
        if !ring.load_consumer().is_ok_and(|consumer| consumer != next)
            || slot.put(DATA, sge).and_then(|()| put_wqe(&slot, wr.wr_id(), sge.length, 1)).is_err()
        {
            return false;
        }
        self.producer = next;
        ring.store_producer(next);
        true
    }

    #[inline(always)]
    fn post_one(&mut self, wr: &RecvWr<'_>) -> Result<(), Errno> {
        let sges = wr.sges()?;
        let ring = self.ring.as_ref().ok_or(Errno::EIO)?;
        let next = ring.next(self.producer);
        match ring.load_consumer() {
            Ok(consumer) if consumer == next => return Err(Errno::ENOMEM),
            Ok(_) => {}
            Err(found) => return Err(self.garbage(found)),
        }
        if sges.len() > self.max_sge as usize {
            return Err(Errno::EINVAL);
        }
        let slot = ring.slot(self.producer);
        let length = put_sges(&slot, DATA, sges)?;
        put_wqe(&slot, wr.wr_id(), length, sges.len() as u32)?;
        self.producer = next;
        Ok(())
    }

    /// Posts a list; published once, or where the queue is not `open` kept.
    #[inline(always)]
    pub(super) fn post(
        &mut self,
        wrs: RecvWrs<'_>,
        open: bool,
        life: &Life,
    ) -> Result<(), Refused<ibv_recv_wr>> {
        let before = self.producer;
        let mut result = Ok(());
        for wr in wrs {
            if let Err(errno) = self.post_one(&wr) {
                result = Err(Refused { wr: wr.as_ptr(), errno });
                break;
            }
        }
        if self.producer != before
            && let Some(ring) = &self.ring
        {
            if open {
                ring.store_producer(self.producer);
            } else {
                self.keep(life);
            }
        }
        result
    }

    /// What was posted is not for the kernel.
    #[cold]
    fn keep(&self, life: &Life) {
        if let Some(ring) = self.ring.as_ref().filter(|_| self.copied) {
            ring.store_producer(self.producer);
        }
        life.keep();
    }

    /// As for a send queue.
    pub(super) fn freeze(&mut self, owed: &Owed, forgotten: bool) -> Result<(), Errno> {
        match (&mut self.ring, &self.kernel) {
            (Some(_), Some(kernel)) => owed.catch_up(kernel),
            (Some(ring), None) if !self.copied => {
                self.kernel = Some(owed.freeze(ring, self.producer, forgotten)?);
                self.copied = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Unmaps the kernel's queue, once it was copied.
    pub(super) fn let_go(&mut self) {
        self.kernel = None;
    }

    pub(super) fn outstanding(&self) -> Vec<Outstanding> {
        let Some(ring) = &self.ring else { return Vec::new() };
        let told = self.kernel.as_ref().unwrap_or(ring).load_producer().unwrap_or(self.producer);
        owed::outstanding(ring, self.producer, told, false)
    }
}

/// A shared receive queue.
#[derive(Debug)]
pub struct Srq {
    pub(super) rq: SpinLock<RecvQueue>,
    pub(super) gate: Gate,
    pub(super) life: Arc<Life>,
}

impl Srq {
    pub(super) fn new(rq: RecvQueue, life: Arc<Life>) -> Srq {
        let gate = Gate::new();
        gate.set(OPEN);
        Srq { rq: SpinLock::new(rq), gate, life }
    }
}

/// The limit of an SRQ's gate that is not closed: the ring says by itself how many it takes.
const OPEN: u32 = 1;

impl SharedReceiveQueue for Srq {
    #[inline(always)]
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        let mut rq = self.rq.lock();
        rq.post(wrs, self.gate.limit() != 0, &self.life)
    }

    fn close(&self) {
        self.gate.close();
    }

    fn is_quiet(&self) -> bool {
        self.rq.is_idle()
    }

    fn let_go(&self) -> Result<(), Errno> {
        let mut rq = self.rq.lock_within(PATIENCE).ok_or(Errno::EBUSY)?;
        if rq.copied {
            return Ok(());
        }
        let Some(ring) = &rq.ring else { return Ok(()) };
        rq.ring = Some(ring.copy()?);
        rq.copied = true;
        Ok(())
    }
}
