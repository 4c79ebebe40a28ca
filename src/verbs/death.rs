//! What happens to a context when its device dies: the gates of its queues are closed, its completion channels taken over,
//! its sleepers woken. What the signs mean is decided in [`crate::ha`]; who brings them is [`super::watch`].
#![allow(unsafe_code, reason = "reaches the objects of a context, which C owns")]

use core::sync::atomic::Ordering;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cast;
use super::channel::{self, Channel};
use super::context::{Context, Kind, Node};
use super::cq::Cq;
use super::qp::{Qp, QpHead};
use super::srq::Srq;
use super::watch::{self, Watched};
use crate::abi::public::*;
use crate::error::{Errno, Error};
use crate::family::{Family, QueuePair as _, SharedReceiveQueue as _};
use crate::ha::life::{Change, Life, Phase, Sign};
use crate::log;
use crate::uapi;
use crate::uapi::sys::{self, OwnedFd, process};

/// How long the closing of the gates waits for posts under way. They take nanoseconds; but a thread may stay between
/// `ibv_wr_start` and `ibv_wr_complete` for as long as it likes, and wait for us there.
const QUIESCE: Duration = Duration::from_secs(5);

/// For so long after the end, in nanoseconds, sleepers are looked for who slept through the change of their file.
const RESCUE: u64 = 5_000_000_000;

