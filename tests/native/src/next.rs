//! The C library's own functions, behind those that `preload` takes over.
//!
//! Looked up once each. A process that is so far from a C library that it has none of them gets `ENOSYS`.
#![allow(unsafe_code, reason = "functions of the C library, found by name")]

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use std::time::Duration;

use crate::Errno;

/// One function, once found.
struct Symbol {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static CStr) -> Symbol {
        Symbol { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn get(&self) -> *mut c_void {
        // ORDER: the pointer is the whole message; whoever finds none looks it up again, to the same end.
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: the name is a C string.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        // ORDER: as above.
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// Sets `errno`.
pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library has one for each thread.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it stays there as long as the thread.
    unsafe { *place = errno };
}

macro_rules! next {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty, $failed:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As of the function of that name.
        pub(crate) unsafe fn $name($($arg: $ty),*) -> $ret {
            static SYMBOL: Symbol =
                Symbol::new(match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                });
            let found = SYMBOL.get();
            if found.is_null() {
                set_errno(libc::ENOSYS);
                return $failed;
            }
            // SAFETY: the C library's function of this name has this signature.
            let call: unsafe extern "C" fn($($ty),*) -> $ret = unsafe { std::mem::transmute(found) };
            // SAFETY: the caller keeps the function's contract.
            unsafe { call($($arg),*) }
        }
    )*};
}

next! {
    /// `openat(2)`.
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int, -1;
    /// `opendir(3)`.
    opendir(path: *const c_char) -> *mut libc::DIR, std::ptr::null_mut();
    /// `stat(2)`.
    stat(path: *const c_char, to: *mut libc::stat) -> c_int, -1;
    /// `fstat(2)`.
    fstat(fd: c_int, to: *mut libc::stat) -> c_int, -1;
    /// `lstat(2)`.
    lstat(path: *const c_char, to: *mut libc::stat) -> c_int, -1;
    /// `access(2)`.
    access(path: *const c_char, mode: c_int) -> c_int, -1;
    /// `readlink(2)`.
    readlink(path: *const c_char, to: *mut c_char, len: usize) -> isize, -1;
    /// `fopen(3)`.
    fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE, std::ptr::null_mut();
    /// `socket(2)`.
    socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int, -1;
    /// `bind(2)`.
    bind(fd: c_int, address: *const libc::sockaddr, len: libc::socklen_t) -> c_int, -1;
    /// `getsockname(2)`.
    getsockname(fd: c_int, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int, -1;
    /// `setsockopt(2)`.
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: libc::socklen_t) -> c_int, -1;
    /// `sendmsg(2)`.
    sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize, -1;
    /// `sendto(2)`.
    sendto(
        fd: c_int, from: *const c_void, len: usize, flags: c_int,
        address: *const libc::sockaddr, address_len: libc::socklen_t
    ) -> isize, -1;
    /// `recvmsg(2)`.
    recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> isize, -1;
    /// `recvfrom(2)`.
    recvfrom(
        fd: c_int, to: *mut c_void, len: usize, flags: c_int,
        address: *mut libc::sockaddr, address_len: *mut libc::socklen_t
    ) -> isize, -1;
    /// `ioctl(2)`.
    ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int, -1;
    /// `mmap(2)`.
    mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: libc::off_t) -> *mut c_void,
        libc::MAP_FAILED;
    /// `munmap(2)`.
    munmap(at: *mut c_void, len: usize) -> c_int, -1;
    /// `mremap(2)`.
    mremap(at: *mut c_void, len: usize, new_len: usize, flags: c_int, to: *mut c_void) -> *mut c_void,
        libc::MAP_FAILED;
    /// `read(2)`.
    read(fd: c_int, to: *mut c_void, len: usize) -> isize, -1;
    /// `write(2)`.
    write(fd: c_int, from: *const c_void, len: usize) -> isize, -1;
    /// `close(2)`.
    close(fd: c_int) -> c_int, -1;
    /// `dup2(2)`.
    dup2(from: c_int, to: c_int) -> c_int, -1;
    /// `dup3(2)`.
    dup3(from: c_int, to: c_int, flags: c_int) -> c_int, -1;
    /// `dup(2)`.
    dup(fd: c_int) -> c_int, -1;
    /// `fcntl(2)`.
    fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int, -1;
}

pub(crate) fn failed() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// A descriptor that a system call gave.
fn owned(fd: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: the system just gave it to us.
    if fd < 0 { Err(failed()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// A pair of datagram sockets, close-on-exec.
pub(crate) fn socket_pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socket_pair_with(libc::SOCK_CLOEXEC)
}

/// A pair of datagram sockets.
pub(crate) fn socket_pair_with(flags: c_int) -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut fds = [-1; 2];
    // SAFETY: the array has the two places that are filled.
    let done = unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM | flags, 0, fds.as_mut_ptr()) };
    if done < 0 {
        return Err(failed());
    }
    let [first, second] = fds;
    Ok((owned(first)?, owned(second)?))
}

