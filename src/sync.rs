//! The queue lock of the data path.
//!
//! A queue's lock is held for tens of nanoseconds, two threads seldom want it at once, and most queues are only ever used by one
//! thread. So the lock learns whose it is: a thread that took it twice in a row becomes its *owner*, and from then on takes
//! it by a plain store of a mark and gives it back by another, where the locked exchange of a spin lock costs 25 of the 90 cycles
//! of a whole post. Whoever else comes takes the lock proper by exchange, and from its owner the right to do without: it says so
//! in `owner`, makes every CPU of the process pass a barrier (membarrier(2)) and waits until the mark is gone. This is done
//! at most `REVOCATIONS` times to a lock, each needing a longer row before; after that it is a plain spin lock.
//!
//! Each owner that a lock has had has a mark of its own: one that lost its right may find out late, having set its mark in vain, and
//! takes it away again, which must not be the mark of the next.
//!
//! Why the mark is enough: the owner stores the mark, then loads `owner`, with nothing but program order between them. The other
//! thread stores to `owner`, then loads the mark, with the barrier between them, which also lies somewhere in the owner's program
//! order. If before its load, the load sees the other thread's store, and the owner steps back. If after its store, the other
//! thread sees the mark, and waits. It cannot be after the load and before the store. This holds on every architecture: the
//! barrier that the owner does not spend is the one that membarrier makes it pass.
//!
//! `ibv_wr_start` takes a lock that `ibv_wr_complete`, another function, gives back; hence [`SpinLock::acquire`] and
//! [`SpinLock::release`] beside the guard.
//!
//! Invariants of [`SpinLock`]:
//! - L1: who *has* the lock is either the thread that `owner` names (or, while it says `REVOKING`, has named before) and has set
//!   the mark that `owner` says, or the one that made `taken` true while `owner` is `SHARED`; from then until it released it by
//!   the same word.
//! - L2: `value` and `history` are reached only by whoever has the lock, so never by two threads at once; or, without locking
//!   (`owner` is `UNLOCKED` for good), by the one thread of which the maker of [`Locking::no`] gave its word.
//! - L3: `owner` is written by a thread that made `taken` true, and only while `taken` is true.
#![allow(
    unsafe_code,
    reason = "a lock is where exclusive access is made; std's guard cannot outlive a C call"
)]

/// The atomics that the lock and `ha` are made of: loom's where a model is checked.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

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
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use atomic::{AtomicBool, AtomicUsize, Ordering, half_of_membarrier};

use crate::config::OUTLIVES_DEVICES;

/// Spins this often before it lets another thread run: a holder that was descheduled cannot be spun out.
#[cfg(not(loom))]
const SPINS_BEFORE_YIELD: u32 = 1 << 10;

/// The bits of `owner` that say which mark it uses.
const MARK: usize = 3;
/// `owner` of a lock that all take by the exchange.
const SHARED: usize = 0;
/// `owner`, with the mark, while somebody takes the right to it away.
const REVOKING: usize = 1 << 2;
/// `owner`, with the first mark, of a lock that does not lock.
const UNLOCKED: usize = 1 << 3;

/// How often a lock may be taken from its owner: one mark is for the last owner.
const REVOCATIONS: usize = MARK;

/// How many times in a row the same thread has to take a lock that was taken from its owner `revoked` times, to own it.
#[cfg(not(loom))]
const fn row(revoked: usize) -> u32 {
    1 << (6 * revoked)
}

/// The barrier that all CPUs pass; none where there is no such system call, and then no lock is owned.
static BARRIER: OnceLock<fn()> = OnceLock::new();

/// Locks may have owners: `barrier` makes each thread of the process pass a full barrier between its call and its return.
pub fn allow_owners(barrier: fn()) {
    BARRIER.get_or_init(|| barrier);
}

/// Whether [`allow_owners`] was called.
pub fn owners_are_allowed() -> bool {
    BARRIER.get().is_some()
}

/// The calling thread, told from all others that live: the address of its control block, which is never a small number and leaves
/// the bits of [`MARK`] free. A thread that gets the one of a thread that ended began after that end. (In a model: a number.)
#[cfg(loom)]
fn thread() -> usize {
    /// Of a model's threads; from there on none means something else.
    static NUMBERS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(16);
    loom::thread_local!(static HERE: usize = NUMBERS.fetch_add(MARK + 1, Ordering::Relaxed));
    HERE.with(|here| *here)
}

