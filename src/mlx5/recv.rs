//! Receive queues of a QP or a WQ: lists of data segments, and a doorbell record that the device reads.

use std::sync::Arc;

use super::ring::{Owner, Receives, RecvRing, RecvRows};
use super::wqe;
use crate::abi::public::*;
use crate::abi::wr::{RecvWr, RecvWrs};
use crate::error::Errno;
use crate::family::Refused;

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

/// Writes the WQE of receive number `head`, if it is of one entry with a length. Otherwise nothing is done. Where that is, `rows` says:
/// as for sends, by value for a list, anew for one alone.
#[inline(always)]
fn post_usual<'r>(rows: impl Fn() -> RecvRows<'r>, head: u32, max_sge: u32, wr: &RecvWr<'_>) -> bool {
    match wr.only_sge() {
        Some(sge) if sge.length != 0 && max_sge != 0 => {
            let first = rows().first_unit(head);
            rows().units.put(first, wqe::data(sge.length, sge.lkey, sge.addr));
            if max_sge > 1 {
                rows().units.put(first.wrapping_add(1), wqe::DATA_END);
            }
            rows().note(head, wr.wr_id());
            true
        }
        _ => false,
    }
}

/// Writes the WQE of receive number `head`, whatever it is.
#[inline(never)]
fn post_other(ring: &RecvRing, head: u32, max_sge: u32, wr: &RecvWr<'_>) -> Result<(), Errno> {
    let rows = ring.rows();
    put_list(ring, rows.first_unit(head), max_sge, wr.sges()?)?;
    rows.note(head, wr.wr_id());
    Ok(())
}

/// Data segments from unit `first` on, of those entries that have a length.
fn put_list(ring: &RecvRing, first: u32, max_sge: u32, sges: &[ibv_sge]) -> Result<(), Errno> {
    if sges.len() > max_sge as usize {
        return Err(Errno::EINVAL);
    }
    let mut at = first;
    for sge in sges.iter().filter(|sge| sge.length != 0) {
        ring.units.put(at, wqe::data(sge.length, sge.lkey, sge.addr));
        at += 1;
    }
    if at - first < max_sge {
        ring.units.put(at, wqe::DATA_END);
    }
    Ok(())
}

/// Why no receive more than the `head` so far may be posted, after a look how many really completed; `None` where one may.
#[inline(never)]
fn full(tail: &mut u32, ring: &RecvRing, head: u32, limit: u32) -> Option<Errno> {
    *tail = ring.tail();
    if head.wrapping_sub(*tail) < limit {
        return None;
    }
    // Nothing is taken before INIT.
    Some(if limit == 0 { Errno::EINVAL } else { Errno::ENOMEM })
}

impl RecvQueue {
    pub(super) fn new(max_sge: u32, owner: Arc<Owner>) -> RecvQueue {
        RecvQueue { head: 0, tail: 0, max_sge, owner }
    }

    /// The queue is empty, as after a reset.
    pub(super) fn reset(&mut self) {
        (self.head, self.tail) = (0, 0);
    }

    /// Posts one receive of the usual kind. False: it is something else, and nothing was done.
    #[inline(always)]
    pub(super) fn post_usual(&mut self, wr: &RecvWr<'_>) -> bool {
        let Receives::Own(ring) = &self.owner.receives else { return false };
        let head = self.head;
        if head.wrapping_sub(self.tail) >= ring.gate.limit()
            || !post_usual(|| ring.rows(), head, self.max_sge, wr)
        {
            return false;
        }
        self.head = head.wrapping_add(1);
        ring.publish(self.head);
        true
    }

    /// Posts a list of the usual kind, not an empty one. False: there is something else, or no room for all, and nothing was done
    /// that counts: the device reads no WQE before it is told of it. It calls nothing, as the post of a send.
    #[inline(always)]
    pub(super) fn post_usual_list(&mut self, wrs: RecvWrs<'_>) -> bool {
        let Receives::Own(ring) = &self.owner.receives else { return false };
        let (limit, max_sge, rows) = (ring.gate.limit(), self.max_sge, ring.rows());
        let mut head = self.head;
        for wr in wrs {
            if head.wrapping_sub(self.tail) >= limit {
                self.tail = ring.tail();
                if head.wrapping_sub(self.tail) >= limit {
                    return false;
                }
            }
            if !post_usual(|| rows, head, max_sge, &wr) {
                return false;
            }
            head = head.wrapping_add(1);
        }
        self.head = head;
        ring.publish(head);
        true
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
        let mut head = self.head;
        let mut result = Ok(());
        for wr in wrs {
            let full = if head.wrapping_sub(self.tail) < limit {
                None
            } else {
                full(&mut self.tail, ring, head, limit)
            };
            let posted = match full {
                None if post_usual(|| ring.rows(), head, self.max_sge, &wr) => Ok(()),
                None => post_other(ring, head, self.max_sge, &wr),
                Some(errno) => Err(errno),
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
            ring.publish(head);
        }
        self.head = head;
        result
    }
}
