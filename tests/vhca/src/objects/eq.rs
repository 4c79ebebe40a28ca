//! Event queues.

use super::Buffer;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EventType {
    Completion = 0x00,
    CommunicationEstablished = 0x02,
    SendQueueDrained = 0x03,
    CqError = 0x04,
    WqCatastrophe = 0x05,
    PortChange = 0x09,
    CommandDone = 0x0a,
    InvalidRequest = 0x10,
    AccessViolation = 0x11,
    LastWqeReached = 0x13,
    SrqLimit = 0x14,
}

impl EventType {
    /// Its name in the journal.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EventType::Completion => "completion",
            EventType::CommunicationEstablished => "comm_est",
            EventType::SendQueueDrained => "sq_drained",
            EventType::CqError => "cq_error",
            EventType::WqCatastrophe => "wq_catastrophe",
            EventType::PortChange => "port_change",
            EventType::CommandDone => "command",
            EventType::InvalidRequest => "invalid_request",
            EventType::AccessViolation => "access_violation",
            EventType::LastWqeReached => "last_wqe",
            EventType::SrqLimit => "srq_limit",
        }
    }
}

/// What happened to the port, as an event's subtype says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PortChange {
    Down = 1,
    Active = 4,
    Lid = 6,
    Guid = 8,
}

/// Bytes in an event.
pub(crate) const ENTRY: usize = 64;

/// An event queue.
#[derive(Debug)]
pub(crate) struct Eq {
    pub(crate) buffer: Buffer,
    pub(crate) log_size: u32,
    pub(crate) vector: usize,
    pub(crate) mask: [u64; 4],
    /// Events written so far.
    pub(crate) producer: u32,
    pub(crate) context: Vec<u8>,
}

impl Eq {
    /// Does the queue's owner want events of this type here?
    pub(crate) fn wants(&self, event: EventType) -> bool {
        let bit = event as usize;
        self.mask.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Where the next event goes, and the ownership bit that hands it over. Counts it.
    pub(crate) fn advance(&mut self) -> (Option<u64>, u8) {
        let slot = u64::from(self.producer & ((1 << self.log_size) - 1));
        let owner = u8::from(self.producer >> self.log_size & 1 == 1);
        self.producer = self.producer.wrapping_add(1);
        (self.buffer.address(slot * 64), owner)
    }
}
