//! The watcher: one thread of the process that notices when a device dies.
//!
//! It waits on what each context has for that, its own async event file and, once it has CQs, its channel with none, and brings the news to
//! [`Watched::sign`]. It starts with the first context, ends with the last, and is absent in forked children. Where it may not
//! run (`HOLDFAST_WATCH=off`) or cannot, [`look`] does the same when a call meets a sign, and [`glance`] when one is made that
//! programs make all the time.
//!
//! The files that a context has for that are in an epoll instance of the watcher's, which hears of no context that comes or goes, but for
//! the last: to wake it for each was a third of what `ibv_close_device` took, and `poll(2)` keeps a file that is closed meanwhile.
//!
//! Locks: [`CONTEXTS`] is held while a sign is acted on, so that a context stays until that is done; it is taken before
//! [`THREAD`], and neither while a queue's lock is held, but for [`kick`], which takes `THREAD` alone.
//!
//! Invariant W1: an entry's context is alive as long as the entry is in the list.
#![allow(unsafe_code, reason = "keeps addresses of contexts, which C owns")]

use core::cell::RefCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config;
use crate::error::Errno;
use crate::ha::life::{Life, Sign};
use crate::ha::watch::{self, News};
use crate::log;
use crate::uapi::sys::{self, OwnedFd, process};

/// A context, as the watcher sees it.
pub(crate) trait Watched: Sync {
    /// Where it is.
    fn life(&self) -> &Life;
    /// Our own async event file.
    fn events(&self) -> Option<RawFd>;
    /// Our channel with no CQ.
    fn removal(&self) -> Option<RawFd>;
    /// Whether an event of ours, not long after the end, waits to be read.
    fn is_unread(&self) -> bool;
    /// Whether that channel is not the newest of the context's objects any more.
    fn is_stale(&self) -> bool;
    /// Replaces it with a newer one.
    fn refresh(&self);
    /// Files of completion channels that still tell of something.
    fn channels(&self) -> Vec<RawFd>;
    /// One of [`Watched::channels`] is ready.
    fn pump(&self);
    /// Whether its driver never takes the device away by itself.
    fn waits_for_users(&self) -> bool;
    /// Whether the device's node is gone.
    fn is_node_gone(&self) -> bool;
    /// A sign of death: acts on it.
    fn sign(&self, sign: Sign);
    /// Wakes who slept through the change of what is under a channel's number; whether it is to be asked again soon.
    fn rescue(&self) -> bool;
    /// Somebody may sleep for what was kept since.
    fn rouse(&self);
}

struct Entry {
    context: *const dyn Watched,
    /// Its channel told that the kernel takes the device away, and will go on to.
    removing: bool,
}

// SAFETY: W1: whoever reaches the context holds the list's lock, and contexts are Sync.
unsafe impl Send for Entry {}

impl Entry {
    fn context(&self) -> &dyn Watched {
        // SAFETY: W1: the entry is in the list, which is locked.
        unsafe { &*self.context }
    }

    /// Reads all that the context's files tell, and acts on it.
    fn look(&mut self) {
        let context = self.context();
        while let Some(Ok(event)) = context.events().map(crate::uapi::event::read_async_event) {
            log::debug!("async event {}, element {:#x}", event.event_type, event.element);
            match watch::news(event.event_type, event.element) {
                News::Sign(sign) => context.sign(sign),
                News::Look if context.is_node_gone() => context.sign(Sign::NodeGone),
                News::Look | News::Other => {}
            }
        }
        if let Some(removal) = context.removal().filter(|removal| !self.removing && is_closed(*removal)) {
            self.removing = true;
            // It would tell so for ever.
            forget(removal);
            self.context().sign(Sign::Removing);
        }
    }

    /// Renews the channel with no CQ.
    fn refresh(&self) {
        let context = self.context();
        // Before it is closed: a forked child may have it too, and then it would stay.
        context.removal().into_iter().for_each(forget);
        context.refresh();
        if !self.removing
            && let Some(removal) = context.removal()
        {
            watch(removal, 0);
        }
    }

    /// Looks for the node of a device whose end nothing else tells.
    fn look_at_node(&self) {
        let context = self.context();
        if context.waits_for_users() && !context.life().is_over() && context.is_node_gone() {
            context.sign(Sign::NodeGone);
        }
    }
}

/// Whether the kernel closed a completion channel.
fn is_closed(fd: RawFd) -> bool {
    sys::ready(fd, 0) & (libc::POLLERR | libc::POLLHUP) != 0
}

static CONTEXTS: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static THREAD: Mutex<Option<Thread>> = Mutex::new(None);

