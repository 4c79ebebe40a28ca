//! Completion channels whose device dies.
//!
//! libibverbs reads a channel's file by itself, and the kernel's answers `EIO` for ever once the device is taken away. So a pipe
//! of ours is put under the same number: `ibv_get_cq_event` reads an event from it as from the kernel's. The threads and epoll
//! instances that wait on the kernel's file are brought along:
//!
//! * a registration with an epoll instance of this process is made anew for the pipe, with the application's own word;
//! * a thread in `read` is interrupted by a signal that restarts the call, which then reads the pipe;
//! * a thread in `poll` or `select` is woken by the kernel itself when it closes its file, looks at the number again, and finds
//!   an event in the pipe; one in `poll` that slept on is interrupted once the event was there for a while, and gets `EINTR`.
//!
//! What cannot be hidden: where the kernel takes the device away with no early sign, a thread in `read` may get `EIO`, and one
//! in `poll` POLLERR, before the pipe is there; an epoll instance in another process stays with the kernel's file; a thread
//! that blocks every real-time signal is only woken by the kernel.
//!
//! While a device is dying the kernel's file still tells of real completions: they are passed on ([`Channel::pump`]).

use core::sync::atomic::{AtomicBool, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::Errno;
use crate::log;
use crate::uapi::sys::{self, OwnedFd, process};

/// `struct ib_uverbs_comp_event_desc`: the CQ's `user_handle`.
const EVENT: usize = 8;
/// Events that a pipe holds unless it is made larger.
const PIPE: usize = 65536 / EVENT;

/// The channels that the CQs of a context use.
#[derive(Debug, Default)]
pub(crate) struct Channels {
    /// By file. A channel is kept by its CQs, as the application cannot destroy it before them.
    known: Mutex<BTreeMap<RawFd, Weak<Channel>>>,
    /// There was one: until then nobody has to look.
    used: AtomicBool,
}

impl Channels {
    fn known(&self) -> MutexGuard<'_, BTreeMap<RawFd, Weak<Channel>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel whose file is `fd`, for a CQ.
    pub(crate) fn get(&self, fd: RawFd) -> Arc<Channel> {
        // ORDER: Relaxed: whoever asks meanwhile may have asked before.
        self.used.store(true, Ordering::Relaxed);
        let mut known = self.known();
        if let Some(channel) = known.get(&fd).and_then(Weak::upgrade) {
            *channel.cqs() += 1;
            return channel;
        }
        known.retain(|_, channel| channel.strong_count() != 0);
        let channel = Arc::new(Channel::new(fd));
        known.insert(fd, Arc::downgrade(&channel));
        channel
    }

    /// Whether no CQ has one.
    pub(crate) fn is_empty(&self) -> bool {
        // ORDER: Relaxed, as in `get`.
        !self.used.load(Ordering::Relaxed) || self.known().values().all(|channel| channel.strong_count() == 0)
    }

    /// Those in use.
    pub(crate) fn all(&self) -> Vec<Arc<Channel>> {
        self.known().values().filter_map(Weak::upgrade).collect()
    }
}

/// A channel that CQs of ours give their events to.
#[derive(Debug)]
pub(crate) struct Channel {
    fd: RawFd,
    /// What stood under that number, as far as /proc tells.
    file: Option<PathBuf>,
    /// How many CQs have it: once there are none the application may close its file. Locked before the pipe, and for as long as
    /// something is put under the number.
    cqs: Mutex<u32>,
    pipe: Mutex<Option<Pipe>>,
}

#[derive(Debug)]
struct Pipe {
    /// Our end, and a copy of the application's.
    to: OwnedFd,
    from: OwnedFd,
    /// The kernel's file, as long as it may tell of something.
    kernel: Option<OwnedFd>,
}

impl Channel {
    /// The channel whose file is `fd`, for one CQ.
    pub(crate) fn new(fd: RawFd) -> Channel {
        Channel { fd, file: name_of(fd), cqs: Mutex::new(1), pipe: Mutex::new(None) }
    }

    /// The number of its file.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    fn cqs(&self) -> MutexGuard<'_, u32> {
        self.cqs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A CQ of it is destroyed.
    pub(crate) fn leave(&self) {
        let mut cqs = self.cqs();
        *cqs = cqs.saturating_sub(1);
    }

    fn pipe(&self) -> MutexGuard<'_, Option<Pipe>> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the pipe is under its number.
    pub(crate) fn is_taken_over(&self) -> bool {
        self.pipe().is_some()
    }

    /// Puts the pipe under the channel's number, once. `cqs` may have an event in it at once; those of `owed` are in it from
    /// the start.
    fn take_over(&self, cqs: usize, owed: &[u64], epolls: &[Registered]) -> Result<(), Errno> {
        let live = self.cqs();
        let mut pipe = self.pipe();
        if *live == 0 || pipe.is_some() {
            return Ok(());
        }
        if name_of(self.fd) != self.file {
            // The application closed its channel's file, and has the number for something else.
            return Err(Errno::EBADF);
        }
        let kernel = sys::dup(self.fd)?;
        let flags = sys::status_flags(self.fd)?;
        let (from, to) = sys::pipe(0)?;
        if cqs > PIPE
            && let Err(errno) = process::set_pipe_size(to.as_raw(), cqs.next_power_of_two() * EVENT)
        {
            log::warn!("a completion channel of {cqs} CQs has room for {PIPE} events at once ({errno})");
        }
        sys::set_status_flags(to.as_raw(), libc::O_NONBLOCK)?;
        sys::set_status_flags(from.as_raw(), flags & libc::O_NONBLOCK)?;
        for cq in owed {
            put(&to, *cq);
        }
        put_under(self.fd, &from, epolls)?;
        *pipe = Some(Pipe { to, from, kernel: Some(kernel) });
        Ok(())
    }

    /// Whether an event waits to be read.
    pub(crate) fn is_unread(&self) -> bool {
        let Some(from) = self.pipe().as_ref().map(|pipe| pipe.from.as_raw()) else { return false };
        sys::ready(from, libc::POLLIN) != 0
    }

    /// Gives the CQ that the application knows by `cq` an event; whether it is there.
    pub(crate) fn post(&self, cq: u64) -> bool {
        match &*self.pipe() {
            Some(pipe) => put(&pipe.to, cq),
            None => false,
        }
    }

    /// Takes unread events of `cq` back; how many.
    pub(crate) fn purge(&self, cq: u64) -> u32 {
        let guard = self.pipe();
        let Some(pipe) = &*guard else { return 0 };
        let mut purged = 0;
        let Ok((scratch, into)) = sys::pipe(libc::O_NONBLOCK) else { return 0 };
        let mut rest = Vec::new();
        // Without waiting: the application may read at the same time.
        while process::splice(pipe.from.as_raw(), into.as_raw(), PIPE * EVENT).is_ok_and(|moved| moved != 0) {
            let mut event = [0; EVENT];
            while sys::read(scratch.as_raw(), &mut event) == Ok(EVENT) {
                match u64::from_ne_bytes(event) {
                    found if found == cq => purged += 1,
                    other => rest.push(other),
                }
            }
        }
        for event in rest {
            put(&pipe.to, event);
        }
        purged
    }

    /// The kernel's file, while it is to be looked at.
    pub(crate) fn kernel(&self) -> Option<RawFd> {
        self.pipe().as_ref()?.kernel.as_ref().map(OwnedFd::as_raw)
    }

    /// Passes on what the kernel's file tells. A CQ whose event this is may have been armed anew since: it gets its event in the end
    /// all the same.
    pub(crate) fn pump(&self) {
        let mut guard = self.pipe();
        let Some(pipe) = &mut *guard else { return };
        let Some(kernel) = pipe.kernel.as_ref().map(OwnedFd::as_raw) else { return };
        loop {
            let revents = sys::ready(kernel, libc::POLLIN);
            if revents & libc::POLLIN == 0 {
                if revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
                    pipe.kernel = None;
                }
                return;
            }
            match read_at_once(kernel) {
                Ok(cq) => {
                    put(&pipe.to, cq);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    pipe.kernel = None;
                    return;
                }
            }
        }
    }

    /// The kernel's file tells nothing more.
    pub(crate) fn let_go(&self) {
        if let Some(pipe) = &mut *self.pipe() {
            pipe.kernel = None;
        }
    }
}

