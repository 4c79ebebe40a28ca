//! The C library's own functions, behind those that `preload` takes over.
//!
//! Looked up once each. A process that is so far from a C library that it has none of them gets `ENOSYS`.
#![allow(unsafe_code, reason = "functions of the C library, found by name")]

use std::ffi::{CStr, c_char, c_int, c_long, c_ulong, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

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
    /// `ioctl(2)`.
    ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int, -1;
    /// `mmap(2)`.
    mmap(at: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: libc::off_t) -> *mut c_void,
        libc::MAP_FAILED;
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

/// A descriptor on which nothing ever happens.
pub(crate) fn event() -> Result<c_int, crate::Errno> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        Err(crate::Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EMFILE)))
    } else {
        Ok(fd)
    }
}
