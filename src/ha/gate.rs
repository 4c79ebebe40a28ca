//! The gate in front of a queue: how many work requests may be outstanding, in a word that every post reads anyway. 0 lets
//! none through, and sends the post to where a closed queue is told from one that is full or not ready.
//!
//! A queue is closed once and for good. Whoever closes it then waits until no post that read the old limit is under way:
//! by the queue's lock, or where the application's word makes locks needless by the mark that its thread leaves
//! ([`crate::sync::SpinLock::is_idle`]) behind a barrier that every CPU passes.
//!
//! Thousands of queues have a cache line each, and closing them takes a millisecond. What a device hears of is sooner closed where
//! they share its doorbells (`mlx5::uar`).

use crate::config::OUTLIVES_DEVICES;
use crate::sync::atomic::{AtomicU64, Ordering};

/// What is there once it was closed, above a limit of 0.
const CLOSED: u64 = 1 << 32;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    /// The limit in its lower half. One word has both: closing thousands takes no fence between two of their stores.
    word: AtomicU64,
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
        self.word.load(Ordering::Relaxed) as u32
    }

    /// The queue's state changed: `limit` may be outstanding from now on. A closed gate stays closed.
    pub fn set(&self, limit: u32) {
        let open = |word| (word != CLOSED).then_some(u64::from(limit));
        // ORDER: Relaxed: the word stands for itself alone. What was there is of no use to anybody.
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, open);
    }

    /// Closes it: posts that begin later are not let through.
    pub fn close(&self) {
        // ORDER: Relaxed: seen by posts after the barrier that the closer passes, or by the queue's lock.
        #[cfg(not(loom))]
        self.word.store(CLOSED, Ordering::Relaxed);
        // loom lets `set` exchange what was there before this store, and stand after it: it gets an exchange here, too.
        // ORDER: as above.
        #[cfg(loom)]
        self.word.swap(CLOSED, Ordering::Relaxed);
    }

    /// Whether it was closed; asked where the limit let nothing through.
    #[cold]
    pub fn is_closed(&self) -> bool {
        // ORDER: Relaxed: the same word as the limit, so whoever saw its 0 sees this.
        OUTLIVES_DEVICES && self.word.load(Ordering::Relaxed) == CLOSED
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