/// Reads the event that poll(2) told of, or none: a thread of the application that still sleeps there may have been faster, and then
/// the watcher is not to wait in its place.
fn read_at_once(kernel: RawFd) -> Result<u64, Errno> {
    let flags = sys::status_flags(kernel)?;
    if flags & libc::O_NONBLOCK == 0 {
        sys::set_status_flags(kernel, flags | libc::O_NONBLOCK)?;
    }
    let event = crate::uapi::event::read_comp_event(kernel);
    if flags & libc::O_NONBLOCK == 0 {
        // Whether reading waits is the application's choice, for whoever of it still does. What was set once can be set again.
        let _ = sys::set_status_flags(kernel, flags);
    }
    event
}

/// What /proc calls the file `fd`.
pub(super) fn name_of(fd: RawFd) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()
}

/// Puts `from` under the number `fd`, for the epoll instances that wait for it too.
///
/// # Errors
/// The kernel's; the number is as it was.
pub(super) fn put_under(fd: RawFd, from: &OwnedFd, epolls: &[Registered]) -> Result<(), Errno> {
    let close_on_exec = process::is_close_on_exec(fd)?;
    let epolls = || epolls.iter().filter(|known| known.fd == fd);
    for Registered { epoll, .. } in epolls() {
        // It may just have been taken out by the application itself.
        let _ = process::epoll_forget(*epoll, fd);
    }
    let moved = sys::dup_over(from.as_raw(), fd, close_on_exec);
    for Registered { epoll, what, .. } in epolls() {
        if let Err(errno) = process::epoll_add(*epoll, fd, *what) {
            log::warn!("epoll instance {epoll} does not learn of events any more: {errno}");
        }
    }
    moved
}

