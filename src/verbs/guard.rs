//! The way from a Rust result to a verb's return convention, and the net under it.
//!
//! | convention | verbs | function |
//! |---|---|---|
//! | 0 or errno returned, errno set too | destroy, modify, query, ... | [`errno_of`] |
//! | pointer, or NULL and errno | create, alloc, reg | [`pointer_of`] |
//!
//! Both catch a panic, which is a bug: it becomes `EIO` and one log line instead of an abort of the application. Post, poll
//! and arm do not come here: they cannot panic, and pay for no net.
#![allow(unsafe_code, reason = "writes errno")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Errno, Error, Step as _};
use crate::log;

/// Sets the calling thread's `errno`.
pub(crate) fn set_errno(errno: Errno) {
    // SAFETY: the address of the thread's own errno is always valid.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { at.write(errno.get()) };
}

fn run<T>(verb: &'static str, body: impl FnOnce() -> Result<T, Error>) -> Result<T, Errno> {
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Errno::EIO).step("panicked; this is a bug in holdfast, please report it"));
    result.map_err(|error| {
        log::info!("{verb}: {error}");
        if error.errno == Errno::EIO {
            super::watch::look();
        }
        set_errno(error.errno);
        error.errno
    })
}

/// 0, or the errno, which is also set.
pub(crate) fn errno_of(verb: &'static str, body: impl FnOnce() -> Result<(), Error>) -> libc::c_int {
    match run(verb, body) {
        Ok(()) => 0,
        Err(errno) => errno.get(),
    }
}

/// The pointer, or NULL with errno set.
pub(crate) fn pointer_of<T>(verb: &'static str, body: impl FnOnce() -> Result<*mut T, Error>) -> *mut T {
    run(verb, body).unwrap_or(core::ptr::null_mut())
}

/// For verbs that return nothing.
pub(crate) fn nothing_of(verb: &'static str, body: impl FnOnce()) {
    let _ = run(verb, || {
        body();
        Ok(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_convention_sets_errno_and_returns_its_own() {
        assert_eq!(errno_of("t", || Err(Errno::EBUSY).step("x")), libc::EBUSY);
        assert_eq!(Errno::last(), Errno::EBUSY);
        assert!(pointer_of::<u8>("t", || Err(Errno::ENOMEM).step("x")).is_null());
        assert_eq!(Errno::last(), Errno::ENOMEM);
        assert_eq!(errno_of("t", || Ok(())), 0);
    }

    #[test]
    fn a_panic_is_eio_and_does_not_reach_c() {
        assert_eq!(errno_of("t", || panic!("bug")), libc::EIO);
        assert!(pointer_of::<u8>("t", || panic!("bug")).is_null());
    }
}