/// A live object of a context.
pub(super) enum Object<'a, F: Family> {
    Cq(&'a Cq<F>),
    Srq(&'a Srq<F>),
    Qp(&'a Qp<F>),
}

/// The object of `kind` at `at`; of a CQ, ours.
///
/// # Safety
/// It is alive during `'a`: the list of live objects that names it is locked.
unsafe fn object<'a, F: Family>(kind: Kind, at: usize) -> Object<'a, F> {
    let at: *mut u8 = core::ptr::with_exposed_provenance_mut(at);
    match kind {
        // SAFETY: the caller's word.
        Kind::Cq => Object::Cq(unsafe { &*at.cast() }),
        // SAFETY: the caller's word.
        Kind::Srq => Object::Srq(unsafe { cast::body::<verbs_srq, Srq<F>>(at.cast()) }),
        // SAFETY: the caller's word.
        Kind::Qp | Kind::Sharer => Object::Qp(unsafe { cast::body::<QpHead, Qp<F>>(at.cast()) }),
    }
}

impl<F: Family> Object<'_, F> {
    fn close(&self) {
        match self {
            // Who arms or polls looks at the context by itself.
            Object::Cq(_) => {}
            Object::Srq(srq) => srq.queue.close(),
            Object::Qp(qp) => qp.queues.close(),
        }
    }

    fn is_quiet(&self) -> bool {
        match self {
            Object::Cq(cq) => cq.is_quiet(),
            Object::Srq(srq) => srq.queue.is_quiet(),
            Object::Qp(qp) => qp.queues.is_quiet(),
        }
    }
}

impl<F: Family> Context<F> {
    /// `EIO` once the device is dying: nothing new is asked of it, and nobody waits for it.
    ///
    /// # Errors
    /// As said.
    pub(crate) fn usable(&self) -> Result<(), Error> {
        if self.device.life.is_over() {
            Err(Error::new("use a device that is gone", Errno::EIO))
        } else {
            Ok(())
        }
    }

    /// An object came while the device was dying: it is closed like the others.
    pub(crate) fn close_late(&self, kind: Kind, at: usize) {
        if self.device.life.is_over() {
            // SAFETY: the caller just made it.
            unsafe { object::<F>(kind, at) }.close();
        }
    }

    pub(super) fn each(&self, mut f: impl FnMut(Object<'_, F>)) {
        let live = self.live();
        for (kind, at) in live.iter(Kind::ALL) {
            // SAFETY: in the list, which is locked.
            f(unsafe { object::<F>(kind, at) });
        }
    }

    /// Closes every gate and waits for stores that are under way.
    ///
    /// First what stores to the device's pages pass: of thousands of queue pairs nearly all share their doorbells with others, and
    /// these are few. Then their own gates, behind which the doorbell records of their receives are left alone, too.
    fn close_gates(&self) {
        self.family.close_doorbells();
        self.close(Kind::ALONE);
        self.device.life.quiesced();
        log::info!("{}: gate closed", self.device.ibdev);
        self.close(&[Kind::Sharer]);
    }

    /// Closes the gates of all objects of `kinds`, and waits for stores that are under way behind them and behind doorbells that
    /// were closed before.
    fn close(&self, kinds: &'static [Kind]) {
        // SAFETY: in the list, which is locked.
        let is_quiet = |kind, at| unsafe { object::<F>(kind, at) }.is_quiet();
        let live = self.live();
        for (kind, at) in live.iter(kinds) {
            // SAFETY: as above.
            unsafe { object::<F>(kind, at) }.close();
        }
        // What was closed is seen by posts of queues without locks, too, and what they mark is seen here.
        process::pass_barrier();
        // Nearly all are quiet: of thousands, few are looked for again.
        let mut waiting: Vec<(Kind, usize)> =
            live.iter(kinds).filter(|(kind, at)| !is_quiet(*kind, *at)).collect();
        drop(live);
        let start = Instant::now();
        while !waiting.is_empty() || !self.family.is_quiet() {
            if start.elapsed() > QUIESCE {
                log::warn!(
                    "{}: {} queues are still being posted to; what they post now reaches nobody",
                    self.device.ibdev,
                    waiting.len()
                );
                break;
            }
            std::thread::yield_now();
            let live = self.live();
            waiting.retain(|(kind, at)| live.contains(*kind, *at) && !is_quiet(*kind, *at));
        }
    }

    /// Has the kernel destroy every queue pair, so that the device touches no memory of ours any more.
    fn stop(&self) {
        self.each(|object| {
            if let Object::Qp(qp) = object {
                // It said before what it could not take to memory of ours.
                let _ = qp.queues.freeze();
                qp.stop();
            }
        });
    }

    /// Takes the completion channels over; from then on events are ours to give.
    fn take_channels(&self) {
        let cqs = self.live().cqs();
        let owed = |channel: &Arc<Channel>| {
            let mut owed = Vec::new();
            self.each(|object| {
                if let Object::Cq(cq) = object {
                    owed.extend(cq.take_owed(channel));
                }
            });
            owed
        };
        let mut channels = self.channels.all();
        channels.retain(|channel| !channel.is_taken_over());
        if let Err((fd, errno)) = channel::take_over(&channels, cqs, owed) {
            log::error!(
                "{}: completion channel {fd}: no pipe of our own ({errno}); who sleeps there gets EIO{}",
                self.device.ibdev,
                if errno == Errno::EMFILE { "; raise the limit on open files (ulimit -n)" } else { "" }
            );
        }
    }

    /// Notes a sign, and tells a program that asked of the change that it makes.
    fn note(&self, sign: Sign) -> Option<Change> {
        let change = self.device.life.note(sign)?;
        if let Some(changes) = self.changes.get() {
            sys::count(changes.as_raw());
        }
        Some(change)
    }

    /// The channels that sleepers are looked for on, who slept through the change of their file: none, once the end was a
    /// while ago.
    fn looked_after(&self) -> Vec<Arc<Channel>> {
        let [_, _, gone] = self.device.life.ages();
        if gone.is_some_and(|age| age < RESCUE) { self.channels.all() } else { Vec::new() }
    }

    /// Gives each armed CQ its event.
    fn wake(&self) {
        self.each(|object| {
            if let Object::Cq(cq) = object {
                cq.wake();
            }
        });
    }
}

impl<F: Family> Watched for Context<F> {
    fn life(&self) -> &Life {
        &self.device.life
    }

    fn events(&self) -> Option<RawFd> {
        self.events().as_ref().map(OwnedFd::as_raw)
    }

    fn removal(&self) -> Option<RawFd> {
        self.removal().as_ref().map(OwnedFd::as_raw)
    }

    fn is_stale(&self) -> bool {
        // ORDER: Relaxed: a hint.
        self.stale.load(Ordering::Relaxed)
    }

    fn refresh(&self) {
        // ORDER: Relaxed, as above.
        if self.stale.swap(false, Ordering::Relaxed)
            && !self.device.life.is_over()
            && let Ok(newest) = uapi::event::create_comp_channel(self.device.fd)
        {
            *self.removal() = Some(newest);
        }
    }

    fn channels(&self) -> Vec<RawFd> {
        if self.device.life.phase() != Phase::Dying {
            return Vec::new();
        }
        self.channels.all().iter().filter_map(|channel| channel.kernel()).collect()
    }

    fn pump(&self) {
        if self.device.life.phase() != Phase::Dying {
            return;
        }
        for channel in self.channels.all() {
            channel.pump();
        }
    }

    fn waits_for_users(&self) -> bool {
        F::WAITS_FOR_USERS
    }

    fn is_node_gone(&self) -> bool {
        self.node.as_ref().is_some_and(Node::is_gone)
    }

    fn sign(&self, sign: Sign) {
        if sign == Sign::NodeGone && !F::WAITS_FOR_USERS {
            // The kernel takes the device away by itself, and says so.
            return;
        }
        let Some(change) = self.note(sign) else { return };
        if change.from == Phase::Alive {
            // Sleepers are brought along before all else: the kernel is about to close what they sleep on. But where nobody
            // would pass on what the kernel's files still tell, these stay until they tell nothing more.
            if watch::is_running() {
                self.take_channels();
            }
            log::warn!("{}: {}", self.device.ibdev, sign.text());
            self.close_gates();
            self.pump();
            match sign {
                _ if F::WAITS_FOR_USERS => {
                    self.freeze();
                    self.stop();
                    self.pump();
                    self.let_go_of_memory();
                    self.note(Sign::Stopped);
                }
                Sign::Final | Sign::Stopped => {
                    self.note(sign);
                }
                Sign::Forced => {
                    self.stop();
                    self.pump();
                    self.note(Sign::Stopped);
                }
                _ => return,
            }
        }
        // Those that could not be had before, too.
        self.take_channels();
        for channel in self.channels.all() {
            channel.let_go();
        }
        self.wake();
        log::info!("{}: gone; what is owed is flushed", self.device.ibdev);
        if F::WAITS_FOR_USERS && change.from == Phase::Alive {
            self.let_go_of_files();
        }
    }

    fn is_unread(&self) -> bool {
        self.looked_after().iter().any(|channel| channel.is_unread())
    }

    fn rescue(&self) -> bool {
        channel::rescue(&self.looked_after())
    }

    fn rouse(&self) {
        if self.device.life.is_gone() {
            self.wake();
        }
    }
}