struct Thread {
    wake: OwnedFd,
    /// Where the files of contexts are.
    files: OwnedFd,
    /// The kernel's news of devices, from the first context on whose driver waits for its users: that a node goes is all that it
    /// tells of a removal.
    news: Option<OwnedFd>,
    stop: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

fn contexts() -> MutexGuard<'static, Vec<Entry>> {
    CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn thread() -> MutexGuard<'static, Option<Thread>> {
    THREAD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches `context` from now on; whether a thread does.
///
/// # Safety
/// It stays where it is until [`unregister`].
pub(crate) unsafe fn register(context: *const dyn Watched) -> bool {
    static AT_FORK: Once = Once::new();
    AT_FORK.call_once(|| {
        if let Err(errno) = process::at_fork(before_fork, after_fork, in_child) {
            log::warn!("forked children may not be able to close what they inherit: {errno}");
        }
    });
    let mut contexts = contexts();
    contexts.push(Entry { context, removing: false });
    if !config::get().watch {
        return false;
    }
    // Under both locks: a last context that goes meanwhile takes no thread away that this one counts on.
    let mut thread = thread();
    if thread.is_none() {
        match start() {
            Ok(started) => *thread = Some(started),
            Err(errno) => log::notice(format_args!(
                "cannot start the thread that watches devices ({errno}): the death of one is noticed when a call meets it"
            )),
        }
    }
    let Some(running) = &mut *thread else { return false };
    // SAFETY: the caller's word.
    let context = unsafe { &*context };
    if running.news.is_none() && context.waits_for_users() {
        running.news = process::device_news()
            .inspect_err(|errno| log::debug!("no news of devices ({errno}): their nodes are looked at"))
            .ok();
        sys::count(running.wake.as_raw());
    }
    let files = [context.events().map(|fd| (fd, libc::EPOLLIN)), context.removal().map(|fd| (fd, 0))];
    for (fd, events) in files.into_iter().flatten() {
        running.watch(fd, events);
    }
    true
}

impl Thread {
    /// Wakes it when `fd` has any of `events`, or an error.
    fn watch(&self, fd: RawFd, events: i32) {
        let what = process::Registration { events: events.cast_unsigned(), data: 0 };
        if let Err(errno) = process::epoll_add(self.files.as_raw(), fd, what) {
            log::error!(
                "a file of a device is not watched ({errno}): its death is noticed when a call meets it"
            );
        }
    }

