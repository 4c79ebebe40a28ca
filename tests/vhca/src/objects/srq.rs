//! Shared receive queues: a list of work requests linked in guest memory.

use super::Buffer;

/// What a shared receive queue was created as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A receive memory pool: the verbs' basic shared receive queue.
    Pool,
    /// One for extended reliable connections, with a completion queue of its own.
    Xrc,
}

/// A shared receive queue.
#[derive(Debug)]
pub(crate) struct Srq {
    pub(crate) kind: Kind,
    pub(crate) buffer: Buffer,
    pub(crate) log_size: u32,
    pub(crate) log_stride: u32,
    pub(crate) pd: u32,
    /// Guest address of the doorbell record: work requests posted so far.
    pub(crate) record: u64,
    /// Completion queue, XRC domain and the owner's index (XRC only).
    pub(crate) cqn: u32,
    pub(crate) xrcd: u32,
    pub(crate) uidx: u32,
    /// The slot that is consumed next.
    pub(crate) head: u16,
    /// Work requests consumed so far.
    pub(crate) consumed: u16,
    /// An event is due when fewer than so many are left; 0: none is asked for.
    pub(crate) limit: u16,
    pub(crate) context: Vec<u8>,
}

impl Srq {
    /// Bytes of the link before a work request's list of pieces.
    pub(crate) const LINK: usize = 16;

    /// The work requests that wait, when `posted` were posted.
    pub(crate) fn available(&self, posted: u32) -> u16 {
        u16::try_from(posted & 0xffff).unwrap_or(0).wrapping_sub(self.consumed)
    }

    /// Bytes of a work request.
    pub(crate) fn stride(&self) -> usize {
        1 << self.log_stride.min(12)
    }

    /// Guest address of the next work request.
    pub(crate) fn address(&self) -> Option<u64> {
        let slot = u64::from(self.head) & ((1 << self.log_size) - 1);
        self.buffer.address(slot << self.log_stride)
    }
}
