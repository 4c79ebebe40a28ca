//! System calls that concern the process and its descriptors, not a device: real in unit tests too.

use crate::error::Errno;
use crate::uapi::sys::OwnedFd;
use crate::uapi::sys::os::check;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

fn checked_long(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret == -1 { Err(Errno::last()) } else { Ok(ret) }
}

/// `membarrier(2)`, private and expedited: when it returns, each thread of the process has passed a full barrier since the
/// call began.
///
/// # Errors
/// `ENOSYS` or `EPERM` where the kernel or a filter does not let it be called.
pub fn membarrier() -> Result<(), Errno> {
    const PRIVATE_EXPEDITED: i32 = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: i32 = 1 << 4;
    let call = |command: i32| {
        // SAFETY: takes no pointer.
        checked_long(unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }).map(drop)
    };
    // EPERM: not registered yet.
    call(PRIVATE_EXPEDITED)
        .or_else(|_| call(REGISTER_PRIVATE_EXPEDITED).and_then(|()| call(PRIVATE_EXPEDITED)))
}

/// Makes each thread of the process pass a full barrier, by [`membarrier`], or where that may not be called any more by the time in
/// which a store buffer empties many thousand times.
pub fn pass_barrier() {
    if membarrier().is_err() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What an epoll instance was told of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// `EPOLL*` bits.
    pub events: u32,
    /// The application's word.
    pub data: u64,
}

/// `epoll_create1(2)`, close-on-exec.
///
/// # Errors
/// The kernel's.
pub fn epoll() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).and_then(OwnedFd::new)
}

/// `epoll_ctl(2)`, `EPOLL_CTL_DEL`.
///
/// # Errors
/// The kernel's.
pub fn epoll_forget(epoll: RawFd, fd: RawFd) -> Result<(), Errno> {
    // SAFETY: no event is needed to delete (Linux 2.6.9).
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_DEL, fd, core::ptr::null_mut()) }).map(drop)
}

/// `epoll_ctl(2)`, `EPOLL_CTL_ADD`.
///
/// # Errors
/// The kernel's.
pub fn epoll_add(epoll: RawFd, fd: RawFd, registration: Registration) -> Result<(), Errno> {
    let mut event = libc::epoll_event { events: registration.events, u64: registration.data };
    // SAFETY: the event is borrowed for the call.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
}

/// `splice(2)` from one pipe to another, without waiting, whatever the flags of the descriptors: how many bytes moved.
///
/// # Errors
/// The kernel's; `EAGAIN` where there are none.
pub fn splice(from: RawFd, to: RawFd, len: usize) -> Result<usize, Errno> {
    let none = core::ptr::null_mut();
    // SAFETY: pipes have no offsets.
    let moved = unsafe { libc::splice(from, none, to, none, len, libc::SPLICE_F_NONBLOCK) };
    usize::try_from(moved).map_err(|_| Errno::last())
}

/// `fcntl(2)`, `F_SETPIPE_SZ`.
///
/// # Errors
/// The kernel's; `EPERM` above the user's limit.
pub fn set_pipe_size(pipe: RawFd, bytes: usize) -> Result<(), Errno> {
    let bytes = i32::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::fcntl(pipe, libc::F_SETPIPE_SZ, bytes) }).map(drop)
}

/// `fcntl(2)`, `F_GETFD`: whether the descriptor goes at exec.
///
/// # Errors
/// The kernel's; `EBADF` for a number that is none.
pub fn is_close_on_exec(fd: RawFd) -> Result<bool, Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::fcntl(fd, libc::F_GETFD) }).map(|flags| flags & libc::FD_CLOEXEC != 0)
}

/// A signal that interrupts a system call, which then begins anew: installed once, and only over a default.
///
/// # Errors
/// `EBUSY` where the program handles it, or the kernel's.
pub fn claim_signal(signal: i32) -> Result<(), Errno> {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: plain C data, for which zeros are a value.
    let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: `old` is borrowed for the call.
    check(unsafe { libc::sigaction(signal, core::ptr::null(), &raw mut old) })?;
    let ours = nothing as extern "C" fn(i32) as libc::sighandler_t;
    if old.sa_sigaction == ours {
        return Ok(());
    }
    if old.sa_sigaction != libc::SIG_DFL {
        return Err(Errno::EBUSY);
    }
    // SAFETY: as above.
    let mut new: libc::sigaction = unsafe { core::mem::zeroed() };
    new.sa_sigaction = ours;
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: borrowed for the call; the handler does nothing.
    check(unsafe { libc::sigaction(signal, &raw const new, core::ptr::null_mut()) }).map(drop)
}

/// The real-time signals that programs may use, last one first.
pub fn real_time_signals() -> impl Iterator<Item = i32> {
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).rev()
}

/// `tgkill(2)` in this process.
///
/// # Errors
/// The kernel's; `ESRCH` where the thread has ended.
pub fn signal_thread(tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    let pid = unsafe { libc::getpid() };
    // SAFETY: takes no pointer.
    checked_long(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) }).map(drop)
}

