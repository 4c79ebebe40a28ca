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
use crate::hw::dma::{Block, UNIT, Wide};
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

/// Memory of the device itself: a part of a mapping, reached in words of 4 bytes, as the device wants it.
#[derive(Debug)]
pub struct DeviceMemory {
    mapping: Mapping,
    start: usize,
    len: usize,
}

impl DeviceMemory {
    /// `len` bytes at `start` of `mapping`.
    ///
    /// # Errors
    /// `ERANGE` where they are not within it, or not at a multiple of 4.
    pub fn new(mapping: Mapping, start: usize, len: usize) -> Result<DeviceMemory, Errno> {
        let fits = start.checked_add(len).is_some_and(|end| end <= mapping.map.len());
        if fits && start.is_multiple_of(4) {
            Ok(DeviceMemory { mapping, start, len })
        } else {
            Err(Errno::ERANGE)
        }
    }

    /// Whether `len` bytes from `offset` on may be copied: `EFAULT` beyond the end, `EINVAL` for what is no whole words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, offset: usize, len: usize) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            Err(Errno::EFAULT)
        } else if (offset | len) & 3 != 0 {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }

    fn word(&self, offset: usize) -> Result<NonNull<u32>, Errno> {
        self.check(offset, 4)?;
        // SAFETY: R1, and the test above with the one in `new`.
        Ok(unsafe { self.mapping.map.as_ptr().add(self.start + offset) }.cast())
    }

    /// The word at `offset`, its bytes in memory order.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::check`].
    pub fn load(&self, offset: usize) -> Result<u32, Errno> {
        let at = self.word(offset)?;
        // SAFETY: R1, R2, R3. STALE: memory of a device that is gone reads as ones, or as a dummy page.
        Ok(unsafe { at.read_volatile() })
    }

    /// Stores a word at `offset`.
    ///
    /// # Errors
    /// Those of [`DeviceMemory::check`].
    pub fn store(&self, offset: usize, word: u32) -> Result<(), Errno> {
        let at = self.word(offset)?;
        // SAFETY: R1, R2, R3. STALE: a store to a device that is gone is dropped, or lands in a dummy page.
        unsafe { at.write_volatile(word) };
        Ok(())
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
}

/// A doorbell register for send queues: 8 bytes, or two halves of BlueFlame that are used in turn.
///
/// - R5: 8 bytes from `base`, or twice `half`, lie within the mapping; `half` is 0 or a power of two of whole bursts, and `base` then
///   aligned to one, otherwise to 8.
#[derive(Debug, Clone)]
pub struct Halves {
    base: NonNull<u8>,
    half: u32,
    /// Keeps R5.
    _mapping: std::sync::Arc<Mapping>,
}

// SAFETY: as for [`Window`].
unsafe impl Send for Halves {}
// SAFETY: as for [`Window`].
unsafe impl Sync for Halves {}

impl Halves {
    /// A register at `offset` of `mapping`, of two times `half` bytes; with `half` 0 there is only a doorbell.
    ///
    /// # Errors
    /// `ERANGE` where it is not within, or `half` is no number of bursts that is a power of two.
    pub fn new(mapping: &std::sync::Arc<Mapping>, offset: usize, half: u32) -> Result<Halves, Errno> {
        if half != 0 && (!half.is_power_of_two() || (half as usize) < BURST || !offset.is_multiple_of(BURST))
        {
            return Err(Errno::ERANGE);
        }
        let window = mapping.window(offset, if half == 0 { 8 } else { 2 * half as usize })?;
        Ok(Halves { base: window.base, half, _mapping: mapping.clone() })
    }

    /// Bytes of a half; 0: there is only a doorbell.
    #[inline(always)]
    #[must_use]
    pub fn half(&self) -> u32 {
        self.half
    }

    /// The half for turn `turn`.
    #[inline(always)]
    fn at(&self, turn: u32) -> NonNull<u8> {
        // SAFETY: R5: 0, or `half`.
        unsafe { self.base.add((turn & self.half) as usize) }
    }

    /// Stores 8 bytes, in memory order, to the doorbell of turn `turn`.
    #[inline(always)]
    pub fn store64(&self, turn: u32, bytes: u64) {
        // SAFETY: R5, R3. STALE: a store to a device that is gone is dropped, or lands in a dummy page.
        unsafe { self.at(turn).cast::<u64>().write_volatile(bytes) };
    }