/// Has threads that sleep on what `fds` named before look again: those in `read` begin the call anew, those in `poll` return
/// with `EINTR`.
pub(super) fn disturb(fds: &BTreeSet<RawFd>) {
    restart_readers(fds);
    interrupt_pollers(fds);
}

/// Puts pipes under the numbers of `channels`, and brings along who sleeps there. `cqs` may have an event in one at once.
///
/// # Errors
/// The first of the kernel's, with its channel: no descriptor is left, mostly. The kernel's file then stays, and sleepers get
/// `EIO`.
///
/// `owed` gives the CQs of a channel whose event is due, which it then is given: the kernel wakes a thread in `poll` as it closes
/// its file, and the thread looks at the number once more before it sleeps on for good.
pub(crate) fn take_over(
    channels: &[Arc<Channel>],
    cqs: usize,
    mut owed: impl FnMut(&Arc<Channel>) -> Vec<u64>,
) -> Result<(), (RawFd, Errno)> {
    if channels.is_empty() {
        return Ok(());
    }
    let epolls = registrations();
    let mut result = Ok(());
    for channel in channels {
        if let Err(errno) = channel.take_over(cqs, &owed(channel), &epolls) {
            result = result.and(Err((channel.fd, errno)));
        }
    }
    let fds: BTreeSet<RawFd> = channels.iter().map(|channel| channel.fd).collect();
    restart_readers(&fds);
    result
}