/// See the other: this is no model's.
#[cfg(not(loom))]
#[inline(always)]
fn thread() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        let own: usize;
        // SAFETY: the ABI keeps the control block's own address in its first word, at the FS segment's base.
        unsafe {
            core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) own, options(pure, readonly, nostack, preserves_flags));
        }
        own
    }
    #[cfg(target_arch = "aarch64")]
    {
        let own: usize;
        // SAFETY: reads the thread pointer, which user mode may.
        unsafe {
            core::arch::asm!("mrs {}, tpidr_el0", out(reg) own, options(pure, nomem, nostack, preserves_flags));
        }
        own
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        std::thread_local!(static HERE: u64 = const { 0 });
        HERE.with(|here| core::ptr::from_ref(here).addr())
    }
}

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

/// How the lock proper was used: what decides who becomes its owner.
#[derive(Debug)]
struct History {
    /// The thread that took it last, and how often in a row before that.
    last: usize,
    row: u32,
    /// How often it was taken from an owner: the mark of the next.
    revoked: u32,
}

/// Where a lock begins: at the start of a cache line.
#[derive(Debug)]
#[repr(align(64))]
pub struct Line;

/// A lock around `T`; see the module.
///
/// Its line is its own: two threads with a lock each would slow each other down threefold where one ends and the next begins. (Not so of
/// one that is made by [`SpinLock::among`].) And what everybody reads first, but nobody writes once it is shared, is first, what is
/// written by all who take it last.
#[derive(Debug)]
#[repr(C)]
pub struct SpinLock<T, L = Line> {
    at: [L; 0],
    owner: AtomicUsize,
    value: UnsafeCell<T>,
    history: UnsafeCell<History>,
    marks: [AtomicBool; MARK + 1],
    taken: AtomicBool,
    #[cfg(loom)]
    model: Model,
}

/// What a lock needs in a model. A thread that spins has no end of orders: it sleeps until the lock is given back. And each further
/// step multiplies the orders: only the lock's own models have owners, from the first time that somebody takes it.
#[cfg(loom)]
#[derive(Debug)]
struct Model {
    mutex: loom::sync::Mutex<()>,
    freed: loom::sync::Condvar,
    owners: bool,
}

#[cfg(loom)]
impl Model {
    fn new() -> Model {
        Model { mutex: loom::sync::Mutex::new(()), freed: loom::sync::Condvar::new(), owners: false }
    }

    /// Until `done`.
    fn sleep(&self, mut done: impl FnMut() -> bool) {
        let mut sleeper = self.mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while !done() {
            sleeper = self.freed.wait(sleeper).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        let _sleeper = self.mutex.lock();
        self.freed.notify_all();
    }
}

// SAFETY: L2 gives one thread at a time the value and the history, so `T: Send` is all that sharing needs.
unsafe impl<T: Send, L> Sync for SpinLock<T, L> {}

/// The lock held; given back when dropped.
#[derive(Debug)]
pub struct Guard<'a, T, L = Line> {
    lock: &'a SpinLock<T, L>,
}

/// The lock held by its mark; given back when dropped.
#[derive(Debug)]
pub struct Marked<'a, T, L = Line> {
    lock: &'a SpinLock<T, L>,
    mark: &'a AtomicBool,
}

impl<T> SpinLock<T> {
    /// An open lock around `value`.
    pub fn new(value: T) -> SpinLock<T> {
        SpinLock::with(Locking::YES, value)
    }

    /// An open lock around `value` that locks as `locking` says.
    pub fn with(locking: Locking, value: T) -> SpinLock<T> {
        SpinLock::at(locking, value)
    }
}

impl<T> SpinLock<T, ()> {
    /// An open lock around `value` that shares its line with what is beside it: with what its users write all the same.
    pub fn among(value: T) -> SpinLock<T, ()> {
        SpinLock::at(Locking::YES, value)
    }
}

