//! Registers of a device, mapped through uverbs.
//!
//! Invariants of [`Mapping`]:
//! - R1: `map` is one shared mapping of the device's file, valid over its whole length until it is dropped; dropped means
//!   that the context is closed. Nothing remaps, splits or protects it before: after the device is gone such a mapping
//!   would answer with SIGBUS, whole it leads to a dummy page.
//! - R2: an offset used was checked against the length, and its alignment against the access.
//! - R3: no reference is ever made to it; accesses are volatile.
#![allow(unsafe_code, reason = "reads and writes device registers")]

use core::ptr::NonNull;

use crate::error::Errno;
use crate::uapi::sys::Map;

/// Bytes of one write-combining burst.
pub const BURST: usize = 64;

/// A page of registers.
#[derive(Debug)]
pub struct Mapping {
    map: Map,
}

impl Mapping {
    /// Takes over `map`.
    #[must_use]
    pub fn new(map: Map) -> Mapping {
        Mapping { map }
    }

    /// The registers from `offset` to `offset + len`, for writing.
    ///
    /// # Errors
    /// `ERANGE` where they are not within the mapping, or not at a multiple of 8 bytes.
    pub fn window(&self, offset: usize, len: usize) -> Result<Window, Errno> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.map.len());
        if !fits || !offset.is_multiple_of(8) || len < 8 {
            return Err(Errno::ERANGE);
        }
        // SAFETY: R1 and the test above.
        Ok(Window { base: unsafe { self.map.as_ptr().add(offset) }, len })
    }

    /// Reads a big-endian 32-bit register.
    ///
    /// # Errors
    /// `ERANGE` where there is none.
    pub fn read32_be(&self, offset: usize) -> Result<u32, Errno> {
        if !offset.is_multiple_of(4) || offset.checked_add(4).is_none_or(|end| end > self.map.len()) {
            return Err(Errno::ERANGE);
        }
        // SAFETY: R1, R2.
        let at = unsafe { self.map.as_ptr().add(offset) }.cast::<u32>();
        // SAFETY: R1, R2, R3. STALE: a register of a device that is gone reads as ones or zeros.
        Ok(u32::from_be(unsafe { at.read_volatile() }))
    }

    /// Reads a 64-bit number of a page that the kernel writes.
    ///
    /// # Errors
    /// `ERANGE` where there is none.
    pub fn read64(&self, offset: usize) -> Result<u64, Errno> {
        if !offset.is_multiple_of(8) || offset.checked_add(8).is_none_or(|end| end > self.map.len()) {
            return Err(Errno::ERANGE);
        }
        // SAFETY: R1, R2.
        let at = unsafe { self.map.as_ptr().add(offset) }.cast::<u64>();
        // SAFETY: R1, R2, R3. STALE: the page stays as it was last written.
        Ok(unsafe { at.read_volatile() })
    }
}

/// Some registers of a [`Mapping`], whose owner keeps the mapping too.
///
/// - R4: `base` is aligned to 8, and `len` bytes from it lie within the mapping, which lives as long as the window is used.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address; stores through it go to the device, whichever thread makes them.
unsafe impl Send for Window {}
// SAFETY: as above; who orders concurrent stores is the user's matter, and none of them can corrupt memory of ours.
unsafe impl Sync for Window {}

impl Window {
    /// Whether `len` bytes at `offset` are within.
    #[inline(always)]
    fn holds(self, offset: usize, len: usize) -> bool {
        offset & 7 == 0 && offset <= self.len && self.len - offset >= len
    }

    /// Stores 8 bytes, in memory order, at `offset`; outside of the window nothing is stored.
    ///
    /// # Safety
    /// The mapping that the window is of is still mapped.
    #[inline(always)]
    pub(super) unsafe fn store64(self, offset: usize, bytes: u64) {
        if self.holds(offset, 8) {
            // SAFETY: R4 and the test above.
            let at = unsafe { self.base.add(offset) }.cast::<u64>();
            // SAFETY: R4, R3. STALE: a store to a device that is gone is dropped, or lands in a dummy page.
            unsafe { at.write_volatile(bytes) };
        }
    }
}

/// A page of registers and the windows of it in use: the safe way to store.
#[derive(Debug, Clone)]
pub struct Registers {
    window: Window,
    /// Keeps R4.
    _mapping: std::sync::Arc<Mapping>,
}

impl Registers {
    /// `len` bytes of registers at `offset` of `mapping`.
    ///
    /// # Errors
    /// `ERANGE` where they are not within it.
    pub fn new(mapping: &std::sync::Arc<Mapping>, offset: usize, len: usize) -> Result<Registers, Errno> {
        Ok(Registers { window: mapping.window(offset, len)?, _mapping: mapping.clone() })
    }

    /// Stores 8 bytes, in memory order.
    #[inline(always)]
    pub fn store64(&self, offset: usize, bytes: u64) {
        // SAFETY: `_mapping` keeps it mapped.
        unsafe { self.window.store64(offset, bytes) }
    }

    /// Stores one burst of 64 bytes, as 8 stores in ascending order: the write-combining buffer makes one of them. Never by
    /// `memcpy`, whose order is its own.
    #[inline(always)]
    pub fn store_burst(&self, offset: usize, burst: &[u64; BURST / 8]) {
        for (at, bytes) in burst.iter().enumerate() {
            self.store64(offset + at * 8, *bytes);
        }
    }
}
