//! What any device family needs of memory that somebody else touches too.
pub mod barrier;
pub mod dma;
pub mod mmio;
pub mod shared_queue;
pub mod table;
