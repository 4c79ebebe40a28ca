//! Outstanding work requests, as queues list them from what they keep anyway.

/// A work request that has not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// The application's word.
    pub wr_id: u64,
    /// `ibv_wc_opcode`.
    pub opcode: u32,
}