/// Interrupts whoever sleeps on what the kernel had under the number of a channel of `channels` in which an event waits.
/// Whether there is any such event.
pub(crate) fn rescue(channels: &[Arc<Channel>]) -> bool {
    let unread: Vec<Arc<Channel>> = channels.iter().filter(|channel| channel.is_unread()).cloned().collect();
    if unread.is_empty() {
        return false;
    }
    let fds: BTreeSet<RawFd> = unread.iter().map(|channel| channel.fd).collect();
    disturb(&fds);
    true
}

fn put(to: &OwnedFd, cq: u64) -> bool {
    match sys::write(to.as_raw(), &cq.to_ne_bytes()) {
        Ok(EVENT) => true,
        other => {
            log::error!("a completion channel is full of events that nobody reads: {other:?}");
            false
        }
    }
}

/// A descriptor that an epoll instance waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Registered {
    epoll: RawFd,
    fd: RawFd,
    what: process::Registration,
}

/// What the epoll instances of this process wait for, from /proc.
pub(super) fn registrations() -> Vec<Registered> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let is_epoll =
            std::fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[eventpoll]");
        let Some(epoll) = entry.file_name().to_str().and_then(|name| name.parse().ok()).filter(|_| is_epoll)
        else {
            continue;
        };
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).unwrap_or_default();
        let lines = text.lines().filter_map(registration);
        found.extend(lines.map(|(fd, what)| Registered { epoll, fd, what }));
    }
    found
}

/// A line of an epoll instance's fdinfo (proc(5)): `tfd: 5 events: 19 data: 7 ...`, numbers but the first in hexadecimal.
fn registration(line: &str) -> Option<(RawFd, process::Registration)> {
    let mut words = line.split_whitespace();
    let mut value = |name: &str| (words.next() == Some(name)).then(|| words.next()).flatten();
    let tfd = value("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(value("events:")?, 16).ok()?;
    let data = u64::from_str_radix(value("data:")?, 16).ok()?;
    Some((tfd, process::Registration { events, data }))
}

/// Interrupts threads whose present system call, as /proc tells it, is one that `concerned` looks for.
fn interrupt(concerned: impl Fn(&Call) -> bool) {
    let own = process::tid();
    for entry in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let Some(tid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let text = |name| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        if tid == own || !Call::read(&text("syscall")).is_some_and(|call| concerned(&call)) {
            continue;
        }
        let blocked = blocked(&text("status"));
        let free = |signal: &i32| blocked & 1_u64.wrapping_shl(signal.wrapping_sub(1).cast_unsigned()) == 0;
        let signal =
            process::real_time_signals().filter(free).find(|signal| process::claim_signal(*signal).is_ok());
        match signal.map(|signal| process::signal_thread(tid, signal)) {
            Some(Ok(())) => {}
            other => log::warn!("thread {tid} waits for a completion and cannot be woken: {other:?}"),
        }
    }
}

/// Has threads that are in `read` of one of `fds` begin the call anew: the number names another file now.
fn restart_readers(fds: &BTreeSet<RawFd>) {
    interrupt(|call| call.number == libc::SYS_read && fds.contains(&call.fd()));
}

/// Has threads that are in `poll` of one of `fds` return with `EINTR`: they wait for what the number named before.
fn interrupt_pollers(fds: &BTreeSet<RawFd>) {
    let Ok(memory) = std::fs::File::open("/proc/self/mem") else { return };
    interrupt(|call| {
        matches!(call.number, libc::SYS_poll | libc::SYS_ppoll)
            && call.polled(&memory).iter().any(|fd| fds.contains(fd))
    });
}

/// What a thread is in, by its file `syscall` (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Call {
    number: libc::c_long,
    arguments: [u64; 2],
}

impl Call {
    fn read(text: &str) -> Option<Call> {
        let mut words = text.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut argument = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
        Some(Call { number, arguments: [argument()?, argument()?] })
    }

    /// The first argument as a descriptor: the kernel shows all 64 bits, a descriptor has 32.
    fn fd(&self) -> RawFd {
        let [first, _] = self.arguments;
        (first as u32).cast_signed()
    }

