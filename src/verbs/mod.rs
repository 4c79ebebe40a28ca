//! The functions libibverbs calls.

pub mod device;
