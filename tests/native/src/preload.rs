//! The C library's functions that are taken over: whatever does not concern our devices goes on to the library's own.
//!
//! `open`, `ioctl` and `fcntl` are variadic in C. Here they have all their arguments: the calling conventions of Linux pass
//! the same registers, and an argument that the caller left out is not looked at.
#![allow(unsafe_code, reason = "these are the C library's functions, with its pointers")]

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::os::fd::IntoRawFd;
use std::ptr;
use std::sync::Arc;

use crate::event::Taken;
use crate::files::{File, Opened};
use crate::netlink::Netlink;
use crate::next::{self, set_errno};
use crate::{Errno, driver, files, sysfs, uapi, user};

/// A path as the C library shall see it.
enum Place {
    /// As it was given.
    Given(*const c_char),
    /// In our tree.
    Tree(CString),
    /// A uverbs device.
    Node(u32),
}

impl Place {
    /// # Safety
    /// `path` is null or a C string, for as long as the place is used.
    unsafe fn of(path: *const c_char) -> Place {
        if path.is_null() {
            return Place::Given(path);
        }
        // SAFETY: the caller's contract.
        let name = unsafe { CStr::from_ptr(path) };
        if let Some(number) = sysfs::node(name) {
            return Place::Node(number);
        }
        sysfs::translate(name).map_or(Place::Given(path), Place::Tree)
    }

    /// For functions that look and do not open.
    fn as_ptr(&self) -> *const c_char {
        match self {
            Place::Given(path) => *path,
            Place::Tree(path) => path.as_ptr(),
            // What stands behind an open one; one that is not there is nowhere.
            Place::Node(number) if driver::exists(*number) => c"/dev/null".as_ptr(),
            Place::Node(_) => c"/dev/infiniband/none".as_ptr(),
        }
    }
}

fn fail(Errno(errno): Errno) -> c_int {
    set_errno(errno);
    -1
}

/// # Safety
/// As of `openat`.
unsafe fn open_any(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    // SAFETY: the caller's contract.
    let place = unsafe { Place::of(path) };
    let opened = match place {
        Place::Node(number) => match driver::open(number) {
            Ok(id) => Some(Arc::new(Opened(id, number))),
            Err(errno) => return fail(errno),
        },
        _ => None,
    };
    // SAFETY: the caller's contract; our own paths are C strings, too.
    let fd = unsafe { next::openat(dir, place.as_ptr(), flags, mode) };
    match opened {
        Some(opened) if fd >= 0 => files::insert(fd, File::Command(opened)),
        _ => {}
    }
    fd
}

/// # Safety
/// As of `mmap`.
unsafe fn map(
    at: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off_t,
) -> *mut c_void {
    let Some(File::Command(opened)) = files::get(fd).filter(|_| flags & libc::MAP_ANONYMOUS == 0) else {
        // SAFETY: the caller's contract.
        return unsafe { next::mmap(at, len, prot, flags, fd, offset) };
    };
    let offset = u64::try_from(offset).unwrap_or(u64::MAX);
    match driver::map(opened.0, at, len, prot, flags, offset) {
        Ok(place) => place,
        Err(errno) => {
            fail(errno);
            libc::MAP_FAILED
        }
    }
}

/// # Safety
/// As of `stat`.
unsafe fn look(path: *const c_char, to: *mut libc::stat, links: bool) -> c_int {
    // SAFETY: the caller's contract.
    let place = unsafe { Place::of(path) };
    if let Place::Node(number) = place {
        // SAFETY: the caller's contract.
        return unsafe { describe(driver::exists(number).then_some(number), to) };
    }
    // SAFETY: the caller's contract; our own paths are C strings, too.
    if links { unsafe { next::stat(place.as_ptr(), to) } } else { unsafe { next::lstat(place.as_ptr(), to) } }
}

/// # Safety
/// As of `fstat`.
unsafe fn look_at(fd: c_int, to: *mut libc::stat) -> c_int {
    match files::get(fd) {
        // SAFETY: the caller's contract.
        Some(File::Command(opened)) => unsafe { describe(Some(opened.1), to) },
        // SAFETY: the caller's contract.
        _ => unsafe { next::fstat(fd, to) },
    }
}