    /// The descriptors that a `poll` waits for. Its array is another thread's, and may go while it is looked at: it is read
    /// through `memory`, which gives an error then.
    fn polled(&self, memory: &std::fs::File) -> Vec<RawFd> {
        const POLLFD: usize = size_of::<libc::pollfd>();
        let [at, count] = self.arguments;
        let mut bytes = vec![0; (count as usize).min(1 << 16) * POLLFD];
        if memory.read_exact_at(&mut bytes, at).is_err() {
            return Vec::new();
        }
        let fd = |entry: &[u8]| entry.first_chunk().map(|bytes| RawFd::from_ne_bytes(*bytes));
        bytes.chunks_exact(POLLFD).filter_map(fd).collect()
    }
}

/// The signals that a thread blocks, by its status file (proc(5)); all of them where it does not say.
fn blocked(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(unsafe_code, reason = "plays the application")]
mod tests {
    use super::*;
    use crate::uapi::sys::twin::Kernel;

    fn readable(fd: RawFd) -> bool {
        sys::ready(fd, libc::POLLIN) != 0
    }

    /// A pipe stands for the kernel's file.
    fn channel() -> (Arc<Channel>, OwnedFd, OwnedFd) {
        let (from, to) = sys::pipe(0).unwrap();
        (Arc::new(Channel::new(from.as_raw())), from, to)
    }

    fn take(channel: &Arc<Channel>) {
        take_over(core::slice::from_ref(channel), 1, |_| Vec::new()).unwrap();
    }