    /// Hears of `fd` no more.
    fn forget(&self, fd: RawFd) {
        // One that is not there any more is none to be forgotten.
        let _ = process::epoll_forget(self.files.as_raw(), fd);
    }
}

/// [`Thread::watch`], where there is one.
pub(crate) fn watch(fd: RawFd, events: i32) {
    if let Some(thread) = &*thread() {
        thread.watch(fd, events);
    }
}

/// A file that was watched, and is about to be closed.
pub(crate) fn forget(fd: RawFd) {
    if let Some(thread) = &*thread() {
        thread.forget(fd);
    }
}

/// Forgets `context`; when this returns nothing of it is used any more.
///
/// # Safety
/// It is where it was.
pub(crate) unsafe fn unregister(context: *const dyn Watched) {
    let last = {
        let mut contexts = contexts();
        let before = contexts.len();
        contexts.retain(|entry| !core::ptr::addr_eq(entry.context, context));
        let mut thread = thread();
        if let Some(running) = &*thread
            && contexts.len() != before
        {
            // SAFETY: the caller has it yet, and it was registered.
            let context = unsafe { &*context };
            context.events().into_iter().chain(context.removal()).for_each(|fd| running.forget(fd));
            // Of one that died it waits for more than these.
            if context.life().is_over() {
                sys::count(running.wake.as_raw());
            }
        }
        if contexts.is_empty() { thread.take() } else { None }
    };
    let Some(Thread { wake, stop, handle, files: _files, news: _news }) = last else { return };
    // ORDER: Release, partner is the Acquire in `run`.
    stop.store(true, Ordering::Release);
    sys::count(wake.as_raw());
    if handle.join().is_err() {
        log::error!(
            "the thread that watches devices ended with a panic; this is a bug in holdfast, please report it"
        );
    }
}

/// Has the watcher look round.
pub(crate) fn kick() {
    if let Some(thread) = &*thread() {
        sys::count(thread.wake.as_raw());
    }
}

/// Whether a watcher runs.
pub(crate) fn is_running() -> bool {
    thread().is_some()
}

/// Looks at every context, where no watcher does.
pub(crate) fn look() {
    if is_running() {
        return;
    }
    // Somebody is acting on a sign already.
    let Ok(mut contexts) = CONTEXTS.try_lock() else { return };
    for entry in contexts.iter_mut() {
        entry.look();
        entry.look_at_node();
    }
    expire(&contexts);
}

/// How often [`glance`] looks, in nanoseconds.
const GLANCE: u64 = 10_000_000;

/// [`look`], now and then.
pub(crate) fn glance() {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // ORDER: Relaxed: a clock.
    let next = NEXT.load(Ordering::Relaxed);
    // ORDER: Relaxed: of several threads one looks.
    if now >= next && NEXT.compare_exchange(next, now + GLANCE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        look();
    }
}

/// A sign that a call met.
pub(crate) fn sign(context: &dyn Watched, sign: Sign) {
    let contexts = contexts();
    context.sign(sign);
    drop(contexts);
    kick();
}

/// Contexts that waited long enough for their final sign.
fn expire(contexts: &[Entry]) {
    for entry in contexts {
        let context = entry.context();
        if watch::remaining(context.life()) == Some(Duration::ZERO) {
            context.sign(Sign::WaitOver);
        }
    }
}

fn start() -> Result<Thread, Errno> {
    const STACK: usize = 128 << 10;
    let wake = sys::eventfd(0, libc::EFD_NONBLOCK)?;
    let files = process::epoll()?;
    let stop = Arc::new(AtomicBool::new(false));
    let (fd, watched, stopped) = (wake.as_raw(), files.as_raw(), stop.clone());
    let builder = std::thread::Builder::new().name("holdfast".into()).stack_size(STACK);
    let spawned = process::with_signals_blocked(|| builder.spawn(move || run(fd, watched, &stopped)));
    let errno = |error: std::io::Error| Errno::new(error.raw_os_error().unwrap_or(libc::EAGAIN));
    Ok(Thread { wake, files, news: None, stop, handle: spawned.map_err(errno)? })
}

/// Objects come in bursts: what is kept the newest is renewed once after one.
const SETTLE: Duration = Duration::from_millis(5);

/// How long an event may lie unread before its readers are looked for.
const RESCUE: Duration = Duration::from_millis(20);

/// How often is looked where waiting does not tell: at nodes where the kernel's news of devices cannot be had, at all where it
/// cannot wait.
const BLIND: Duration = Duration::from_secs(1);

/// The kernel's news of devices, where a context is in need of them.
fn news() -> Option<RawFd> {
    thread().as_ref()?.news.as_ref().map(OwnedFd::as_raw)
}

fn run(wake: RawFd, watched: RawFd, stop: &AtomicBool) {
    let file = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
    let mut fds = Vec::new();
    let (mut rescuing, mut blind) = (false, false);
    // ORDER: Acquire, partner is the Release in `unregister`.
    while !stop.load(Ordering::Acquire) {
        fds.clear();
        fds.push(file(wake, libc::POLLIN));
        fds.push(file(watched, libc::POLLIN));
        let news = news();
        fds.push(file(news.unwrap_or(-1), libc::POLLIN));
        let mut wait: Option<Duration> = None;
        let mut stale = false;
        for entry in contexts().iter() {
            let context = entry.context();
            fds.extend(context.channels().into_iter().map(|fd| file(fd, libc::POLLIN)));
            stale |= context.is_stale();
            let unheard = (context.waits_for_users() && news.is_none()).then_some(BLIND);
            wait = wait.into_iter().chain(watch::remaining(context.life())).chain(unheard).min();
        }
        let pauses = [stale.then_some(SETTLE), rescuing.then_some(RESCUE)];
        wait = wait.into_iter().chain(pauses.into_iter().flatten()).min();
        // Rounded up: it does not spin through the last millisecond.
        let timeout = wait.map_or(-1, |wait| i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX));
        if let Err(errno) = sys::poll(&mut fds, timeout)
            && errno != Errno::EINTR
        {
            // As with a limit on open files below how many they are: poll(2).
            if !blind {
                log::error!("the thread that watches devices cannot wait ({errno}); it looks every second");
            }
            blind = true;
            std::thread::sleep(BLIND);
        }
        let mut buffer = [0; 4096];
        let _ = sys::read(wake, &mut buffer);
        // Without news of devices it is looked at each time.
        let look = match news {
            Some(news) => core::iter::from_fn(|| sys::read(news, &mut buffer).ok()).count() != 0,
            None => true,
        };
        let mut contexts = contexts();
        // Only what was there a while ago: an event that was given just now is on its way.
        let rescue = core::mem::take(&mut rescuing);
        for entry in contexts.iter_mut() {
            if rescue {
                rescuing |= entry.context().rescue();
            }
            entry.look();
            if stale {
                entry.refresh();
            }
            let context = entry.context();
            context.pump();
            if look {
                entry.look_at_node();
            }
            let context = entry.context();
            if context.life().take_sleepers() {
                context.rouse();
            }
            rescuing |= !rescue && context.is_unread();
        }
        expire(&contexts);
    }
}

type Held = (MutexGuard<'static, Vec<Entry>>, MutexGuard<'static, Option<Thread>>);

std::thread_local! {
    /// Both locks, from before a fork until after it: the child finds neither held by a thread that it does not have.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

extern "C" fn before_fork() {
    let held = (contexts(), thread());
    let _ = HELD.try_with(|cell| cell.replace(Some(held)));
}

extern "C" fn after_fork() {
    let _ = HELD.try_with(RefCell::take);
}

extern "C" fn in_child() {
    let Some((mut contexts, mut thread)) = HELD.try_with(RefCell::take).ok().flatten() else { return };
    // The child has no watcher, and what the contexts that it inherits do is the parent's business.
    contexts.clear();
    if let Some(Thread { wake, files, handle, news, .. }) = thread.take() {
        drop((wake, files, news));
        // The thread is not in this process: nothing is to be detached.
        let _ = core::mem::ManuallyDrop::new(handle);
    }
}
