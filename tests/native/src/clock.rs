//! A device's clock, as the program maps it: a page with the register, and one that says how its cycles are nanoseconds.
//!
//! The register is memory here, so it stands still between two looks of the engine.
#![allow(unsafe_code, reason = "memory that the program maps, too")]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use zerocopy::IntoBytes;

use crate::uapi::ClockInfo;
use crate::{Errno, next};

const PAGE: usize = 4096;
/// 6.4 ns a cycle, as a fraction of `1 << SHIFT`.
const SHIFT: u32 = 21;
const MULT: u32 = 13_421_773;

/// Invariant: (C1) `start` is a shared mapping of the file's two pages, writable, until drop.
#[derive(Debug)]
pub(crate) struct Clock {
    file: OwnedFd,
    start: NonNull<u8>,
}

// SAFETY: (C1) holds in every thread; the first page is only touched atomically, the second only before anybody has it.
unsafe impl Send for Clock {}

impl Clock {
    /// A clock that shows `cycles` now.
    pub(crate) fn new(cycles: u64) -> Result<Clock, Errno> {
        let file = next::memory_file(2 * PAGE as u64)?;
        let start = next::map_shared(
            std::ptr::null_mut(),
            2 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )?;
        let start = NonNull::new(start.cast()).ok_or(Errno(libc::ENOMEM))?;
        let clock = Clock { file, start };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let info = ClockInfo {
            nsec: u64::try_from(now.as_nanos()).unwrap_or(0),
            cycles,
            mult: MULT,
            shift: SHIFT,
            mask: u64::MAX >> 1,
            overflow_period: u64::MAX >> 1,
            ..ClockInfo::default()
        };
        let bytes = info.as_bytes();
        // SAFETY: (C1): the second page, which has room for it.
        let page = unsafe { start.as_ptr().add(PAGE) };
        // SAFETY: as above; nobody else has the file yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), page, bytes.len()) };
        clock.show(cycles);
        Ok(clock)
    }

    /// The file: the register's page, then the other.
    pub(crate) fn file(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Sets the register.
    pub(crate) fn show(&self, cycles: u64) {
        // SAFETY: (C1), at the start of a page; any eight bytes are a valid `AtomicU64`.
        let register = unsafe { AtomicU64::from_ptr(self.start.as_ptr().cast()) };
        // ORDER: a clock orders nothing.
        register.store(cycles.to_be(), Ordering::Relaxed);
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // SAFETY: (C1): ours.
        unsafe { libc::munmap(self.start.as_ptr().cast(), 2 * PAGE) };
    }
}