impl<T, L> SpinLock<T, L> {
    fn at(locking: Locking, value: T) -> SpinLock<T, L> {
        SpinLock {
            at: [],
            owner: AtomicUsize::new(if locking.0 { SHARED } else { UNLOCKED }),
            marks: [(); MARK + 1].map(|()| AtomicBool::new(false)),
            taken: AtomicBool::new(false),
            history: UnsafeCell::new(History { last: 0, row: 0, revoked: 0 }),
            #[cfg(loom)]
            model: Model::new(),
            value: UnsafeCell::new(value),
        }
    }

    /// For models: with owners, from the first time that somebody takes it.
    #[cfg(all(test, loom))]
    pub(crate) fn with_owners(mut self) -> SpinLock<T, L> {
        self.model.owners = true;
        self
    }

    /// Takes the lock until the guard is dropped.
    #[inline(always)]
    pub fn lock(&self) -> Guard<'_, T, L> {
        self.acquire();
        Guard { lock: self }
    }

    /// Takes the lock if that costs next to nothing: this thread owns it, or it does not lock.
    #[inline(always)]
    pub fn lock_own(&self) -> Option<Marked<'_, T, L>> {
        let mark = self.mark()?;
        Some(Marked { lock: self, mark })
    }

    /// Takes the lock if nobody has it, this thread included; without locking, unless it is in use.
    pub fn try_lock(&self) -> Option<Guard<'_, T, L>> {
        // ORDER: Relaxed: only a look, and nothing of the value is looked at.
        if self.marked(self.owner.load(Ordering::Relaxed)).load(Ordering::Relaxed) {
            return None;
        }
        if self.mark().is_some() {
            return Some(Guard { lock: self });
        }
        if self.exchange() {
            return None;
        }
        if self.revoke(false) {
            return Some(Guard { lock: self });
        }
        self.give_back();
        None
    }

    /// Takes the lock if it is given back within `wait`: whoever holds it may be the application, between two calls.
    pub fn lock_within(&self, wait: Duration) -> Option<Guard<'_, T, L>> {
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

    /// Takes the lock with no guard: [`SpinLock::release`] has to follow.
    #[inline(always)]
    pub fn acquire(&self) {
        if self.mark().is_none() {
            self.take();
        }
    }

    /// The mark of `owner`. (A match on its bits became two jumps through tables, 7 cycles of each lock.)
    #[inline(always)]
    fn marked(&self, owner: usize) -> &AtomicBool {
        let [first, ..] = &self.marks;
        // Always there, which the compiler sees.
        self.marks.get(owner & MARK).unwrap_or(first)
    }

    /// Takes the lock by its mark, if that is this thread's right: which mark.
    #[inline(always)]
    fn mark(&self) -> Option<&AtomicBool> {
        // ORDER: Relaxed: what the thread that has the right is to see, it saw when it got it, by its own exchange of `taken`.
        let owner = self.owner.load(Ordering::Relaxed);
        if owner == UNLOCKED {
            // Named, not looked up: two instructions where there are fewest.
            let [mark, ..] = &self.marks;
            // The mark keeps nobody out. It tells whoever asks whether the value is in use just now (`is_idle`).
            // ORDER: Relaxed, with half of a membarrier: see the module.
            if OUTLIVES_DEVICES {
                mark.store(true, Ordering::Relaxed);
                half_of_membarrier();
            }
            return Some(mark);
        }
        let mark = self.marked(owner);
        // A mark that is set is this thread's own: it has the lock, and waits for itself as with any other lock.
        // ORDER: Relaxed: only the owner sets it.
        if (owner ^ thread()) > MARK || mark.load(Ordering::Relaxed) {
            return None;
        }
        // ORDER: Relaxed, with half of a membarrier: see the module.
        mark.store(true, Ordering::Relaxed);
        half_of_membarrier();
        // ORDER: Relaxed, as above.
        if self.owner.load(Ordering::Relaxed) != owner {
            self.unmark(mark);
            return None;
        }
        Some(mark)
    }

    #[inline(always)]
    fn unmark(&self, mark: &AtomicBool) {
        // ORDER: Release, partner is the Acquire load in `revoke_from`, or in `is_idle`.
        mark.store(false, Ordering::Release);
        #[cfg(loom)]
        self.model.wake();
    }

    /// Makes `taken` true: whether it was before.
    #[inline(always)]
    fn exchange(&self) -> bool {
        // ORDER: Acquire, partner is the Release store in `give_back`: what the last holder wrote is seen.
        #[cfg(not(loom))]
        let taken = self.taken.swap(true, Ordering::Acquire);
        // loom lets the mark of an exchange that came too late stand after the lock was given back: it gets one that leaves none.
        // ORDER: as above.
        #[cfg(loom)]
        let taken = self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err();
        taken
    }

    /// Takes the lock proper.
    #[cold]
    #[inline(never)]
    fn take(&self) {
        self.wait(|| !self.exchange(), &self.taken);
        self.revoke(true);
        // What follows is ordered behind this against whoever closes a gate and has every CPU pass a barrier.
        half_of_membarrier();
    }

    /// Until `done`, asked again when `busy` is false.
    #[cfg(not(loom))]
    fn wait(&self, mut done: impl FnMut() -> bool, busy: &AtomicBool) {
        let mut spins = 0_u32;
        while !done() {
            // ORDER: Relaxed, only a hint to try again; what `done` does synchronises.
            while busy.load(Ordering::Relaxed) {
                spins = spins.wrapping_add(1);
                if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
                    std::thread::yield_now();
                } else {
                    core::hint::spin_loop();
                }
            }
        }
    }

    #[cfg(loom)]
    fn wait(&self, done: impl FnMut() -> bool, _busy: &AtomicBool) {
        self.model.sleep(done);
    }

    /// Takes the right to the mark from an owner, if there is one; the caller made `taken` true. Where the owner uses its mark, it
    /// waits, or, not to `wait`, leaves the owner its right and says false.
    #[inline(always)]
    fn revoke(&self, wait: bool) -> bool {
        // ORDER: Relaxed: L3: the Acquire of `taken` made what was written to it visible.
        let owner = self.owner.load(Ordering::Relaxed);
        owner == SHARED || self.revoke_from(owner, wait)
    }

    #[inline(never)]
    fn revoke_from(&self, owner: usize, wait: bool) -> bool {
        let mark = self.marked(owner);
        // ORDER: Relaxed: the barrier orders it before the load of the mark. See the module.
        self.owner.store(REVOKING | owner & MARK, Ordering::Relaxed);
        if let Some(barrier) = BARRIER.get() {
            barrier();
        }
        // ORDER: Acquire, partner is the Release store in `unmark`: what the owner wrote is seen.
        let gone = || !mark.load(Ordering::Acquire);
        if wait {
            self.wait(gone, mark);
        } else if !gone() {
            // ORDER: Relaxed: it has its right as before; others come by `taken`.
            self.owner.store(owner, Ordering::Relaxed);
            return false;
        }
        // ORDER: Relaxed: from here on everybody comes by `taken`.
        self.owner.store(SHARED, Ordering::Relaxed);
        // SAFETY: L2: the mark is gone and cannot come back, and `taken` is ours.
        let history = unsafe { &mut *self.history.get() };
        history.revoked += 1;
        (history.last, history.row) = (0, 0);
        true
    }

    /// Whether the calling thread, which has the lock, has it by its mark.
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        self.holder() != SHARED
    }

    /// As what the calling thread, which has the lock, has it: SHARED for who has it by `taken`. Who has it by a mark is named by
    /// `owner` or, while somebody waits for it, was: the mark is there in both (L1).
    #[inline(always)]
    fn holder(&self) -> usize {
        // ORDER: Relaxed: this thread's own way of taking it made it so.
        self.owner.load(Ordering::Relaxed)
    }

    /// Gives back what [`SpinLock::acquire`] took.
    ///
    /// # Safety
    /// The calling thread has the lock, and no reference from [`SpinLock::held`] is used afterwards.
    #[inline(always)]
    pub unsafe fn release(&self) {
        match self.holder() {
            SHARED => self.release_taken(),
            owner => self.unmark(self.marked(owner)),
        }
    }

    /// Gives the lock proper back, and remembers who had it.
    #[inline(never)]
    fn release_taken(&self) {
        // SAFETY: L2: the caller has the lock.
        let history = unsafe { &mut *self.history.get() };
        let own = thread();
        if history.last == own {
            history.row += 1;
        } else {
            (history.last, history.row) = (own, 0);
        }
        #[cfg(not(loom))]
        let owns = history.row >= row(history.revoked as usize) && BARRIER.get().is_some();
        #[cfg(loom)]
        let owns = self.model.owners;
        if owns && history.revoked as usize <= REVOCATIONS {
            // ORDER: Relaxed: this thread alone may use it, and others see it behind the Release below.
            self.owner.store(own | history.revoked as usize, Ordering::Relaxed);
        }
        self.give_back();
    }

    fn give_back(&self) {
        // ORDER: Release, partner is the Acquire in `exchange`.
        self.taken.store(false, Ordering::Release);
        #[cfg(loom)]
        self.model.wake();
    }

    /// Whether nobody has the lock at some moment during the call. The mark is seen by whoever has had each CPU pass a barrier
    /// since it wrote what the marking thread is to see.
    pub fn is_idle(&self) -> bool {
        // The other marks are nobody's who has it: whoever took the right to one away waited for it.
        // ORDER: Acquire, as below: a mark is looked at no earlier than who has it.
        let owner = self.owner.load(Ordering::Acquire);
        // ORDER: Acquire, partners are the Release stores in `unmark` and `give_back`: what the last holder wrote is seen.
        !self.marked(owner).load(Ordering::Acquire) && !self.taken.load(Ordering::Acquire)
    }

    /// The value, for a thread that took the lock with [`SpinLock::acquire`].
    ///
    /// # Safety
    /// The calling thread has the lock and uses no other reference to the value meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "exclusive by L2, which the caller vouches for")]
    pub unsafe fn held(&self) -> &mut T {
        // SAFETY: L2, by the caller's word that it holds the lock.
        unsafe { &mut *self.value.get() }
    }

    /// The value, of a lock that nobody uses any more.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }

    /// The value, where `&mut self` already excludes everyone else.
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T, L> Deref for Guard<'_, T, L> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: L2: this guard holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, L> DerefMut for Guard<'_, T, L> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: L2: this guard holds the lock, and `&mut self` is the only way through it.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, L> Drop for Guard<'_, T, L> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the guard is the proof that this thread holds the lock; it is gone after this.
        unsafe { self.lock.release() }
    }
}

