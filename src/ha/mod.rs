//! Device death: what holdfast exists for. Decisions only; no hardware, no C and no system call is in here.
//!
//! | module | what |
//! |---|---|
//! | [`life`] | a context's way from alive to gone: one transition function, and what is known of it |
//! | [`gate`] | the word by which a queue is closed: every post reads it |
//! | [`flush`] | which queue gives the next flushed completion |
//! | [`watch`] | what news mean, and how long to wait for the next |
//!
//! In order: a sign of death reaches [`life::Life::note`]. The first one closes every gate of the context; posts under way
//! end, later ones are kept and not rung. Once the kernel has taken the device off our memory, or the time for that has
//! passed, the context is [`life::Phase::Gone`]: completions that the device wrote are delivered, then each queue gives
//! what it keeps, flushed, in posting order.

pub mod flush;
pub mod gate;
pub mod ledger;
pub mod life;
#[cfg(all(test, loom))]
pub(crate) mod models;
pub mod watch;
