//! libibverbs: its public types and its private ABI, as data.

pub mod ops;
pub mod public;
pub mod wr;
