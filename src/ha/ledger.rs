//! Outstanding work requests, as queues list them from what they keep anyway.

/// What can be known of a work request that has not completed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// The device was told of it: it may have executed it, in part or as a whole.
    #[default]
    Unknown = 0,
    /// A completion that says so waits to be polled, its own or a later one's of the same queue.
    Executed = 1,
    /// The device was never told of it.
    NotExecuted = 2,
}

/// A work request that has not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// The application's word.
    pub wr_id: u64,
    /// `ibv_wc_opcode`.
    pub opcode: u32,
    /// Whether it was executed.
    pub fate: Fate,
}
