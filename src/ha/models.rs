//! The hand-over between who posts, who polls and who closes, in every order of their steps that loom finds.
//!
//! loom knows no membarrier(2): where the closer has every CPU pass a barrier, there is a fence in the closer and one in
//! [`SpinLock::acquire`]. It takes sequentially consistent loads and stores for acquire and release, and so only fences
//! order a store before a load.
#![allow(unsafe_code, reason = "gives the word that one thread uses a lock that does not lock")]

use std::sync::Arc;

use loom::sync::Mutex;
use loom::thread;

use super::flush::Flush;
use super::gate::Gate;
use super::life::{Life, Phase, Sign};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use crate::sync::models::barrier;
pub(crate) use crate::sync::models::{check, check_within};
use crate::sync::{Locking, SpinLock, allow_owners};

/// A send queue, as far as the gate is concerned.
struct Queue {
    gate: Gate,
    lock: SpinLock<()>,
    /// What the device was told.
    rung: AtomicU32,
    kept: AtomicU32,
    life: Life,
}

impl Queue {
    fn new(locking: Locking) -> Queue {
        Queue::behind(SpinLock::with(locking, ()))
    }

    /// Which the first thread to post owns.
    fn owned() -> Queue {
        allow_owners(barrier);
        Queue::behind(SpinLock::new(()).with_owners())
    }

    fn behind(lock: SpinLock<()>) -> Queue {
        let gate = Gate::new();
        gate.set(8);
        Queue { gate, lock, rung: AtomicU32::new(0), kept: AtomicU32::new(0), life: Life::default() }
    }

