//! Event queues.

use super::Buffer;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventType {
    /// Completions.
    Completion = 0x00,
    /// The first message came before the transition to RTS.
    CommunicationEstablished = 0x02,
    /// A send queue is drained.
    SendQueueDrained = 0x03,
    /// A completion queue overran.
    CqError = 0x04,
    /// A work queue is broken.
    WqCatastrophe = 0x05,
    /// The port changed.
    PortChange = 0x09,
    /// Commands are done.
    CommandDone = 0x0a,
    /// A peer sent what a queue pair does not take.
    InvalidRequest = 0x10,
    /// A peer touched what it may not.
    AccessViolation = 0x11,
    /// A shared receive queue is broken.
    SrqCatastrophe = 0x12,
    /// A queue pair takes no more from its shared receive queue.
    LastWqeReached = 0x13,
    /// A shared receive queue ran below its limit.
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
            EventType::SrqCatastrophe => "srq_catastrophe",
            EventType::LastWqeReached => "last_wqe",
            EventType::SrqLimit => "srq_limit",
        }
    }
}

/// What happened to the port, as an event's subtype says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PortChange {
    /// It is down.
    Down = 1,
    /// It is up.
    Active = 4,
    /// It has another LID.
    Lid = 6,
    /// It has another GUID.
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