    /// Where burst number `burst` of the half of turn `turn` is; nowhere in a register that is only a doorbell.
    #[inline(always)]
    fn burst_at(&self, turn: u32, burst: u32) -> Option<NonNull<u8>> {
        if self.half == 0 {
            return None;
        }
        let offset = (burst as usize * BURST) & (self.half as usize - 1);
        // SAFETY: R5: the half has whole bursts, of which the masked offset is one.
        Some(unsafe { self.at(turn).add(offset) })
    }

    /// Stores a block as burst number `burst` of the half of turn `turn`; a register that is only a doorbell is left alone.
    #[inline(always)]
    pub fn store_burst(&self, turn: u32, burst: u32, block: Block<'_>) {
        let Some(at) = self.burst_at(turn, burst).map(NonNull::cast::<u64>) else { return };
        // 8 stores in ascending order, of which the write-combining buffer makes one; never by `memcpy`, whose order is its own.
        for word in 0..BURST / 8 {
            // SAFETY: within the burst.
            let to = unsafe { at.add(word) };
            // SAFETY: R5, R3. STALE: as in `store64`.
            unsafe { to.write_volatile(block.word(word)) };
        }
    }

    /// As [`Halves::store_burst`], in 4 stores, of a block whose units were each written by one ([`Block::put_wide`]): 8 instructions
    /// less.
    #[inline(always)]
    pub fn store_wide(&self, turn: u32, burst: u32, block: Block<'_>) {
        let Some(at) = self.burst_at(turn, burst).map(NonNull::cast::<Wide>) else { return };
        for unit in 0..BURST / UNIT {
            // SAFETY: within the burst.
            let to = unsafe { at.add(unit) };
            // SAFETY: R5, R3. STALE: as in `store64`.
            unsafe { to.write_volatile(block.wide(unit as u32)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::abi::host::ForkRanges;
    use crate::hw::dma::{Blocks, Memory};
    use crate::uapi::sys::{self, twin::Kernel};

    #[test]
    fn halves_take_turns_and_nothing_is_stored_outside() {
        let _kernel = Kernel::real();
        let map = sys::map_memory(4096).unwrap();
        let bytes = map.as_ptr();
        let mapping = Arc::new(Mapping::new(map));
        let memory = Memory::new(128, ForkRanges::default()).unwrap();
        let blocks = Blocks::new(&memory, 0, 2).unwrap();
        (0..8).for_each(|at| blocks.units().put(at, [u64::from(at) + 1, 9]));
        for (offset, half) in [(0, 32), (0, 96), (4096 - 64, 64), (4, 64), (32, 64), (4092, 0)] {
            assert_eq!(Halves::new(&mapping, offset, half).unwrap_err(), Errno::ERANGE, "{offset} {half}");
        }
        let halves = Halves::new(&mapping, 2048, 128).unwrap();
        halves.store_burst(0, 0, blocks.at(0));
        halves.store_burst(0, 1, blocks.at(1));
        halves.store_burst(halves.half(), 2, blocks.at(3));
        halves.store64(u32::MAX, 77);
        let word = |offset: usize| {
            // SAFETY: within the page.
            let at = unsafe { bytes.add(offset) };
            // SAFETY: as above.
            unsafe { at.cast::<u64>().read_volatile() }
        };
        let starts = [0, 48, 64, 112, 128, 144, 192].map(|at| word(2048 + at));
        assert_eq!(starts, [1, 4, 5, 8, 77, 6, 0]);
        blocks.at(1).put_wide(3, [70, 80]);
        halves.store_wide(halves.half(), 3, blocks.at(1));
        assert_eq!([128, 192, 208, 248, 256].map(|at| word(2048 + at)), [77, 5, 6, 80, 0]);
        let bell = Halves::new(&mapping, 4088, 0).unwrap();
        bell.store_burst(1, 0, blocks.at(0));
        bell.store_wide(1, 0, blocks.at(0));
        assert_eq!(word(4088), 0);
        bell.store64(1, 5);
        assert_eq!(word(4088), 5);
    }
}
