//! libibverbs: its public types and its private ABI, as data.

pub mod ask;
pub mod detect;
pub mod host;
pub mod layout;
pub mod layouts;
pub mod ops;
pub mod public;
pub mod wc;
pub mod wr;
