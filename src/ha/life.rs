//! A context's way from alive to gone.
//!
//! | from | sign | to |
//! |---|---|---|
//! | alive | any but that the wait is over | dying |
//! | dying | final FATAL, stopped, the wait is over | gone |
//! | | any other | as it was |
//!
//! *Dying*: the gates close, and then no post rings any more; completions are still believed, nothing is flushed: the device
//! may still write. *Gone*: nothing more is believed to come; what is owed is flushed. A sign that says gone is noted twice,
//! the second time when the gates are closed.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::config::OUTLIVES_DEVICES;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

/// Where a context is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    /// As far as anybody knows.
    Alive = 0,
    /// See the module.
    Dying = 1,
    /// See the module.
    Gone = 2,
}

/// What tells of a device's death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Sign {
    /// The driver reported a fatal error; the kernel's objects are still there (`DEVICE_FATAL` with a port number).
    Early = 1,
    /// The kernel has destroyed this context's objects (`DEVICE_FATAL` with element 0).
    Final = 2,
    /// The kernel began to take the device away: our completion channel is closed.
    Removing = 3,
    /// The device's node is gone, with a driver that waits for its users to let go.
    NodeGone = 4,
    /// The application asked for it.
    Forced = 5,
    /// We had every queue pair destroyed: the device does not touch our memory any more.
    Stopped = 6,
    /// The time in which the final sign should have come has passed.
    WaitOver = 7,
}

impl Sign {
    const ALL: [Sign; 7] = [
        Sign::Early,
        Sign::Final,
        Sign::Removing,
        Sign::NodeGone,
        Sign::Forced,
        Sign::Stopped,
        Sign::WaitOver,
    ];

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Sign::Early => "the driver reported a fatal error",
            Sign::Final => "the kernel took the device away",
            Sign::Removing => "the kernel is taking the device away",
            Sign::NodeGone => "the device's node is gone",
            Sign::Forced => "the application asked for it",
            Sign::Stopped => "the queue pairs were stopped",
            Sign::WaitOver => "no final sign came in time",
        }
    }
}

/// The one transition function.
#[must_use]
pub fn next(phase: Phase, sign: Sign) -> Phase {
    match (phase, sign) {
        (Phase::Alive, Sign::WaitOver) => Phase::Alive,
        (Phase::Alive, _) => Phase::Dying,
        (Phase::Dying, Sign::Final | Sign::Stopped | Sign::WaitOver) => Phase::Gone,
        (phase, _) => phase,
    }
}

/// A transition that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: Phase,
    /// After; not the same.
    pub to: Phase,
}

/// What to do when a work request was kept while somebody sleeps for its completion.
pub type Kick = Box<dyn Fn() + Send + Sync>;

/// What a context, its queues and whoever watches it share.
pub struct Life {
    phase: AtomicU32,
    /// The first sign, as its number; 0: none.
    first: AtomicU32,
    /// Nanoseconds after `born` of the first sign, of the gates being closed, and of the end; 0: not yet.
    since: AtomicU64,
    closed: AtomicU64,
    gone: AtomicU64,
    /// The same of the word that the kernel is taking the device away, whether it was the first sign or came after an early one.
    removing: AtomicU64,
    /// Posts that were kept since the gates closed.
    kept: AtomicU64,
    /// Whether a CQ was armed since then with nothing to poll: its sleeper is owed an event at the next post that is kept.
    sleepers: AtomicBool,
    /// Milliseconds to wait for the final sign after an early one.
    patience: AtomicU64,
    kick: OnceLock<Kick>,
    born: Instant,
}

impl core::fmt::Debug for Life {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Life")
            .field("phase", &self.phase())
            .field("first", &self.first_sign())
            .finish_non_exhaustive()
    }
}

impl Default for Life {
    fn default() -> Life {
        Life {
            phase: AtomicU32::new(Phase::Alive as u32),
            first: AtomicU32::new(0),
            since: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            gone: AtomicU64::new(0),
            removing: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            sleepers: AtomicBool::new(false),
            patience: AtomicU64::new(u64::MAX),
            kick: OnceLock::new(),
            born: Instant::now(),
        }
    }
}