/// Another descriptor of the same file, close-on-exec.
pub(crate) fn duplicate(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    owned(unsafe { fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
}

/// Sends a datagram of one byte.
pub(crate) fn send_byte(socket: RawFd) -> Result<(), Errno> {
    send_bytes(socket, &[0])
}

/// Sends a datagram.
pub(crate) fn send_bytes(socket: RawFd, bytes: &[u8]) -> Result<(), Errno> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes live here.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), flags) };
    if usize::try_from(sent) == Ok(bytes.len()) { Ok(()) } else { Err(failed()) }
}

/// Takes a datagram, if there is one: a reader may have it.
pub(crate) fn take_byte(socket: RawFd) {
    let mut byte = 0u8;
    // SAFETY: the byte lives here.
    unsafe { libc::recv(socket, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) };
}

/// Disconnects a socket that has an unread datagram: its peer's poll reports an error.
pub(crate) fn disconnect(socket: RawFd) {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let len = size_of::<libc::sa_family_t>() as libc::socklen_t;
    // SAFETY: the address lives here. Disconnecting a connected socket does not fail.
    unsafe { libc::connect(socket, &raw const nobody, len) };
}

/// A file of zeroes that only memory holds.
pub(crate) fn memory_file(len: u64) -> Result<OwnedFd, Errno> {
    // SAFETY: the name is a C string.
    let file = owned(unsafe { libc::memfd_create(c"holdfast-sim".as_ptr(), libc::MFD_CLOEXEC) })?;
    let len = libc::off_t::try_from(len).map_err(|_| Errno(libc::EFBIG))?;
    // SAFETY: no pointers.
    if unsafe { libc::ftruncate(file.as_raw_fd(), len) } < 0 { Err(failed()) } else { Ok(file) }
}

/// Locks a file for as long as it is open; `false`: somebody else has.
pub(crate) fn lock(file: &std::fs::File) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// Maps a page of a file where the program wants it, or anywhere.
pub(crate) fn map_shared(
    at: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    file: RawFd,
    offset: u64,
) -> Result<*mut c_void, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno(libc::EOVERFLOW))?;
    // SAFETY: what it replaces, with MAP_FIXED, is the program's own wish.
    let place = unsafe { mmap(at, len, prot, flags, file, offset) };
    if place == libc::MAP_FAILED { Err(failed()) } else { Ok(place) }
}

/// Puts a file's first page, or zeroes, over a mapping of ours in the program, for all its threads at once.
pub(crate) fn map_over(address: usize, len: usize, prot: c_int, file: Option<&OwnedFd>) -> Result<(), Errno> {
    let at = std::ptr::with_exposed_provenance_mut(address);
    let (kind, fd) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: the range is one that the program mapped of us and has not unmapped; it is memory before and after.
    let place = unsafe { mmap(at, len, prot, kind | libc::MAP_FIXED, fd, 0) };
    if place == libc::MAP_FAILED { Err(failed()) } else { Ok(()) }
}

/// What tells a file from all others.
pub(crate) fn identity(fd: RawFd) -> Result<(u64, u64), Errno> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the struct lives here.
    if unsafe { fstat(fd, stat.as_mut_ptr()) } < 0 {
        return Err(Errno(libc::EBADF));
    }
    // SAFETY: it was just filled.
    let stat = unsafe { stat.assume_init() };
    Ok((stat.st_dev, stat.st_ino))
}

static PROCESS: AtomicI32 = AtomicI32::new(0);

/// The number of this process.
pub(crate) fn process() -> libc::pid_t {
    // ORDER: a number that is asked for again where it is not known.
    let known = PROCESS.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    // ORDER: as above.
    PROCESS.store(own, Ordering::Relaxed);
    own
}

/// A forked child has another.
pub(crate) fn forget_process() {
    // ORDER: as above.
    PROCESS.store(0, Ordering::Relaxed);
}

/// The user of this process.
pub(crate) fn user() -> u32 {
    // SAFETY: no arguments.
    unsafe { libc::getuid() }
}

/// The user of a socket's peer.
pub(crate) fn peer_user(socket: RawFd) -> Option<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the struct and its length live here.
    let done = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut len)
    };
    (done == 0).then_some(peer.uid)
}

/// Waits for descriptors, at most so long; says whether one is ready.
pub(crate) fn wait(fds: &mut [libc::pollfd], pause: Duration) -> bool {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(pause.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: pause.subsec_nanos().into(),
    };
    // SAFETY: descriptors and time live here.
    let ready = unsafe {
        libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, &raw const time, std::ptr::null())
    };
    ready > 0
}

/// Lets this thread's sleeps be as short as they are asked for.
pub(crate) fn precise_sleep() {
    // SAFETY: no pointers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as c_ulong, 0, 0, 0) };
}

/// Does something with all signals blocked, so that a thread made by it runs no handler of the program.
pub(crate) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set lives here.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both sets live here, and the first was just filled.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let result = work();
    // SAFETY: filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result
}

/// Registers what happens at a fork.
pub(crate) fn at_fork(before: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: functions of this library, which is never unloaded. Without memory for it, forks are not looked after.
    unsafe { libc::pthread_atfork(Some(before), Some(parent), Some(child)) };
}

/// Says something on stderr.
pub(crate) fn complain(what: &str) {
    let text = format!("holdfast-sim: {what}\n");
    // SAFETY: the text lives here. There is nowhere else to say it.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}