/// The calling thread's number.
#[must_use]
pub fn tid() -> i32 {
    // SAFETY: takes no pointer.
    unsafe { libc::gettid() }
}

/// Runs `f` with every signal blocked on this thread, so that threads made in it have them blocked too.
pub fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: plain C data, filled below.
    let mut all: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: as above.
    let mut before: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: borrowed for the call.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: borrowed for the call.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } == 0;
    let result = f();
    if blocked {
        // SAFETY: as it was before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, core::ptr::null_mut()) };
    }
    result
}

/// The kernel's news of devices that come and go (`NETLINK_KOBJECT_UEVENT`), non-blocking: each message begins with
/// `ACTION@PATH` and a NUL.
///
/// # Errors
/// The kernel's.
pub fn device_news() -> Result<OwnedFd, Errno> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let fd = check(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) })?;
    let fd = OwnedFd::new(fd)?;
    // SAFETY: plain C data, for which zeros are a value.
    let mut address: libc::sockaddr_nl = unsafe { core::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    // The kernel's own group.
    address.nl_groups = 1;
    let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: `len` bytes, borrowed for the call.
    check(unsafe { libc::bind(fd.as_raw(), (&raw const address).cast(), len) })?;
    Ok(fd)
}

/// Has `prepare` run before a fork, `parent` and `child` after it, each in its process.
///
/// # Errors
/// `ENOMEM`.
pub fn at_fork(
    prepare: unsafe extern "C" fn(),
    parent: unsafe extern "C" fn(),
    child: unsafe extern "C" fn(),
) -> Result<(), Errno> {
    // SAFETY: functions of ours, which stay loaded (the library is marked nodelete).
    match unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) } {
        0 => Ok(()),
        errno => Err(Errno::new(errno)),
    }
}

/// A number that a process and those forked from it do not share. It counts forks, where that can be done: getpid(2) is a system call,
/// and was a fiftieth of making a completion queue.
#[must_use]
pub fn number() -> u32 {
    static FORKS: AtomicU32 = AtomicU32::new(0);
    static COUNTED: OnceLock<bool> = OnceLock::new();
    extern "C" fn count() {
        // ORDER: Relaxed: the child has one thread yet.
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: a function of ours, as in `at_fork`.
    let counted = || unsafe { libc::pthread_atfork(None, None, Some(count)) } == 0;
    // ORDER: Relaxed: as above.
    if *COUNTED.get_or_init(counted) { FORKS.load(Ordering::Relaxed) } else { std::process::id() }
}

/// `CLOCK_REALTIME`, `after` from now: for `pthread_cond_timedwait`.
#[must_use]
pub fn deadline(after: Duration) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: borrowed for the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now) };
    let nanoseconds = now.tv_nsec + libc::c_long::from(after.subsec_nanos());
    libc::timespec {
        tv_sec: now.tv_sec
            + libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX / 2)
            + nanoseconds / 1_000_000_000,
        tv_nsec: nanoseconds % 1_000_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::sys;
    use crate::uapi::sys::twin::Kernel;

    #[test]
    fn every_cpu_passes_a_barrier() {
        assert_eq!(membarrier(), Ok(()));
        assert_eq!(membarrier(), Ok(()), "registered already");
    }

    #[test]
    fn a_forked_child_has_another_number() {
        let own = number();
        // SAFETY: the child only looks, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(number() == own)) };
        }
        let mut status = 0;
        // SAFETY: borrowed for the call.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, number()), (0, own));
    }

    #[test]
    fn a_pipe_is_emptied_without_waiting() {
        let _kernel = Kernel::real();
        let (from, to) = sys::pipe(0).unwrap();
        let (scratch_from, scratch_to) = sys::pipe(0).unwrap();
        assert_eq!(splice(from.as_raw(), scratch_to.as_raw(), 64), Err(Errno::EAGAIN));
        sys::write(to.as_raw(), &[1; 16]).unwrap();
        assert_eq!(splice(from.as_raw(), scratch_to.as_raw(), 64), Ok(16));
        let mut bytes = [0; 64];
        assert_eq!(sys::read(scratch_from.as_raw(), &mut bytes), Ok(16));
    }

    #[test]
    fn a_deadline_carries_its_nanoseconds() {
        let (now, later) = (deadline(Duration::ZERO), deadline(Duration::from_millis(1999)));
        assert!((0..1_000_000_000).contains(&later.tv_nsec));
        assert!((1..=3).contains(&(later.tv_sec - now.tv_sec)));
    }

    #[test]
    fn a_signal_that_is_handled_is_not_claimed() {
        let signal = real_time_signals().nth(2).unwrap();
        assert_eq!((claim_signal(signal), claim_signal(signal)), (Ok(()), Ok(())));
        assert_eq!(claim_signal(libc::SIGPIPE).err(), Some(Errno::EBUSY), "Rust ignores it");
    }
}