impl Life {
    fn nanoseconds(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// Where it is.
    #[inline(always)]
    #[must_use]
    pub fn phase(&self) -> Phase {
        // ORDER: Acquire, partner is the exchange in `note`: who sees it gone sees what was done before.
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Alive,
            1 => Phase::Dying,
            _ => Phase::Gone,
        }
    }

    /// Whether nothing may be asked of the device any more.
    #[inline(always)]
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase() != Phase::Alive
    }

    /// Whether what is owed is flushed.
    #[inline(always)]
    #[must_use]
    pub fn is_gone(&self) -> bool {
        OUTLIVES_DEVICES && self.phase() == Phase::Gone
    }

    /// A sign came. Of several that come at once each change is told to one.
    pub fn note(&self, sign: Sign) -> Option<Change> {
        if sign == Sign::Removing {
            // ORDER: Relaxed: for clocks; the first one counts.
            let _ =
                self.removing.compare_exchange(0, self.nanoseconds(), Ordering::Relaxed, Ordering::Relaxed);
        }
        loop {
            let from = self.phase();
            let to = next(from, sign);
            if from == to {
                return None;
            }
            let now = self.nanoseconds();
            // ORDER: AcqRel, partner is the load in `phase`: what was done before the change is seen after it.
            let changed =
                self.phase.compare_exchange(from as u32, to as u32, Ordering::AcqRel, Ordering::Relaxed);
            if changed.is_err() {
                continue;
            }
            if from == Phase::Alive {
                // ORDER: Relaxed: for people and clocks.
                self.first.store(sign as u32, Ordering::Relaxed);
                // ORDER: Relaxed, as above.
                self.since.store(now, Ordering::Relaxed);
            }
            if to == Phase::Gone {
                // ORDER: Relaxed, as above.
                self.gone.store(now, Ordering::Relaxed);
            }
            return Some(Change { from, to });
        }
    }

    /// No store to the device begins any more, and none is under way.
    pub fn quiesced(&self) {
        // ORDER: Relaxed: for people and clocks; the first one counts.
        let _ = self.closed.compare_exchange(0, self.nanoseconds(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The first sign.
    #[must_use]
    pub fn first_sign(&self) -> Option<Sign> {
        // ORDER: Relaxed: for people.
        let number = self.first.load(Ordering::Relaxed);
        Sign::ALL.into_iter().find(|sign| *sign as u32 == number)
    }

    /// How long ago the first sign came, the gates were closed, and the context was gone, each in nanoseconds.
    #[must_use]
    pub fn ages(&self) -> [Option<u64>; 3] {
        let now = self.nanoseconds();
        [&self.since, &self.closed, &self.gone].map(|at| Life::age(at, now))
    }

    /// How long ago the kernel began to take the device away.
    #[must_use]
    pub fn removing(&self) -> Option<Duration> {
        Life::age(&self.removing, self.nanoseconds()).map(Duration::from_nanos)
    }

    fn age(at: &AtomicU64, now: u64) -> Option<u64> {
        // ORDER: Relaxed: for people and clocks.
        let at = at.load(Ordering::Relaxed);
        (at != 0).then(|| now.saturating_sub(at))
    }

    /// How long the final sign is waited for after an early one.
    #[must_use]
    pub fn patience(&self) -> Duration {
        // ORDER: Relaxed: a number.
        Duration::from_millis(self.patience.load(Ordering::Relaxed))
    }

    /// Sets [`Life::patience`].
    pub fn set_patience(&self, patience: Duration) {
        // ORDER: Relaxed: a number.
        self.patience.store(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Who is told of posts that are kept while somebody sleeps. The first one given counts.
    pub fn set_kick(&self, kick: Kick) {
        let _ = self.kick.set(kick);
    }

    /// Work requests were kept: their queue lists them.
    #[cold]
    pub fn keep(&self) {
        // ORDER: Release, partner is the Acquire in `kept`: who sees the number finds the work requests.
        self.kept.fetch_add(1, Ordering::Release);
        // ORDER: SeqCst, partner is the fence in `sleep`: either the sleeper's look at the queue, whatever the order of its loads,
        // finds the post, or this finds the sleeper.
        fence(Ordering::SeqCst);
        // ORDER: Relaxed; the fence orders it behind the post.
        if self.sleepers.load(Ordering::Relaxed)
            && let Some(kick) = self.kick.get()
        {
            kick();
        }
    }

    /// How many posts were kept so far: as long as it does not change there is nothing new to flush.
    #[must_use]
    pub fn kept(&self) -> u64 {
        // ORDER: Acquire, partner is the Release in `keep`.
        self.kept.load(Ordering::Acquire)
    }

    /// A CQ was armed with nothing to poll.
    pub fn sleep(&self) {
        // ORDER: Relaxed; the fence orders it before the look at the queue.
        self.sleepers.store(true, Ordering::Relaxed);
        // ORDER: SeqCst, partner is the fence in `keep`.
        fence(Ordering::SeqCst);
    }

    /// Whether somebody may sleep, who is woken now.
    pub fn take_sleepers(&self) -> bool {
        // ORDER: SeqCst, as for `sleep`.
        self.sleepers.swap(false, Ordering::SeqCst)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_table_of_the_module() {
        use Phase::{Alive, Dying, Gone};
        for sign in [Sign::Early, Sign::Removing, Sign::NodeGone, Sign::Forced] {
            assert_eq!(
                (next(Alive, sign), next(Dying, sign), next(Gone, sign)),
                (Dying, Dying, Gone),
                "{sign:?}"
            );
        }
        for sign in [Sign::Final, Sign::Stopped] {
            assert_eq!(
                (next(Alive, sign), next(Dying, sign), next(Gone, sign)),
                (Dying, Gone, Gone),
                "{sign:?}"
            );
        }
        assert_eq!(
            (next(Alive, Sign::WaitOver), next(Dying, Sign::WaitOver), next(Gone, Sign::WaitOver)),
            (Alive, Gone, Gone)
        );
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_each_change_is_told_once(signs in prop::collection::vec(0..Sign::ALL.len(), 0..20)) {
            let life = Life::default();
            let mut at = Phase::Alive;
            let mut first = None;
            for sign in signs.into_iter().map(|sign| Sign::ALL[sign]) {
                let change = life.note(sign);
                prop_assert_eq!(change, (next(at, sign) != at).then(|| Change { from: at, to: next(at, sign) }));
                if let Some(change) = change {
                    prop_assert!(change.to > change.from);
                    first = first.or(Some(sign));
                    at = change.to;
                }
                prop_assert_eq!(life.phase(), at);
                prop_assert_eq!(life.first_sign(), first);
                let [since, _, gone] = life.ages();
                prop_assert_eq!((since.is_some(), gone.is_some()), (at != Phase::Alive, at == Phase::Gone));
            }
        }
    }

    #[test]
    fn of_threads_that_bring_the_same_news_one_is_told() {
        for _ in 0..200 {
            let life = Life::default();
            let told: usize = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| usize::from(life.note(Sign::Early).is_some()))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(told, 1);
        }
    }

    #[test]
    fn a_kept_post_kicks_only_for_sleepers() {
        use std::sync::Arc;
        let (life, kicks) = (Life::default(), Arc::new(AtomicU32::new(0)));
        let count = kicks.clone();
        // ORDER: Relaxed: one thread.
        life.set_kick(Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        life.keep();
        life.sleep();
        life.keep();
        assert!(life.take_sleepers() && !life.take_sleepers());
        life.keep();
        // ORDER: Relaxed: one thread.
        assert_eq!((life.kept(), kicks.load(Ordering::Relaxed)), (3, 1));
    }
}
