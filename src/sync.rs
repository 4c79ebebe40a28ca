//! The queue lock of the data path.
//!
//! One byte, one locked exchange to take and one plain store to give back, inlined: a queue's lock is held for tens of
//! nanoseconds and two threads seldom want it at once. `ibv_wr_start` takes a lock that `ibv_wr_complete`, another
//! function, gives back; hence [`SpinLock::acquire`] and [`SpinLock::release`] beside the guard.
//!
//! Invariants of [`SpinLock`]:
//! - L1: `locked` is true from the moment one thread took it until that same verbs call chain released it.
//! - L2: `value` is reached only by whoever made `locked` true (L1), so never by two threads at once; or, without locking, by
//!   the one thread of which the maker of [`Locking::no`] gave its word.
#![allow(
    unsafe_code,
    reason = "a lock is where exclusive access is made; std's guard cannot outlive a C call"
)]

/// The atomics that the lock and `ha` are made of: loom's where a model is checked.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

    /// What orders the mark that a lock is in use before what its user reads next, against a thread that has every CPU pass a
    /// barrier (membarrier(2)) between its own store and its look at the mark: nothing but that the compiler leaves the order.
    #[inline(always)]
    pub(super) fn half_of_membarrier() {
        #[cfg(not(loom))]
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        // loom knows no membarrier: the model has a fence on both sides in its place.
        #[cfg(loom)]
        fence(Ordering::SeqCst);
    }
}

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use atomic::{AtomicBool, Ordering, half_of_membarrier};

/// Spins this often before it lets another thread run: a holder that was descheduled cannot be spun out.
#[cfg(not(loom))]
const SPINS_BEFORE_YIELD: u32 = 1 << 10;

/// Whether a lock locks: a thread domain and a single-threaded CQ are the application's word that one thread uses the
/// object, and their queues need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locking(bool);

impl Locking {
    /// It does.
    pub const YES: Locking = Locking(true);

    /// It does not.
    ///
    /// # Safety
    /// Whoever uses the locks made with this keeps each of them to one thread at a time.
    #[must_use]
    pub const unsafe fn no() -> Locking {
        Locking(false)
    }
}

/// A byte-sized spin lock around `T`.
#[derive(Debug)]
pub struct SpinLock<T> {
    locked: AtomicBool,
    locking: bool,
    #[cfg(loom)]
    sleepers: Sleepers,
    value: UnsafeCell<T>,
}

/// A model's thread that spins has no end of orders: it sleeps until the lock is given back.
#[cfg(loom)]
#[derive(Debug)]
struct Sleepers {
    mutex: loom::sync::Mutex<()>,
    freed: loom::sync::Condvar,
}

#[cfg(loom)]
impl Sleepers {
    fn new() -> Sleepers {
        Sleepers { mutex: loom::sync::Mutex::new(()), freed: loom::sync::Condvar::new() }
    }
}

// SAFETY: L2 gives one thread at a time the value, so `T: Send` is all that sharing needs.
unsafe impl<T: Send> Sync for SpinLock<T> {}

/// The lock held; given back when dropped.
#[derive(Debug)]
pub struct Guard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> SpinLock<T> {
    /// An open lock around `value`.
    pub fn new(value: T) -> SpinLock<T> {
        SpinLock::with(Locking::YES, value)
    }

    /// An open lock around `value` that locks as `locking` says.
    pub fn with(locking: Locking, value: T) -> SpinLock<T> {
        SpinLock {
            locked: AtomicBool::new(false),
            locking: locking.0,
            #[cfg(loom)]
            sleepers: Sleepers::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock until the guard is dropped.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T> {
        self.acquire();
        Guard { lock: self }
    }

    /// Marks it as taken: whether it was before.
    #[inline(always)]
    fn take(&self) -> bool {
        // ORDER: Acquire, partner is the Release store in `release`: what the last holder wrote is seen.
        #[cfg(not(loom))]
        let taken = self.locked.swap(true, Ordering::Acquire);
        // loom lets the mark of an exchange that came too late stand after the lock was given back: it gets one that leaves none.
        // ORDER: as above.
        #[cfg(loom)]
        let taken = self.locked.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err();
        taken
    }

    /// Takes the lock if nobody has it, this thread included.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        if self.take() { None } else { Some(Guard { lock: self }) }
    }

    /// Takes the lock if it is given back within `wait`: whoever holds it may be the application, between two calls.
    pub fn lock_within(&self, wait: Duration) -> Option<Guard<'_, T>> {
        let start = Instant::now();
        loop {
            if let Some(guard) = self.try_lock() {
                return Some(guard);
            }
            if start.elapsed() >= wait {
                return None;
            }
            std::thread::yield_now();
        }
    }