/// A node, as the kernel describes it.
///
/// # Safety
/// `to` points to a `struct stat`.
unsafe fn describe(number: Option<u32>, to: *mut libc::stat) -> c_int {
    let Some(number) = number else { return fail(Errno(libc::ENOENT)) };
    // SAFETY: the caller's contract.
    let done = unsafe { next::stat(c"/dev/null".as_ptr(), to) };
    if done == 0 {
        // SAFETY: the caller's contract; it was just filled.
        let device = unsafe { &raw mut (*to).st_rdev };
        // SAFETY: as above.
        unsafe { device.write(libc::makedev(sysfs::MAJOR, sysfs::FIRST_MINOR + number)) };
    }
    done
}

/// # Safety
/// As of `read`.
unsafe fn take(fd: c_int, to: *mut c_void, len: usize) -> isize {
    let Some(File::Event(file)) = files::get(fd) else {
        // SAFETY: the caller's contract.
        return unsafe { next::read(fd, to, len) };
    };
    // SAFETY: the caller's contract.
    let system = || usize::try_from(unsafe { next::read(fd, to, len) }).map_err(|_| next::failed());
    let taken = file.read(len, system).and_then(|taken| match taken {
        Taken::Event(event) => {
            user::write(to.expose_provenance() as u64, &event)?;
            Ok(event.len())
        }
        Taken::Other(len) => Ok(len),
    });
    match taken {
        Ok(len) => len.cast_signed(),
        Err(errno) => fail(errno) as isize,
    }
}

/// # Safety
/// As of `write`.
unsafe fn give(fd: c_int, from: *const c_void, len: usize) -> isize {
    match files::get(fd) {
        // SAFETY: the caller's contract.
        None => unsafe { next::write(fd, from, len) },
        Some(File::Event(_)) => fail(Errno(libc::EINVAL)) as isize,
        Some(File::Netlink(socket)) => ask(&socket, from, len),
        Some(File::Command(opened)) => {
            let bytes = user::read_vec(from.expose_provenance() as u64, len.min(MOST));
            match bytes.and_then(|bytes| driver::write_command(opened.0, &bytes)) {
                Ok(()) => len.cast_signed(),
                Err(errno) => fail(errno) as isize,
            }
        }
    }
}

/// Bytes of `struct sockaddr_nl`.
const NETLINK_ADDRESS: libc::socklen_t = size_of::<libc::sockaddr_nl>() as libc::socklen_t;

/// Puts the address of a netlink socket where the program wants one, as far as there is room.
///
/// # Safety
/// Both are null, or `len` holds the room at `address`.
unsafe fn put_address(port: u32, address: *mut libc::sockaddr, len: *mut libc::socklen_t) {
    if address.is_null() || len.is_null() {
        return;
    }
    // SAFETY: the caller's contract.
    let room = unsafe { len.read() };
    let mut bytes = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(port.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.truncate(room.min(NETLINK_ADDRESS) as usize);
    // SAFETY: the caller's contract; cut to the room.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address.cast(), bytes.len()) };
    // SAFETY: the caller's contract.
    unsafe { len.write(NETLINK_ADDRESS) };
}

/// A request to the kernel.
fn ask(socket: &Netlink, from: *const c_void, len: usize) -> isize {
    let bytes = user::read_vec(from.expose_provenance() as u64, len.min(MOST));
    match bytes.and_then(|bytes| socket.send(&bytes)) {
        Ok(()) => len.cast_signed(),
        Err(errno) => fail(errno) as isize,
    }
}

/// As [`ask`], in pieces.
///
/// # Safety
/// `message` is one of `sendmsg`.
unsafe fn ask_by_message(socket: &Netlink, message: *const libc::msghdr) -> isize {
    // SAFETY: the caller's contract.
    let message = unsafe { message.read() };
    let (pieces, count) = (message.msg_iov, message.msg_iovlen);
    let mut whole = Vec::new();
    for at in 0..count {
        // SAFETY: the caller's contract: there are so many.
        let piece = unsafe { pieces.add(at) };
        // SAFETY: as above.
        let piece = unsafe { piece.read() };
        match user::read_vec(piece.iov_base.expose_provenance() as u64, piece.iov_len.min(MOST)) {
            Ok(bytes) => whole.extend(bytes),
            Err(errno) => return fail(errno) as isize,
        }
    }
    ask(socket, whole.as_ptr().cast(), whole.len())
}

/// No command is longer.
const MOST: usize = 1 << 20;

/// # Safety
/// As of `fcntl`.
unsafe fn control(fd: c_int, command: c_int, arg: c_long) -> c_int {
    // SAFETY: the caller's contract.
    let done = unsafe { next::fcntl(fd, command, arg) };
    if done >= 0 && matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        files::copied(fd, done);
    }
    done
}

