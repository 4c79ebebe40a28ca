//! The verbs: `extern "C"` functions that libibverbs calls, generic over the device family.
//!
//! Control verbs run under `guard`; post, poll and arm go straight to the family's queues. Each function's safety contract is
//! its manual page: libibverbs passes live objects of our own, and the application keeps to the page.

pub mod api;
mod attr;
mod cast;
mod channel;
mod context;
mod cq;
mod death;
pub mod device;
mod dm;
mod domains;
mod events;
mod guard;
mod import;
mod live;
mod memory;
mod ops;
mod qp;
mod query;
mod release;
mod srq;
mod watch;

pub use context::family_of as context_family;
