//! Errors: an errno newtype for the data path, and for the control path an error that also says which step failed.
//!
//! One function maps to each return convention of verbs: `errno returned`, `-1 and errno`, `NULL and errno`; they are
//! in `verbs::guard`.

use core::fmt;
use core::num::NonZero;

/// An `errno` value (see errno(3)); never 0, and so a `Result` with it needs no tag and comes back in registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZero<i32>);

/// `EIO`, for what is no errno.
const OTHERWISE: NonZero<i32> = match NonZero::new(libc::EIO) {
    Some(number) => number,
    None => NonZero::<i32>::MAX,
};

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "` of errno(3).")] pub const $name: Errno = Errno::new(libc::$name);)*

            /// The symbolic name, where it is one that verbs programs meet.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self { $(Errno::$name => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

names!(
    EPERM,
    ENOENT,
    EINTR,
    EIO,
    ENXIO,
    EAGAIN,
    ENOMEM,
    EACCES,
    EFAULT,
    EBUSY,
    EEXIST,
    ENODEV,
    EINVAL,
    EMFILE,
    ENFILE,
    ENOTTY,
    ENOSPC,
    ERANGE,
    ENOSYS,
    EOVERFLOW,
    EPROTO,
    EOPNOTSUPP,
    EPROTONOSUPPORT,
    ETIMEDOUT,
    EMSGSIZE,
    EADDRNOTAVAIL,
    EBADF,
);

impl Errno {
    /// The errno `raw`, taken by magnitude; a zero, which no failing call may leave, becomes `EIO`.
    #[must_use]
    pub const fn new(raw: i32) -> Errno {
        // i32::MIN has no magnitude, and stays negative.
        match NonZero::new(raw.wrapping_abs()) {
            Some(magnitude) if magnitude.get() > 0 => Errno(magnitude),
            _ => Errno(OTHERWISE),
        }
    }

    /// The calling thread's `errno`, right after a failed call.
    #[must_use]
    pub fn last() -> Errno {
        Errno::new(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }

    /// The positive number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0.get()
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.get()),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self:?})", std::io::Error::from_raw_os_error(self.get()))
    }
}

impl std::error::Error for Errno {}

/// A failed step of a control-path verb: what was tried, and the errno that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error {
    /// What failed, in words a log line can use ("map the send queue").
    pub step: &'static str,
    /// What the application is told.
    pub errno: Errno,
}

impl Error {
    /// `errno`, met while doing `step`.
    #[must_use]
    pub const fn new(step: &'static str, errno: Errno) -> Error {
        Error { step, errno }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.errno)
    }
}

/// Adds the step to a bare errno.
pub trait Step<T> {
    /// `self`, an error naming `step`.
    ///
    /// # Errors
    /// Those of `self`.
    fn step(self, step: &'static str) -> Result<T, Error>;
}

impl<T> Step<T> for Result<T, Errno> {
    fn step(self, step: &'static str) -> Result<T, Error> {
        self.map_err(|errno| Error { step, errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_is_never_zero_nor_negative() {
        assert_eq!(Errno::new(0), Errno::EIO);
        assert_eq!(Errno::new(i32::MIN), Errno::EIO);
        assert_eq!(Errno::new(-libc::EINVAL), Errno::EINVAL);
        assert_eq!(Errno::new(libc::ENOMEM).get(), 12);
    }

    #[test]
    fn an_error_names_step_and_cause() {
        let text = Err::<(), _>(Errno::ENOMEM).step("map the queue").unwrap_err().to_string();
        assert!(text.contains("map the queue") && text.contains("ENOMEM"), "{text}");
    }
}
