//! The gate in front of a queue: how many work requests may be outstanding, in a word that every post reads anyway. 0 lets
//! none through, and sends the post to where a closed queue is told from one that is full or not ready.
//!
//! A queue is closed once and for good. Whoever closes it then waits until no post that read the old limit is under way:
//! by the queue's lock, or where the application's word makes locks needless by the mark that its thread leaves
//! ([`crate::sync::SpinLock::is_idle`]) behind a barrier that every CPU passes.

use crate::config::OUTLIVES_DEVICES;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    limit: AtomicU32,
    closed: AtomicBool,
}

impl Gate {
    /// Lets nothing through until [`Gate::set`].
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Work requests that may be outstanding.
    #[inline(always)]
    pub fn limit(&self) -> u32 {
        // ORDER: Relaxed: a post that races with a change may see either; see the module for who waits for it.
        self.limit.load(Ordering::Relaxed)
    }

    /// The queue's state changed: `limit` may be outstanding from now on. A closed gate stays closed.
    pub fn set(&self, limit: u32) {
        // ORDER: Relaxed; the fence orders it before the load below.
        self.limit.store(limit, Ordering::Relaxed);
        // ORDER: SeqCst, partner is the fence in `close`: either this thread sees the gate closed, or the 0 stored there
        // comes after the limit stored here.
        fence(Ordering::SeqCst);
        // ORDER: Relaxed, as above.
        if self.closed.load(Ordering::Relaxed) {
            // ORDER: Relaxed, as above.
            self.limit.store(0, Ordering::Relaxed);
        }
    }

    /// Closes it: posts that begin later are not let through.
    pub fn close(&self) {
        // ORDER: Relaxed; the fence orders it before the store below.
        self.closed.store(true, Ordering::Relaxed);
        // ORDER: SeqCst, partner is the fence in `set`.
        fence(Ordering::SeqCst);
        // ORDER: Relaxed: seen by posts after the barrier that the closer passes, or by the queue's lock.
        self.limit.store(0, Ordering::Relaxed);
    }

    /// Whether it was closed; asked where the limit let nothing through.
    #[cold]
    pub fn is_closed(&self) -> bool {
        // ORDER: Acquire, partner is the fence in `close`: who saw its 0 sees this.
        fence(Ordering::Acquire);
        // ORDER: Relaxed, ordered by the fence.
        OUTLIVES_DEVICES && self.closed.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_stays_closed() {
        let gate = Gate::new();
        assert_eq!((gate.limit(), gate.is_closed()), (0, false));
        gate.set(7);
        assert_eq!((gate.limit(), gate.is_closed()), (7, false));
        gate.close();
        gate.set(9);
        assert_eq!((gate.limit(), gate.is_closed()), (0, true));
    }
}
