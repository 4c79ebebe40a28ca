//! Receive queues, a QP's own and shared ones: a list of `struct rxe_recv_wqe`, and no system call.

use super::{map_queue, put_sges};
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs};
use crate::error::{Errno, Error, Step as _};
use crate::family::{Refused, SharedReceiveQueue};
use crate::hw::shared_queue::{Garbage, SharedQueue};
use crate::log;
use crate::sync::SpinLock;
use crate::uapi::{CmdFd, rxe as wire};

/// Where the SGEs begin in a WQE.
const DATA: usize = size_of::<wire::RecvWqe>();

/// The producer's side of a receive queue.
#[derive(Debug)]
pub(super) struct RecvQueue {
    /// `None` after a resize whose new queue could not be mapped.
    ring: Option<SharedQueue>,
    max_sge: u32,
    /// Our index; the one in the mapping is only written.
    producer: u32,
    reported: bool,
}

impl RecvQueue {
    pub(super) fn map(fd: CmdFd, info: wire::MmInfo, max_sge: u32) -> Result<RecvQueue, Error> {
        let elem = DATA + max_sge as usize * size_of::<ibv_sge>();
        let ring = map_queue(fd, info, elem).step("map the receive queue")?;
        let producer =
            ring.load_producer().map_err(|_| Errno::EPROTO).step("read the receive queue's index")?;
        Ok(RecvQueue { ring: Some(ring), max_sge, producer, reported: false })
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
        let dma = wire::DmaInfo { length, resid: length, num_sge: sges.len() as u32, ..Default::default() };
        slot.put(0, &wire::RecvWqe { wr_id: wr.wr_id(), dma, ..Default::default() })?;
        self.producer = next;
        Ok(())
    }

    /// Posts a list; published once.
    #[inline(always)]
    pub(super) fn post(&mut self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
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
            ring.store_producer(self.producer);
        }
        result
    }
}

/// A shared receive queue.
#[derive(Debug)]
pub struct Srq {
    pub(super) rq: SpinLock<RecvQueue>,
}

impl SharedReceiveQueue for Srq {
    #[inline(always)]
    fn post_recv(&self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        self.rq.lock().post(wrs)
    }

    fn close(&self) {}

    fn is_quiet(&self) -> bool {
        self.rq.is_idle()
    }
}