impl<T, L> Marked<'_, T, L> {
    /// Keeps the lock: [`SpinLock::release`] has to follow.
    #[inline(always)]
    pub fn keep(self) {
        let _ = core::mem::ManuallyDrop::new(self);
    }
}

impl<T, L> Deref for Marked<'_, T, L> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: L2: this guard has the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, L> DerefMut for Marked<'_, T, L> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: L2: this guard has the lock, and `&mut self` is the only way through it.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, L> Drop for Marked<'_, T, L> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.unmark(self.mark);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// membarrier(2), which the layers above wrap.
    fn barrier() {
        const PRIVATE_EXPEDITED: i32 = 1 << 3;
        const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
        for command in [REGISTER_PRIVATE_EXPEDITED, PRIVATE_EXPEDITED] {
            // SAFETY: takes no pointer.
            assert_eq!(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }, 0);
        }
    }

    #[test]
    fn threads_never_hold_it_at_once_whoever_owns_it() {
        allow_owners(barrier);
        // Long rows of one thread, so that it owns the lock when another comes, and short ones.
        for row in [1, 3, 200, 10_000] {
            let lock = SpinLock::new((0_u64, 0_u64));
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let lock = &lock;
                    scope.spawn(move || {
                        for round in 0..20_000 / row {
                            for step in 0..row {
                                let mut pair = lock.lock();
                                pair.0 += 1;
                                if (thread + round + step) % 64 == 0 {
                                    std::thread::yield_now();
                                }
                                pair.1 += 1;
                                assert_eq!(pair.0, pair.1);
                            }
                            std::thread::yield_now();
                        }
                    });
                }
            });
            assert_eq!(lock.lock().0, 4 * (20_000 / row * row));
        }
    }

    #[test]
    fn a_thread_that_takes_it_twice_owns_it_until_another_comes() {
        allow_owners(barrier);
        let lock = SpinLock::new(0);
        for revoked in 0..=REVOCATIONS + 1 {
            assert!(lock.lock_own().is_none());
            for _ in 0..=row(revoked.min(REVOCATIONS)) {
                *lock.lock() += 1;
            }
            let owned = revoked <= REVOCATIONS;
            assert_eq!(lock.lock_own().is_some(), owned, "after {revoked} revocations");
            assert!(lock.is_idle());
            // While it is held, the other thread waits, and then finds what was written.
            lock.acquire();
            assert!(!lock.is_idle() && lock.try_lock().is_none());
            std::thread::scope(|scope| {
                let other = scope.spawn(|| *lock.lock());
                // SAFETY: acquired above.
                let seen = unsafe { lock.held() };
                while owned && lock.owner.load(Ordering::Relaxed) & REVOKING == 0 {
                    std::thread::yield_now();
                }
                *seen = 77;
                // SAFETY: acquired above.
                unsafe { lock.release() };
                assert_eq!(other.join().unwrap(), 77);
            });
        }
    }

    #[test]
    fn waiting_ends() {
        let lock = SpinLock::new(1);
        assert!(lock.lock_within(Duration::ZERO).is_some());
        let held = lock.lock();
        assert!(lock.lock_within(Duration::from_millis(1)).is_none());
        drop(held);
        // Held by its owner, whose right stays.
        allow_owners(barrier);
        (0..3).for_each(|_| drop(lock.lock()));
        let held = lock.lock_own();
        assert!(held.is_some());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| lock.lock_within(Duration::from_millis(1)).is_none());
            assert!(other.join().unwrap());
        });
        drop(held);
        assert!(lock.lock_own().is_some());
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