    fn post(&self) {
        let _guard = self.lock.lock();
        if self.gate.limit() == 0 {
            assert!(self.gate.is_closed(), "a limit of 0 without a reason");
            // ORDER: Release, partner is the load in `owes`, as a ring's `kept`.
            self.kept.fetch_add(1, Ordering::Release);
            self.life.keep();
        } else {
            // ORDER: Relaxed: the device's word.
            self.rung.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As `verbs::death` closes the gates.
    fn close(&self) {
        self.gate.close();
        fence(Ordering::SeqCst);
        while !self.lock.is_idle() {
            thread::yield_now();
        }
    }

    fn told(&self) -> u32 {
        // ORDER: Relaxed: what has to be seen is seen by the lock.
        self.rung.load(Ordering::Relaxed)
    }
}

fn nothing_rings_behind_a_closed_gate(name: &str, locking: Locking) {
    const POSTS: u32 = 2;
    check(name, move || {
        let queue = Arc::new(Queue::new(locking));
        let poster = {
            let queue = queue.clone();
            thread::spawn(move || (0..POSTS).for_each(|_| queue.post()))
        };
        queue.close();
        let told = queue.told();
        poster.join().unwrap();
        assert_eq!(queue.told(), told, "the device was told of more after the gate was closed");
        // ORDER: Relaxed: joined.
        assert_eq!(told + queue.kept.load(Ordering::Relaxed), POSTS, "each is rung or kept");
        queue.post();
        assert_eq!(queue.told(), told);
    });
}

#[test]
fn nothing_rings_behind_a_closed_gate_with_locks() {
    nothing_rings_behind_a_closed_gate("gate, locked queue", Locking::YES);
}

#[test]
fn nothing_rings_behind_a_closed_gate_without_locks() {
    // SAFETY: one thread posts; the closer only asks whether the lock is in use, and posts when that thread has ended.
    nothing_rings_behind_a_closed_gate("gate, queue without locks", unsafe { Locking::no() });
}

#[test]
fn nothing_rings_behind_a_closed_gate_of_a_queue_with_an_owner() {
    check_within("gate, owned queue", Some(3), || {
        let queue = Arc::new(Queue::owned());
        let poster = {
            let queue = queue.clone();
            thread::spawn(move || {
                // Owns it by this one, and posts the others by its mark.
                queue.post();
                queue.post();
                queue.post();
            })
        };
        queue.close();
        let told = queue.told();
        poster.join().unwrap();
        assert_eq!(queue.told(), told, "the device was told of more after the gate was closed");
        // ORDER: Relaxed: joined.
        assert_eq!(told + queue.kept.load(Ordering::Relaxed), 3);
    });
}

#[test]
fn nothing_rings_behind_a_closed_gate_whose_queue_is_taken_from_its_owner() {
    check_within("gate, owner and another", Some(2), || {
        let queue = Queue::owned();
        queue.post();
        // This thread owns it now.
        let queue = Arc::new(queue);
        let other = {
            let queue = queue.clone();
            thread::spawn(move || queue.post())
        };
        let closer = {
            let queue = queue.clone();
            thread::spawn(move || {
                queue.close();
                queue.told()
            })
        };
        queue.post();
        let told = closer.join().unwrap();
        other.join().unwrap();
        // ORDER: Relaxed: joined.
        assert_eq!((queue.told(), told + queue.kept.load(Ordering::Relaxed)), (told, 3));
    });
}

#[test]
fn two_posters_and_a_closer() {
    check_within("gate, two posters", Some(2), || {
        let queue = Arc::new(Queue::new(Locking::YES));
        let posters = [(); 2].map(|()| {
            let queue = queue.clone();
            thread::spawn(move || queue.post())
        });
        queue.close();
        let told = queue.told();
        for poster in posters {
            poster.join().unwrap();
        }
        // ORDER: Relaxed: joined.
        assert_eq!((queue.told(), told + queue.kept.load(Ordering::Relaxed)), (told, 2));
    });
}

#[test]
fn a_gate_that_is_set_while_it_is_closed_stays_closed() {
    check("gate, set and close", || {
        let gate = Arc::new(Gate::new());
        let setter = {
            let gate = gate.clone();
            thread::spawn(move || {
                gate.set(5);
                gate.set(6);
            })
        };
        gate.close();
        setter.join().unwrap();
        assert_eq!((gate.limit(), gate.is_closed()), (0, true));
    });
}

/// A queue that was closed and owes what it keeps, and the completion queue it completes to.
struct Dead {
    queue: Queue,
    given: AtomicU32,
    flush: SpinLock<Flush>,
    /// Kicks of the watcher.
    kicks: Arc<AtomicBool>,
}

impl Dead {
    fn new() -> Dead {
        let queue = Queue::new(Locking::YES);
        queue.close();
        queue.life.note(Sign::Early);
        queue.life.note(Sign::Final);
        let kicks = Arc::new(AtomicBool::new(false));
        let kicked = kicks.clone();
        // ORDER: Release, partner is the loads in the models.
        queue.life.set_kick(Box::new(move || kicked.store(true, Ordering::Release)));
        Dead { queue, given: AtomicU32::new(0), flush: SpinLock::new(Flush::default()), kicks }
    }

    fn poll(&self) -> Option<()> {
        let mut flush = self.flush.lock();
        flush.next(&self.queue.life, 1, |_| {
            // ORDER: Relaxed: only polls write it, under the lock.
            let given = self.given.load(Ordering::Relaxed);
            // ORDER: Acquire, partner is `post`.
            if given == self.queue.kept.load(Ordering::Acquire) {
                return None;
            }
            // ORDER: Relaxed, as above.
            self.given.store(given + 1, Ordering::Relaxed);
            Some(())
        })
    }
}

#[test]
fn a_sleeper_finds_the_post_or_the_post_the_sleeper() {
    check("sleeper and kept post", || {
        let dead = Arc::new(Dead::new());
        let poster = {
            let dead = dead.clone();
            thread::spawn(move || dead.queue.post())
        };
        // The queue was found empty before, as by a program that then arms.
        let before = dead.poll().is_some();
        dead.queue.life.sleep();
        let found = before || dead.poll().is_some();
        poster.join().unwrap();
        // ORDER: Acquire, partner is the kick.
        assert!(found || dead.kicks.load(Ordering::Acquire), "asleep, and nobody wakes it");
        assert!(found || dead.queue.life.take_sleepers());
    });
}

#[test]
fn a_walk_that_found_nothing_is_not_the_last_word() {
    check("empty walk and kept post", || {
        let dead = Arc::new(Dead::new());
        let poster = {
            let dead = dead.clone();
            thread::spawn(move || dead.queue.post())
        };
        let mut polled = u32::from(dead.poll().is_some());
        polled += u32::from(dead.poll().is_some());
        poster.join().unwrap();
        polled += u32::from(dead.poll().is_some());
        assert_eq!((polled, dead.poll()), (1, None));
    });
}

#[test]
fn each_change_is_told_once() {
    check("signs from two threads", || {
        let life = Arc::new(Life::default());
        let other = {
            let life = life.clone();
            thread::spawn(move || [Sign::Early, Sign::Final].map(|sign| life.note(sign)))
        };
        let mine = [Sign::Removing, Sign::Final].map(|sign| life.note(sign));
        let mut told: Vec<_> = mine.into_iter().chain(other.join().unwrap()).flatten().collect();
        told.sort_by_key(|change| change.to);
        let told: Vec<_> = told.iter().map(|change| (change.from, change.to)).collect();
        assert_eq!(told, [(Phase::Alive, Phase::Dying), (Phase::Dying, Phase::Gone)]);
        assert!(life.first_sign().is_some());
    });
}

/// A context as `verbs::death` brings it from alive to gone.
struct Dying {
    queue: Queue,
    /// Held while a sign is acted on, as the list of contexts.
    acting: Mutex<()>,
}

impl Dying {
    fn sign(&self, sign: Sign) {
        let _acting = self.acting.lock().unwrap();
        let Some(change) = self.queue.life.note(sign) else { return };
        if change.from == Phase::Alive {
            self.queue.close();
            if sign == Sign::Final {
                self.queue.life.note(sign);
            }
        }
    }
}

#[test]
fn nothing_is_flushed_before_the_gates_are_closed() {
    check("signs, a poster and a poll", || {
        let context = Arc::new(Dying { queue: Queue::new(Locking::YES), acting: Mutex::new(()) });
        let signs = [Sign::Early, Sign::Final].map(|sign| {
            let context = context.clone();
            thread::spawn(move || context.sign(sign))
        });
        // This thread polls a queue that is gone, and then posts.
        if context.queue.life.is_gone() {
            let told = context.queue.told();
            context.queue.post();
            assert_eq!(context.queue.told(), told, "flushed, and the device hears of more");
        }
        for thread in signs {
            thread.join().unwrap();
        }
        assert_eq!(context.queue.life.phase(), Phase::Gone);
    });
}
