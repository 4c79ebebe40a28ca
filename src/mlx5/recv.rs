//! Receive queues of a QP or a WQ: lists of data segments, and a doorbell record that the device reads.

use std::sync::Arc;

use super::ring::{Owner, RCV_DBR, Receives, RecvRing};
use super::wqe;
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs};
use crate::error::Errno;
use crate::family::Refused;
use crate::hw::barrier::udma_to_device_barrier;

/// The producer's side of a receive queue.
#[derive(Debug)]
pub(super) struct RecvQueue {
    /// Receives posted.
    head: u32,
    /// Those of them that completed, when it was last looked up.
    tail: u32,
    max_sge: u32,
    owner: Arc<Owner>,
}

impl RecvQueue {
    pub(super) fn new(max_sge: u32, owner: Arc<Owner>) -> RecvQueue {
        RecvQueue { head: 0, tail: 0, max_sge, owner }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.head, self.tail) = (0, 0);
    }

    #[inline(always)]
    fn post_one(&self, ring: &RecvRing, head: u32, wr: &RecvWr<'_>) -> Result<(), Errno> {
        let sges = wr.sges()?;
        if sges.len() > self.max_sge as usize {
            return Err(Errno::EINVAL);
        }
        let first = (head & (ring.count() - 1)) << ring.log_units;
        let mut at = first;
        for sge in sges.iter().filter(|sge| sge.length != 0) {
            ring.units.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
            at += 1;
        }
        if at - first < self.max_sge {
            ring.units.put(at, wqe::DATA_END);
        }
        ring.note(head, wr.wr_id());
        Ok(())
    }

    /// Posts a list; the record is written once.
    #[inline]
    pub(super) fn post(&mut self, wrs: RecvWrs<'_>) -> Result<(), Refused<ibv_recv_wr>> {
        let Receives::Own(ring) = &self.owner.receives else {
            return Err(Refused { wr: wrs.as_ptr(), errno: Errno::EINVAL });
        };
        let mut limit = ring.gate.limit();
        let closed = limit == 0 && ring.gate.is_closed();
        if closed {
            limit = ring.count();
        }
        let (mut head, mut tail) = (self.head, self.tail);
        let mut result = Ok(());
        for wr in wrs {
            if head.wrapping_sub(tail) >= limit {
                tail = ring.tail();
            }
            let posted = if head.wrapping_sub(tail) >= limit {
                // Nothing is taken before INIT.
                Err(if limit == 0 { Errno::EINVAL } else { Errno::ENOMEM })
            } else {
                self.post_one(ring, head, &wr)
            };
            if let Err(errno) = posted {
                result = Err(Refused { wr: wr.as_ptr(), errno });
                break;
            }
            head = head.wrapping_add(1);
        }
        if head != self.head && closed {
            ring.keep(head);
        } else if head != self.head {
            // The WQEs are in memory before the record lets the device read them.
            udma_to_device_barrier();
            ring.dbrec.record.store::<RCV_DBR>(head & 0xffff);
        }
        (self.head, self.tail) = (head, tail);
        result
    }
}
