//! What any device family needs of memory that somebody else touches too.
pub mod shared_queue;