    #[test]
    fn an_event_is_read_from_the_same_number() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        assert!(!channel.post(1), "the kernel's file takes none");
        take(&channel);
        take(&channel);
        assert!(!readable(from.as_raw()));
        assert!(channel.post(0x1234));
        assert_eq!(crate::uapi::event::read_comp_event(from.as_raw()), Ok(0x1234));
    }

    #[test]
    fn a_number_that_names_something_else_by_now_is_left_alone() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        let (other, other_to) = sys::pipe(0).unwrap();
        sys::dup_over(other.as_raw(), from.as_raw(), true).unwrap();
        let taken = take_over(core::slice::from_ref(&channel), 1, |_| vec![1]);
        assert_eq!((taken, channel.is_taken_over()), (Err((from.as_raw(), Errno::EBADF)), false));
        sys::write(other_to.as_raw(), b"x").unwrap();
        assert!(readable(from.as_raw()) && !channel.post(2));
    }

    #[test]
    fn a_channel_without_a_cq_may_be_closed_at_any_time_and_is_left_alone() {
        let _kernel = Kernel::real();
        let (from, _to) = sys::pipe(0).unwrap();
        let channels = Channels::default();
        let channel = channels.get(from.as_raw());
        channels.get(from.as_raw()).leave();
        channel.leave();
        take(&channel);
        assert!(!channel.is_taken_over());
        take(&channels.get(from.as_raw()));
        assert!(channel.is_taken_over(), "a CQ has it again");
    }

    #[test]
    fn a_reader_is_brought_along() {
        let _kernel = Kernel::real();
        let (channel, from, to) = channel();
        let fd = from.as_raw();
        let reader = std::thread::spawn(move || {
            let _kernel = Kernel::real();
            crate::uapi::event::read_comp_event(fd)
        });
        let blocked = || {
            std::fs::read_dir("/proc/self/task").unwrap().flatten().any(|entry| {
                std::fs::read_to_string(entry.path().join("syscall")).is_ok_and(|text| {
                    Call::read(&text).is_some_and(|call| call.number == libc::SYS_read && call.fd() == fd)
                })
            })
        };
        while !blocked() {
            std::thread::yield_now();
        }
        take(&channel);
        assert!(channel.post(7));
        assert_eq!(reader.join().unwrap(), Ok(7));
        drop(to);
    }

    #[test]
    fn a_poller_is_interrupted() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        let fd = from.as_raw();
        let poller = std::thread::spawn(move || {
            let _kernel = Kernel::real();
            sys::poll(&mut [libc::pollfd { fd, events: libc::POLLIN, revents: 0 }], -1)
        });
        let fds = BTreeSet::from([channel.fd]);
        while !poller.is_finished() {
            interrupt_pollers(&fds);
            std::thread::yield_now();
        }
        assert_eq!(poller.join().unwrap(), Err(Errno::EINTR));
    }

    #[test]
    fn who_missed_the_change_is_rescued_once_an_event_is_there() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        let channels = [channel];
        assert!(!rescue(&channels));
        take_over(&channels, 1, |_| vec![3]).unwrap();
        assert!(rescue(&channels), "the event is there from the start");
        assert_eq!(crate::uapi::event::read_comp_event(from.as_raw()), Ok(3));
        assert!(!rescue(&channels));
    }

    #[test]
    fn an_epoll_instance_is_brought_along_with_its_word() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        // SAFETY: takes no pointer.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let events = (libc::EPOLLIN | libc::EPOLLET).cast_unsigned();
        process::epoll_add(
            epoll,
            from.as_raw(),
            process::Registration { events, data: 0xdead_beef_0000_0001 },
        )
        .unwrap();
        take(&channel);
        channel.post(9);
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event.
        assert_eq!(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 10_000) }, 1);
        assert_eq!({ event.u64 }, 0xdead_beef_0000_0001);
        sys::close(epoll);
    }

    #[test]
    fn unread_events_of_a_cq_are_taken_back_and_the_others_stay() {
        let _kernel = Kernel::real();
        let (channel, from, _to) = channel();
        take(&channel);
        for cq in [1, 2, 1, 3] {
            channel.post(cq);
        }
        assert_eq!((channel.purge(1), channel.purge(1)), (2, 0));
        let next = || crate::uapi::event::read_comp_event(from.as_raw());
        assert_eq!((next(), next()), (Ok(2), Ok(3)));
        assert!(!readable(from.as_raw()));
    }

    #[test]
    fn what_the_kernel_still_tells_is_passed_on() {
        let _kernel = Kernel::real();
        let (channel, from, to) = channel();
        take(&channel);
        sys::write(to.as_raw(), &5_u64.to_ne_bytes()).unwrap();
        let kernel = channel.kernel().unwrap();
        let flags = sys::status_flags(kernel);
        channel.pump();
        assert_eq!(sys::status_flags(kernel), flags, "as the application has it");
        assert_eq!(crate::uapi::event::read_comp_event(from.as_raw()), Ok(5));
        assert!(channel.kernel().is_some());
        assert_eq!(read_at_once(kernel), Err(Errno::EAGAIN), "another thread was faster");
        // The other end is gone, as the kernel's file is once the device is.
        drop(to);
        channel.pump();
        assert!(channel.kernel().is_none());
        assert!(!readable(from.as_raw()));
    }

    #[test]
    fn what_proc_says_is_read_or_refused() {
        let line = "tfd:        5 events:       19 data:                7  pos:0 ino:61af sdev:7";
        assert_eq!(registration(line), Some((5, process::Registration { events: 0x19, data: 7 })));
        for line in ["", "tfd: x events: 19 data: 7", "pos:\t0", "tfd: 5 data: 7"] {
            assert_eq!(registration(line), None, "{line}");
        }
        let call = Call::read("0 0x5 0x7ffe 0x8 0x0 0x0 0x0 0x7ffe 0x7f").unwrap();
        assert_eq!((call.number, call.fd(), call.arguments[1]), (libc::SYS_read, 5, 0x7ffe));
        assert_eq!((Call::read("running"), Call::read("0 0x5"), Call::read("")), (None, None, None));
        assert_eq!(blocked("Name:\tx\nSigBlk:\t0000000000010000\n"), 0x10000);
        assert_eq!(blocked(""), u64::MAX);
    }
}