    /// Takes the lock with no guard: [`SpinLock::release`] has to follow, on the same thread.
    #[inline(always)]
    pub fn acquire(&self) {
        if self.locking {
            if self.take() {
                self.contended();
            }
        } else {
            // One thread uses it, and so a plain store tells all that another one may ask: whether it is in use just now. On
            // x86-64 it costs a cycle where the exchange costs twenty.
            // ORDER: Relaxed, with the fence, which only stops the compiler: it is in program order before what the user of
            // the lock reads. A thread that asks makes all CPUs pass a barrier between its own store and its load
            // (membarrier(2)): then either it sees this store, or the user sees what it stored.
            self.locked.store(true, Ordering::Relaxed);
        }
        half_of_membarrier();
    }

    #[cfg(loom)]
    fn contended(&self) {
        let mut sleeper = self.sleepers.mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while self.take() {
            sleeper = self.sleepers.freed.wait(sleeper).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    #[cfg(not(loom))]
    #[cold]
    fn contended(&self) {
        let mut spins = 0;
        loop {
            // ORDER: Relaxed, only a hint to try again; the swap below is what synchronises.
            while self.locked.load(Ordering::Relaxed) {
                spins += 1;
                if spins % SPINS_BEFORE_YIELD == 0 {
                    std::thread::yield_now();
                } else {
                    core::hint::spin_loop();
                }
            }
            if !self.take() {
                return;
            }
        }
    }

    /// Gives back what [`SpinLock::acquire`] took.
    ///
    /// # Safety
    /// The calling thread holds the lock, and no reference from [`SpinLock::held`] is used afterwards.
    #[inline(always)]
    pub unsafe fn release(&self) {
        // ORDER: Release, partner is the Acquire swap of the next holder.
        self.locked.store(false, Ordering::Release);
        #[cfg(loom)]
        {
            let _sleepers = self.sleepers.mutex.lock();
            self.sleepers.freed.notify_all();
        }
    }

    /// Whether nobody holds the lock at some moment during the call. Where the lock does not lock this tells of the mark that its
    /// one thread leaves while it uses the value: whoever asks has had each CPU pass a barrier since it wrote what that thread
    /// is to see.
    pub fn is_idle(&self) -> bool {
        // ORDER: Acquire, partner is the Release store in `release`: what the last holder wrote is seen.
        !self.locked.load(Ordering::Acquire)
    }

    /// The value, for a thread that took the lock with [`SpinLock::acquire`].
    ///
    /// # Safety
    /// The calling thread holds the lock and uses no other reference to the value meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "exclusive by L2, which the caller vouches for")]
    pub unsafe fn held(&self) -> &mut T {
        // SAFETY: L2, by the caller's word that it holds the lock.
        unsafe { &mut *self.value.get() }
    }

    /// The value, where `&mut self` already excludes everyone else.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: L2: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: L2: this guard holds the lock, and `&mut self` is the only way through it.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the guard is the proof that this thread holds the lock; it is gone after this.
        unsafe { self.lock.release() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_threads_never_hold_it_at_once() {
        let lock = SpinLock::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let mut pair = lock.lock();
                        pair.0 += 1;
                        pair.1 += 1;
                        assert_eq!(pair.0, pair.1);
                    }
                });
            }
        });
        assert_eq!(lock.lock().0, 80_000);
    }

    #[test]
    fn waiting_ends() {
        let lock = SpinLock::new(1);
        assert!(lock.lock_within(Duration::ZERO).is_some());
        let _held = lock.lock();
        assert!(lock.lock_within(Duration::from_millis(1)).is_none());
    }

    #[test]
    fn without_locking_nothing_is_waited_for() {
        // SAFETY: this thread alone.
        let lock = SpinLock::with(unsafe { Locking::no() }, 1);
        lock.acquire();
        lock.acquire();
        assert_eq!(*lock.lock(), 1);
    }

    #[test]
    fn acquire_and_release_span_calls() {
        let lock = SpinLock::new(1);
        lock.acquire();
        // SAFETY: acquired above.
        *unsafe { lock.held() } += 1;
        // SAFETY: acquired above.
        unsafe { lock.release() };
        assert_eq!(*lock.lock(), 2);
    }
}