#[cfg(all(test, loom))]
pub(crate) mod models {
    use std::sync::Arc;

    use super::atomic::{AtomicU32, fence};
    use super::*;

    /// Runs `model` in every order, and says how many there were.
    pub(crate) fn check(name: &str, model: impl Fn() + Send + Sync + 'static) {
        check_within(name, None, model);
    }

    /// [`check`], with so many preemptions at most where there are too many orders.
    pub(crate) fn check_within(
        name: &str,
        preemptions: Option<usize>,
        model: impl Fn() + Send + Sync + 'static,
    ) {
        let orders = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = orders.clone();
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = preemptions;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            model();
        });
        println!("{name}: {} orders", orders.load(Ordering::Relaxed));
    }

    /// In place of membarrier; the other half is in `half_of_membarrier`.
    pub(crate) fn barrier() {
        fence(Ordering::SeqCst);
    }

    /// A value that two threads at once would be seen at.
    struct Guarded {
        lock: SpinLock<u32>,
        inside: AtomicU32,
    }

    impl Guarded {
        fn new() -> Arc<Guarded> {
            allow_owners(barrier);
            Arc::new(Guarded { lock: SpinLock::new(0).with_owners(), inside: AtomicU32::new(0) })
        }

        fn visit(&self) {
            let mut value = self.lock.lock();
            self.alone(&mut value);
        }

        fn alone(&self, value: &mut u32) {
            // ORDER: Relaxed: the lock orders it, or the assertion fails.
            assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two threads have the lock");
            *value += 1;
            // ORDER: Relaxed, as above.
            self.inside.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_owner_and_who_takes_it_from_it_are_never_both_inside() {
        check("lock: owner and another", || {
            let shared = Guarded::new();
            // The first to take it owns it.
            shared.visit();
            assert!(shared.lock.lock_own().is_some());
            let other = {
                let shared = shared.clone();
                loom::thread::spawn(move || shared.visit())
            };
            shared.visit();
            other.join().unwrap();
            assert_eq!(*shared.lock.lock(), 3);
        });
    }

    #[test]
    fn an_owner_that_finds_out_late_takes_no_mark_of_the_next() {
        // All orders are too many; three preemptions are what it takes.
        check_within("lock: two owners", Some(3), || {
            let shared = Guarded::new();
            shared.visit();
            let other = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    // Takes it from the first, and then owns it.
                    shared.visit();
                    shared.visit();
                })
            };
            shared.visit();
            other.join().unwrap();
            assert_eq!(*shared.lock.lock(), 4);
        });
    }

    #[test]
    fn who_only_tries_leaves_the_owner_its_right() {
        check("lock: a try", || {
            let shared = Guarded::new();
            shared.visit();
            let other = {
                let shared = shared.clone();
                loom::thread::spawn(move || {
                    let Some(mut value) = shared.lock.try_lock() else { return 0 };
                    shared.alone(&mut value);
                    1
                })
            };
            shared.visit();
            let got = other.join().unwrap();
            assert_eq!(*shared.lock.lock(), 2 + got);
        });
    }
}