/// Defines functions of the C library.
macro_rules! take_over {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty $body:block)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As of the C library's.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret $body
    )*};
}

take_over! {
    /// `open(2)`.
    fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(libc::AT_FDCWD, path, flags, mode) }
    }

    /// `open(2)`, large files.
    fn open64(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(libc::AT_FDCWD, path, flags, mode) }
    }

    /// `openat(2)`.
    fn openat(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(dir, path, flags, mode) }
    }

    /// `openat(2)`, large files.
    fn openat64(dir: c_int, path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(dir, path, flags, mode) }
    }

    /// `open(2)` without a mode, of programs compiled with checks.
    fn __open_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(libc::AT_FDCWD, path, flags, 0) }
    }

    /// `open(2)` without a mode, large files.
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { open_any(libc::AT_FDCWD, path, flags, 0) }
    }

    /// `opendir(3)`.
    fn opendir(path: *const c_char) -> *mut libc::DIR {
        // SAFETY: the caller's contract.
        let place = unsafe { Place::of(path) };
        // SAFETY: the caller's contract.
        unsafe { next::opendir(place.as_ptr()) }
    }

    /// `fopen(3)`.
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        // SAFETY: the caller's contract.
        let place = unsafe { Place::of(path) };
        // SAFETY: the caller's contract.
        unsafe { next::fopen(place.as_ptr(), mode) }
    }

    /// `fopen(3)`, large files.
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut libc::FILE {
        // SAFETY: the caller's contract.
        let place = unsafe { Place::of(path) };
        // SAFETY: the caller's contract.
        unsafe { next::fopen(place.as_ptr(), mode) }
    }

    /// `stat(2)`.
    fn stat(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, true) }
    }

    /// `stat(2)`, large files: the same struct on 64-bit systems.
    fn stat64(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, true) }
    }

    /// `stat(2)`, as older C libraries call it.
    fn __xstat(_version: c_int, path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, true) }
    }

    /// `stat(2)`, large files, as older C libraries call it.
    fn __xstat64(_version: c_int, path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, true) }
    }

    /// `lstat(2)`.
    fn lstat(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, false) }
    }

    /// `lstat(2)`, large files.
    fn lstat64(path: *const c_char, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look(path, to, false) }
    }

    /// `fstat(2)`.
    fn fstat(fd: c_int, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look_at(fd, to) }
    }

    /// `fstat(2)`, large files.
    fn fstat64(fd: c_int, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look_at(fd, to) }
    }

    /// `fstat(2)`, as older C libraries call it.
    fn __fxstat(_version: c_int, fd: c_int, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look_at(fd, to) }
    }

    /// `fstat(2)`, large files, as older C libraries call it.
    fn __fxstat64(_version: c_int, fd: c_int, to: *mut libc::stat) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { look_at(fd, to) }
    }

    /// `access(2)`.
    fn access(path: *const c_char, mode: c_int) -> c_int {
        // SAFETY: the caller's contract.
        let place = unsafe { Place::of(path) };
        // SAFETY: the caller's contract.
        unsafe { next::access(place.as_ptr(), mode) }
    }

    /// `readlink(2)`.
    fn readlink(path: *const c_char, to: *mut c_char, len: usize) -> isize {
        // SAFETY: the caller's contract.
        let place = unsafe { Place::of(path) };
        // SAFETY: the caller's contract.
        unsafe { next::readlink(place.as_ptr(), to, len) }
    }

    /// `socket(2)`.
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
        if domain == libc::AF_NETLINK && protocol == libc::NETLINK_RDMA {
            if !driver::has_netlink() {
                return fail(Errno(libc::EPROTONOSUPPORT));
            }
            return match Netlink::new(kind & (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)) {
                Ok((socket, fd)) => {
                    files::insert_owned(&fd, File::Netlink(socket));
                    fd.into_raw_fd()
                }
                Err(errno) => fail(errno),
            };
        }
        // SAFETY: the caller's contract.
        unsafe { next::socket(domain, kind, protocol) }
    }

    /// `bind(2)`: an RDMA netlink socket has its address already.
    fn bind(fd: c_int, address: *const libc::sockaddr, len: libc::socklen_t) -> c_int {
        match files::get(fd) {
            Some(File::Netlink(_)) => 0,
            // SAFETY: the caller's contract.
            _ => unsafe { next::bind(fd, address, len) },
        }
    }

    /// `getsockname(2)`.
    fn getsockname(fd: c_int, address: *mut libc::sockaddr, len: *mut libc::socklen_t) -> c_int {
        match files::get(fd) {
            Some(File::Netlink(_)) => {
                // SAFETY: the caller's contract.
                unsafe { put_address(next::process().cast_unsigned(), address, len) };
                0
            }
            // SAFETY: the caller's contract.
            _ => unsafe { next::getsockname(fd, address, len) },
        }
    }

    /// `setsockopt(2)`: what an RDMA netlink socket is asked for beyond buffers changes nothing here.
    fn setsockopt(
        fd: c_int,
        level: c_int,
        name: c_int,
        value: *const c_void,
        len: libc::socklen_t
    ) -> c_int {
        match files::get(fd) {
            Some(File::Netlink(_)) if level == libc::SOL_NETLINK => 0,
            // SAFETY: the caller's contract.
            _ => unsafe { next::setsockopt(fd, level, name, value, len) },
        }
    }

    /// `sendmsg(2)`.
    fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
        match files::get(fd) {
            // SAFETY: the caller's contract.
            Some(File::Netlink(socket)) => unsafe { ask_by_message(&socket, message) },
            // SAFETY: the caller's contract.
            _ => unsafe { next::sendmsg(fd, message, flags) },
        }
    }

    /// `sendto(2)`.
    fn sendto(
        fd: c_int,
        from: *const c_void,
        len: usize,
        flags: c_int,
        address: *const libc::sockaddr,
        address_len: libc::socklen_t
    ) -> isize {
        match files::get(fd) {
            Some(File::Netlink(socket)) => ask(&socket, from, len),
            // SAFETY: the caller's contract.
            _ => unsafe { next::sendto(fd, from, len, flags, address, address_len) },
        }
    }

    /// `recvmsg(2)`: what an RDMA netlink socket gives came from the kernel.
    fn recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
        // SAFETY: the caller's contract.
        let received = unsafe { next::recvmsg(fd, message, flags) };
        if let Some(File::Netlink(_)) = files::get(fd).filter(|_| received >= 0) {
            // SAFETY: the caller's contract.
            let name = unsafe { message.read() }.msg_name;
            // SAFETY: as above.
            let len = unsafe { &raw mut (*message).msg_namelen };
            // SAFETY: as above. The system has written over the room that the name has; nobody gives less.
            unsafe { len.write(NETLINK_ADDRESS) };
            // SAFETY: as above.
            unsafe { put_address(0, name.cast(), len) };
        }
        received
    }

    /// `recvfrom(2)`: likewise.
    fn recvfrom(
        fd: c_int,
        to: *mut c_void,
        len: usize,
        flags: c_int,
        address: *mut libc::sockaddr,
        address_len: *mut libc::socklen_t
    ) -> isize {
        let Some(File::Netlink(_)) = files::get(fd) else {
            // SAFETY: the caller's contract.
            return unsafe { next::recvfrom(fd, to, len, flags, address, address_len) };
        };
        // SAFETY: the caller's contract, but for the address, which is put there below.
        let received = unsafe { next::recvfrom(fd, to, len, flags, ptr::null_mut(), ptr::null_mut()) };
        if received >= 0 {
            // SAFETY: the caller's contract.
            unsafe { put_address(0, address, address_len) };
        }
        received
    }

    /// `ioctl(2)`.
    fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
        match files::get(fd) {
            Some(File::Command(opened)) if request == uapi::RDMA_VERBS_IOCTL => {
                match driver::ioctl(opened.0, arg.expose_provenance() as u64) {
                    Ok(()) => 0,
                    Err(errno) => fail(errno),
                }
            }
            // SAFETY: the caller's contract.
            _ => unsafe { next::ioctl(fd, request, arg) },
        }
    }

    /// `mmap(2)`.
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: libc::off_t
    ) -> *mut c_void {
        // SAFETY: the caller's contract.
        unsafe { map(at, len, prot, flags, fd, offset) }
    }

    /// `mmap(2)`, large files.
    fn mmap64(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: libc::off_t
    ) -> *mut c_void {
        // SAFETY: the caller's contract.
        unsafe { map(at, len, prot, flags, fd, offset) }
    }

    /// `munmap(2)`.
    fn munmap(at: *mut c_void, len: usize) -> c_int {
        driver::unmapped(at.expose_provenance(), len);
        // SAFETY: the caller's contract.
        unsafe { next::munmap(at, len) }
    }

    /// `mremap(2)`.
    fn mremap(at: *mut c_void, len: usize, new_len: usize, flags: c_int, to: *mut c_void) -> *mut c_void {
        // SAFETY: the caller's contract.
        let place = unsafe { next::mremap(at, len, new_len, flags, to) };
        if place != libc::MAP_FAILED && place != at {
            driver::moved(at.expose_provenance(), place.expose_provenance());
        }
        place
    }

    /// `read(2)`.
    fn read(fd: c_int, to: *mut c_void, len: usize) -> isize {
        // SAFETY: the caller's contract.
        unsafe { take(fd, to, len) }
    }

    /// `read(2)`, of programs compiled with checks: a length beyond the buffer ends them.
    fn __read_chk(fd: c_int, to: *mut c_void, len: usize, room: usize) -> isize {
        if len > room {
            crate::engine::give_up("read: the buffer is smaller than the length");
        }
        // SAFETY: the caller's contract.
        unsafe { take(fd, to, len) }
    }

    /// `write(2)`.
    fn write(fd: c_int, from: *const c_void, len: usize) -> isize {
        // SAFETY: the caller's contract.
        unsafe { give(fd, from, len) }
    }

    /// `close(2)`.
    fn close(fd: c_int) -> c_int {
        files::remove(fd);
        // SAFETY: the caller's contract.
        unsafe { next::close(fd) }
    }

    /// `dup(2)`.
    fn dup(fd: c_int) -> c_int {
        // SAFETY: the caller's contract.
        let copy = unsafe { next::dup(fd) };
        if copy >= 0 {
            files::copied(fd, copy);
        }
        copy
    }

    /// `dup2(2)`.
    fn dup2(from: c_int, to: c_int) -> c_int {
        // SAFETY: the caller's contract.
        let copy = unsafe { next::dup2(from, to) };
        if copy >= 0 {
            files::copied(from, copy);
        }
        copy
    }

    /// `dup3(2)`.
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int {
        // SAFETY: the caller's contract.
        let copy = unsafe { next::dup3(from, to, flags) };
        if copy >= 0 {
            files::copied(from, copy);
        }
        copy
    }

    /// `fcntl(2)`.
    fn fcntl(fd: c_int, command: c_int, arg: c_long) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { control(fd, command, arg) }
    }

    /// `fcntl(2)`, large files.
    fn fcntl64(fd: c_int, command: c_int, arg: c_long) -> c_int {
        // SAFETY: the caller's contract.
        unsafe { control(fd, command, arg) }
    }
}

extern "C" fn leave() {
    driver::complete_journal();
    sysfs::remove();
}

/// Writes the journal's end and removes our tree when the process ends in order.
#[used]
#[unsafe(link_section = ".fini_array")]
static LEAVE: extern "C" fn() = leave;
