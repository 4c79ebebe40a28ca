//! Memory that a device reads and writes by DMA: rings, and the records that tell it of them.
//!
//! It is ordinary anonymous memory of ours, given to the kernel by address, which pins it. The device reads what we write
//! after [`barrier`](super::barrier)s, and writes completions.
//!
//! Invariants:
//! - D1: a [`Memory`] is one anonymous mapping, readable and writable, until its last owner is gone, and in [`Pages`] after
//!   that; owners are the rings and records in it, and they outlive the kernel's object (the verbs layer destroys that first).
//! - D2: the places of a ring are a power of two, all within its memory: a masked index is always a valid place.
//! - D3: nothing read back from this memory is an address of ours, except the data segments of a posted work request, which
//!   hold what the application gave as its buffers, and which the device does not write.
//! - D4: no reference is made to this memory; accesses are volatile or atomic, or plain writes ordered by a barrier. Not so of
//!   what is [`Beside`] it, which is no device's, and which `Memory::place` does not reach.
#![allow(unsafe_code, reason = "reads and writes memory that a device shares")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, Ordering};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::abi::host::ForkRanges;
use crate::abi::wr::UserBytes;
use crate::error::Errno;
use crate::uapi::sys::{self, Map, process};

/// Bytes of a [`Units`] place.
pub const UNIT: usize = 16;
/// Bytes of a completion as [`Entries`] reads it.
pub const ENTRY: usize = 64;

/// Pages for a device.
#[derive(Debug)]
pub struct Memory {
    /// There until the memory is dropped.
    map: Option<Map>,
    start: NonNull<u8>,
    /// Without what is beside it.
    len: usize,
    pages: Arc<Pages>,
}

/// Bytes at the end of a [`Memory`] that belong to whoever has this, once zeroed: what we note of a ring. Nothing touches them before,
/// so that a queue which is not used to its end costs no more than it is used.
///
/// - D7: from `offset` on, a multiple of [`ENTRY`], `len` bytes are mapped, and nobody else reaches them.
#[derive(Debug)]
pub struct Beside {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
}

impl Beside {
    /// Two of it: the first has `len` bytes, up to a multiple of [`ENTRY`] or as many as there are, and the other one the rest.
    #[must_use]
    pub fn split(self, len: usize) -> (Beside, Beside) {
        let first = len.checked_next_multiple_of(ENTRY).map_or(self.len, |len| len.min(self.len));
        // D7: what is left is empty where `self.len` is no multiple.
        let rest = Beside { memory: self.memory.clone(), offset: self.offset + first, len: self.len - first };
        (Beside { len: first, ..self }, rest)
    }

    /// Where they are, and how many.
    pub(super) fn bytes(&self) -> NonNull<[u8]> {
        // SAFETY: D7.
        let start = unsafe { self.memory.start.add(self.offset) };
        NonNull::slice_from_raw_parts(start, self.len)
    }

    /// What keeps them.
    pub(super) fn into_memory(self) -> Arc<Memory> {
        self.memory
    }
}

// SAFETY: as for [`Map`]: an address, and nothing is read or written through it here.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(map) = self.map.take() {
            self.pages.give_back(map);
        }
    }
}

/// Where a context's memory comes from, and goes to for a while: the kernel takes longer to map and unmap pages, and to hand them out
/// zeroed, than to make a queue pair of them (two thirds of `ibv_destroy_qp`). What was given back last is kept, and handed out
/// first: what an application makes again is what it destroyed just now, and whatever it destroyed before makes room.
///
/// What is given back was a queue that the kernel destroyed, so that no device writes there any more; once the device is
/// dying, nothing new is made on its context. It is handed out as it was left: a queue writes each place before it, or a device, reads
/// it, and begins again in its own leavings when it is reset. To zero the pages of a queue pair was a tenth of `ibv_create_qp`.
#[derive(Debug)]
pub struct Pages {
    fork: ForkRanges,
    /// In which process these mappings are, as [`process::number`] says: a forked child may have none of them.
    process: u32,
    free: Mutex<Free>,
}

/// What was given back, and its bytes.
#[derive(Debug, Default)]
struct Free {
    sizes: Vec<Size>,
    count: usize,
    len: usize,
    /// How many were given back since the start.
    number: u64,
}

/// What was given back of one size, from the first to the last, each with its number.
#[derive(Debug)]
struct Size {
    len: usize,
    maps: VecDeque<(u64, Map)>,
}

impl Free {
    /// The last one of `len` bytes.
    fn take(&mut self, len: usize) -> Option<Map> {
        let (_, map) = self.sizes.iter_mut().find(|size| size.len == len)?.maps.pop_back()?;
        self.removed(map)
    }

    /// One more; what [`Free::over`] says then.
    fn put(&mut self, map: Map) -> Option<Map> {
        let len = map.len();
        (self.count, self.len, self.number) = (self.count + 1, self.len + len, self.number + 1);
        match self.sizes.iter_mut().find(|size| size.len == len) {
            Some(size) => size.maps.push_back((self.number, map)),
            None => self.sizes.push(Size { len, maps: VecDeque::from([(self.number, map)]) }),
        }
        self.over()
    }

    /// The first one, where there are too many, or too many bytes.
    fn over(&mut self) -> Option<Map> {
        if self.count <= KEPT && self.len <= KEPT_LEN {
            return None;
        }
        self.sizes.retain(|size| !size.maps.is_empty());
        let first = |size: &Size| size.maps.front().map(|(number, _)| *number);
        let (_, map) = self.sizes.iter_mut().min_by_key(|size| first(size))?.maps.pop_front()?;
        self.removed(map)
    }

    fn removed(&mut self, map: Map) -> Option<Map> {
        self.count -= 1;
        self.len -= map.len();
        Some(map)
    }
}

/// Mappings that are kept, and their bytes, at most: what 380 queue pairs of 128 work requests take. Who makes and unmakes more at a
/// time than are kept pays for the pages of each.
const KEPT: usize = 1024;
const KEPT_LEN: usize = 32 << 20;
/// A longer one is not kept.
const LONGEST: usize = 2 << 20;

impl Default for Pages {
    fn default() -> Pages {
        Pages::with(ForkRanges::default())
    }
}

impl Pages {
    /// What a forked child gets of them is as `fork` says.
    #[must_use]
    pub fn new(fork: ForkRanges) -> Arc<Pages> {
        Arc::new(Pages::with(fork))
    }

    fn with(fork: ForkRanges) -> Pages {
        Pages { fork, process: process::number(), free: Mutex::default() }
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least `len` bytes, from the start of a page: zero, or as the last queue left them.
    ///
    /// # Errors
    /// `ENOMEM`; `EINVAL` for no bytes.
    pub fn take(self: &Arc<Pages>, len: usize) -> Result<Arc<Memory>, Errno> {
        let len = len.checked_next_multiple_of(4096).ok_or(Errno::ENOMEM)?;
        self.mapped(len, len).map(Arc::new)
    }

    /// At least `len` bytes, as [`Pages::take`] has them, and `beside` bytes of our own behind them, zeroed.
    ///
    /// # Errors
    /// As [`Pages::take`].
    pub fn take_beside(self: &Arc<Pages>, len: usize, beside: usize) -> Result<(Arc<Memory>, Beside), Errno> {
        let offset = len.checked_next_multiple_of(ENTRY).ok_or(Errno::ENOMEM)?;
        let end = offset.checked_add(beside).and_then(|end| end.checked_next_multiple_of(4096));
        let memory = Arc::new(self.mapped(end.ok_or(Errno::ENOMEM)?, offset)?);
        Ok((memory.clone(), Beside { memory, offset, len: beside }))
    }

    /// `mapped` bytes, whole pages, of which the first `len` are a device's.
    fn mapped(self: &Arc<Pages>, mapped: usize, len: usize) -> Result<Memory, Errno> {
        let map = match self.used(mapped) {
            Some(map) => {
                // SAFETY: D1: `mapped` bytes that nobody has, of which `len` are not more.
                let beside = unsafe { map.as_ptr().add(len) };
                // SAFETY: as above; what is beside them is zeroed.
                unsafe { beside.write_bytes(0, mapped - len) };
                map
            }
            None => {
                let map = sys::map_memory(mapped)?;
                // Copy on write after a fork would leave the device with one copy and us with the other.
                self.fork.keep(map.as_ptr(), mapped)?;
                map
            }
        };
        let start = map.as_ptr();
        Ok(Memory { map: Some(map), start, len, pages: self.clone() })
    }

    /// One that was given back, as it is.
    fn used(&self, len: usize) -> Option<Map> {
        let map = self.free().take(len)?;
        if self.process != process::number() {
            // Not for us to use, nor to unmap.
            let _ = core::mem::ManuallyDrop::new(map);
            return None;
        }
        Some(map)
    }

    /// Keeps `map`, for which the oldest ones make room; one that is too long for that is unmapped.
    fn give_back(&self, map: Map) {
        if map.len() > LONGEST {
            return self.fork.release(map.as_ptr(), map.len());
        }
        let mut over = self.free().put(map);
        // Each is unmapped while nobody waits for it.
        while let Some(map) = over {
            self.fork.release(map.as_ptr(), map.len());
            drop(map);
            over = self.free().over();
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let free = self.free.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (_, map) in free.sizes.drain(..).flat_map(|size| size.maps) {
            self.fork.release(map.as_ptr(), map.len());
        }
    }
}

impl Memory {
    /// Pages that are not kept when they are given back.
    ///
    /// # Errors
    /// As [`Pages::take`].
    pub fn new(len: usize, fork: ForkRanges) -> Result<Arc<Memory>, Errno> {
        Pages::new(fork).take(len)
    }

    /// The address that the kernel is told, `offset` bytes in.
    #[must_use]
    pub fn address(&self, offset: usize) -> u64 {
        (self.start.as_ptr().expose_provenance() + offset) as u64
    }

    /// Bytes that are a device's.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The place `offset` bytes in, if `len` bytes from there are within.
    fn place(&self, offset: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::ERANGE);
        }
        // SAFETY: D1 and the test above.
        Ok(unsafe { self.start.add(offset) })
    }
}

/// A ring of 16-byte units: what a work queue is made of. Indices wrap around.
#[derive(Debug, Clone)]
pub struct Units {
    base: NonNull<[u64; 2]>,
    mask: u32,
    /// Keeps D1.
    _memory: Arc<Memory>,
}

// SAFETY: D4: the memory belongs to the process, and who writes which unit is ordered by the queue's lock.
unsafe impl Send for Units {}
// SAFETY: as for Send; concurrent access without that lock is volatile reads of integers.
unsafe impl Sync for Units {}

impl Units {
    /// `count` units, a power of two, at `offset` bytes of `memory`.
    ///
    /// # Errors
    /// `ERANGE` where they do not fit, are no power of two or not aligned.
    pub fn new(memory: &Arc<Memory>, offset: usize, count: u32) -> Result<Units, Errno> {
        if !count.is_power_of_two() || !offset.is_multiple_of(UNIT) {
            return Err(Errno::ERANGE);
        }
        let base = memory.place(offset, count as usize * UNIT)?.cast();
        Ok(Units { base, mask: count - 1, _memory: memory.clone() })
    }

    #[inline(always)]
    fn at(&self, index: u32) -> NonNull<[u64; 2]> {
        self.view().at(index)
    }

    /// Where the units are, by value: a store to one of them does not make the compiler load that again.
    #[inline(always)]
    #[must_use]
    pub fn view(&self) -> UnitView<'_> {
        UnitView { base: self.base, mask: self.mask, units: PhantomData }
    }

    /// Writes one unit, its bytes in memory order.
    #[inline(always)]
    pub fn put(&self, index: u32, unit: [u64; 2]) {
        self.view().put(index, unit);
    }

    /// Reads one unit.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, index: u32) -> [u64; 2] {
        // SAFETY: D2, D4.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes `head`, 4 bytes in memory order, and behind it bytes of the application, from unit `index` on.
    pub fn put_headed(&self, index: u32, head: u32, bytes: UserBytes<'_>) {
        if !self.put_headed_straight(index, head, bytes) {
            self.put(index, [u64::from(u32::from_le(head)).to_le(), 0]);
            self.put_user(index.wrapping_mul(UNIT as u32).wrapping_add(4), bytes);
        }
    }

    /// As [`Units::put_headed`], if that does not go around the ring's end; otherwise nothing is written and the answer is false.
    #[inline(always)]
    #[must_use]
    pub fn put_headed_straight(&self, index: u32, head: u32, bytes: UserBytes<'_>) -> bool {
        let index = index & self.mask;
        // Bytes up to the ring's end.
        let room = (self.mask - index + 1) as usize * UNIT;
        if bytes.len() > room - 8 {
            return false;
        }
        // SAFETY: D2: 4 bytes and these, rounded up to 8, before the ring's end; application memory cannot overlap it.
        unsafe { bytes.copy_headed(head, self.at(index).cast()) };
        true
    }

    /// Copies bytes of the application, from byte `offset` of the ring on; more than the ring holds is not copied.
    pub fn put_user(&self, offset: u32, bytes: UserBytes<'_>) {
        let size = (self.mask as usize + 1) * UNIT;
        let from = offset as usize & (size - 1);
        let (head, rest) = bytes.split_at(size - from);
        // SAFETY: D2: `from` is within the ring.
        let to = unsafe { self.base.cast::<u8>().add(from) };
        // SAFETY: `head` ends where the ring does; application memory cannot overlap ours.
        unsafe { head.copy_to(to.as_ptr()) };
        if !rest.is_empty() {
            let (rest, _) = rest.split_at(from);
            // SAFETY: the ring's first `from` bytes.
            unsafe { rest.copy_to(self.base.cast::<u8>().as_ptr()) };
        }
    }

    /// Hands `data` to the buffers that `count` data segments from `index` on name, as a device would: the segments are those
    /// of a posted work request. How many bytes found no room.
    #[must_use]
    pub fn scatter(&self, index: u32, count: u32, mut data: &[u8]) -> usize {
        for at in 0..count {
            let [head, addr] = self.get(index.wrapping_add(at));
            let (byte_count, lkey) = ((u64::from_be(head) >> 32) as usize, u64::from_be(head) as u32);
            if data.is_empty() || lkey == INVALID_LKEY {
                break;
            }
            let (now, later) = data.split_at(byte_count.min(data.len()));
            let to: *mut u8 = core::ptr::with_exposed_provenance_mut(u64::from_be(addr) as usize);
            // SAFETY: D3: the application's buffer, writable until this work request completes (ibv_post_recv(3)), and at
            // least `byte_count` long.
            unsafe { core::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len()) };
            data = later;
        }
        data.len()
    }
}

/// The units of a [`Units`].
#[derive(Debug, Clone, Copy)]
pub struct UnitView<'a> {
    base: NonNull<[u64; 2]>,
    mask: u32,
    units: PhantomData<&'a Units>,
}

impl UnitView<'_> {
    #[inline(always)]
    fn at(self, index: u32) -> NonNull<[u64; 2]> {
        // SAFETY: D2.
        unsafe { self.base.add((index & self.mask) as usize) }
    }

    /// Writes one unit, its bytes in memory order.
    #[inline(always)]
    pub fn put(self, index: u32, unit: [u64; 2]) {
        // SAFETY: D2, D4.
        unsafe { self.at(index).write(unit) };
    }
}

/// Units in blocks of four, 64 bytes: what a send queue is made of.
///
/// - D6: the ring holds whole blocks.
#[derive(Debug, Clone)]
pub struct Blocks {
    units: Units,
}

impl Blocks {
    /// `count` blocks, a power of two, at `offset` bytes of `memory`.
    ///
    /// # Errors
    /// As [`Units::new`].
    pub fn new(memory: &Arc<Memory>, offset: usize, count: u32) -> Result<Blocks, Errno> {
        Ok(Blocks { units: Units::new(memory, offset, count.checked_mul(4).ok_or(Errno::ERANGE)?)? })
    }

    /// The same, unit by unit.
    #[inline(always)]
    #[must_use]
    pub fn units(&self) -> &Units {
        &self.units
    }

    /// The block at `index`, to be written; the processor gets hold of one that comes soon.
    ///
    /// Whatever reads what was posted leaves its lines in another processor's cache, and the doorbell's fence waits for each to come
    /// back. Asked for `AHEAD` posts before, they are there: of 250 cycles of such a post 130 stay, and 1 of 43 is saved where the
    /// lines are at hand. (Not to go around the ring's end for it is four instructions less, and four cycles more.)
    #[inline(always)]
    #[must_use]
    pub fn at(&self, index: u32) -> Block<'_> {
        self.view().at_fetched(index)
    }

    /// The block at `index`, which [`Blocks::at`] told the place of before.
    #[inline(always)]
    #[must_use]
    pub fn block(&self, index: u32) -> Block<'_> {
        self.view().at(index)
    }

    /// Where the blocks are, by value: a store to one of them does not make the compiler load that again.
    #[inline(always)]
    #[must_use]
    pub fn view(&self) -> BlockView<'_> {
        BlockView { base: self.units.base, mask: self.units.mask, blocks: PhantomData }
    }
}

/// The blocks of a [`Blocks`].
#[derive(Debug, Clone, Copy)]
pub struct BlockView<'a> {
    base: NonNull<[u64; 2]>,
    /// Of units.
    mask: u32,
    blocks: PhantomData<&'a Blocks>,
}

impl<'a> BlockView<'a> {
    /// The block at `index`.
    #[inline(always)]
    #[must_use]
    pub fn at(self, index: u32) -> Block<'a> {
        // SAFETY: D2, D6: the masked index of a multiple of 4 is that of the first of four units.
        let base = unsafe { self.base.byte_add(self.offset(index)) };
        Block { base, blocks: PhantomData }
    }

    /// The block at `index`, to be written, as [`Blocks::at`].
    #[inline(always)]
    #[must_use]
    pub fn at_fetched(self, index: u32) -> Block<'a> {
        fetch(self.base.as_ptr().cast(), self.offset(index.wrapping_add(AHEAD)));
        self.at(index)
    }

    /// Bytes in front of the block at `index`.
    #[inline(always)]
    fn offset(self, index: u32) -> usize {
        (index.wrapping_mul(4) & self.mask) as usize * UNIT
    }

    /// Writes unit `at` of the block at `index`, or of one behind it; its bytes in memory order.
    #[inline(always)]
    pub fn put_unit(self, index: u32, at: u32, unit: [u64; 2]) {
        let (to, _) = self.place(index, at);
        // SAFETY: D2, D4.
        unsafe { to.write(unit) };
    }

    /// As [`BlockView::put_unit`], by one store, as [`Block::put_wide`].
    #[inline(always)]
    pub fn put_unit_wide(self, index: u32, at: u32, unit: [u64; 2]) {
        let (to, _) = self.place(index, at);
        // SAFETY: D2, D4; a unit is aligned to its length.
        unsafe { to.cast::<Wide>().write(wide(unit)) };
    }

    /// Where unit `at` of the block at `index`, or of one behind it, is, and the bytes from there to the ring's end.
    #[inline(always)]
    fn place(self, index: u32, at: u32) -> (NonNull<[u64; 2]>, usize) {
        let unit = index.wrapping_mul(4).wrapping_add(at) & self.mask;
        // SAFETY: D2: a masked index.
        (unsafe { self.base.add(unit as usize) }, (self.mask - unit + 1) as usize * UNIT)
    }

    /// As [`BlockView::put_headed_straight`], of more than 12 bytes, each unit by one store, as [`Block::put_wide`].
    #[inline(always)]
    #[must_use]
    pub fn put_headed_wide(self, index: u32, at: u32, head: u32, bytes: UserBytes<'_>) -> bool {
        let (to, room) = self.place(index, at);
        if bytes.len() > room - 4 {
            return false;
        }
        bytes.each_headed(head, |unit, two| {
            // SAFETY: D2: the units of 4 bytes and these, before the ring's end.
            let to = unsafe { to.add(unit as usize) };
            // SAFETY: D2, D4; a unit is aligned to its length.
            unsafe { to.cast::<Wide>().write(wide(two)) };
        })
    }

    /// As [`Units::put_headed_straight`], from unit `at` of the block at `index` on.
    #[inline(always)]
    #[must_use]
    pub fn put_headed_straight(self, index: u32, at: u32, head: u32, bytes: UserBytes<'_>) -> bool {
        let (to, room) = self.place(index, at);
        if bytes.len() > room - 8 {
            return false;
        }
        // SAFETY: 4 bytes and these, rounded up to 8, before the ring's end; application memory cannot overlap it.
        unsafe { bytes.copy_headed(head, to.cast()) };
        true
    }
}

/// How many blocks before it is written one is fetched: a post takes a third of what a line needs from one cache to another.
const AHEAD: u32 = 4;

/// Has the processor fetch the line `offset` bytes behind `base`, to be written: a hint, which may name any address, reads and changes
/// nothing. (An old one takes it for a no-op.)
#[inline(always)]
fn fetch(base: *const u8, offset: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("prefetchw [{} + {}]", in(reg) base, in(reg) offset, options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pstl1keep, [{}, {}]", in(reg) base, in(reg) offset, options(nostack, preserves_flags));
    }
}

/// 16 bytes as one load and one store of the CPU have them.
#[cfg(target_arch = "x86_64")]
pub(super) type Wide = core::arch::x86_64::__m128i;
/// The same, where nobody has measured it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) type Wide = [u64; 2];

#[inline(always)]
fn wide([first, second]: [u64; 2]) -> Wide {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    return unsafe { core::arch::x86_64::_mm_set_epi64x(second.cast_signed(), first.cast_signed()) };
    #[cfg(not(target_arch = "x86_64"))]
    return [first, second];
}

/// One block: 64 bytes at `base`.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    base: NonNull<[u64; 2]>,
    blocks: PhantomData<&'a Blocks>,
}

impl Block<'_> {
    #[inline(always)]
    fn unit(self, at: u32) -> NonNull<[u64; 2]> {
        // SAFETY: within the 64 bytes.
        unsafe { self.base.add((at & 3) as usize) }
    }

    /// Writes unit `at`, which is taken modulo the block; its bytes in memory order.
    #[inline(always)]
    pub fn put(self, at: u32, unit: [u64; 2]) {
        // SAFETY: within the 64 bytes, D4.
        unsafe { self.unit(at).write(unit) };
    }

    /// As [`Block::put`], by one store, for who reads it back by `Block::wide`: what two stores have left a CPU does not forward to
    /// one load.
    #[inline(always)]
    pub fn put_wide(self, at: u32, unit: [u64; 2]) {
        // SAFETY: within the 64 bytes, D4; a unit is aligned to its length.
        unsafe { self.unit(at).cast::<Wide>().write(wide(unit)) };
    }

    /// Unit `at`, which is taken modulo the block.
    #[inline(always)]
    pub(super) fn wide(self, at: u32) -> Wide {
        // SAFETY: as in `put_wide`.
        unsafe { self.unit(at).cast::<Wide>().read_volatile() }
    }

    /// Writes to unit `at` `head`, 4 bytes in memory order, and behind it bytes of the application, of which there are no more
    /// than 12; with more nothing is written.
    #[inline(always)]
    pub fn put_headed(self, at: u32, head: u32, bytes: UserBytes<'_>) {
        if bytes.len() <= UNIT - 4 {
            // SAFETY: D4: 4 bytes and these, rounded up to 8, are a unit at most; application memory cannot overlap it.
            unsafe { bytes.copy_headed(head, self.unit(at).cast()) };
        }
    }

    /// Writes the first 8 bytes of unit 0, or with `AT` 1 the other 8.
    #[inline(always)]
    pub fn put_half<const AT: usize>(self, half: u64) {
        const { assert!(AT < 2) };
        // SAFETY: within the 64 bytes.
        let at = unsafe { self.base.cast::<u64>().add(AT) };
        // SAFETY: D4.
        unsafe { at.write(half) };
    }

    /// The 8 bytes number `at`, which is taken modulo the block.
    #[inline(always)]
    #[must_use]
    pub fn word(self, at: usize) -> u64 {
        // SAFETY: within the 64 bytes.
        let at = unsafe { self.base.cast::<u64>().add(at % 8) };
        // SAFETY: D4.
        unsafe { at.read_volatile() }
    }
}

/// PRM: the key of a data segment that ends a list.
const INVALID_LKEY: u32 = 0x100;

/// The entries of a completion queue, of 64 bytes, or of 128 whose second half is the completion. Indices wrap around.
#[derive(Debug)]
pub struct Entries {
    ring: Ring,
    memory: Arc<Memory>,
}

/// Where the entries are.
#[derive(Debug, Clone, Copy)]
struct Ring {
    /// The first completion: behind the first half of a 128-byte entry.
    base: NonNull<u8>,
    mask: u32,
    /// Bytes of an entry: a product takes fewer instructions than a shift, whose number has a register of its own.
    size: u32,
}

// SAFETY: D4: read under the queue's lock; the device writes entries that it owns.
unsafe impl Send for Entries {}

impl Entries {
    /// `count` entries, a power of two, of `size` bytes, 64 or 128.
    ///
    /// # Errors
    /// `EINVAL` for other numbers; `ENOMEM`.
    pub fn new(count: u32, size: u32, pages: &Arc<Pages>) -> Result<Entries, Errno> {
        if !count.is_power_of_two() || !matches!(size, 64 | 128) {
            return Err(Errno::EINVAL);
        }
        let len = (count as usize).checked_mul(size as usize).ok_or(Errno::ENOMEM)?;
        let memory = pages.take(len)?;
        let base = memory.place(size as usize - ENTRY, ENTRY)?;
        Ok(Entries { ring: Ring { base, mask: count - 1, size }, memory })
    }

    /// The ring, to be read entry by entry: a copy, which a barrier between entries does not make the compiler load again.
    #[inline(always)]
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { ring: self.ring, entries: PhantomData }
    }

    /// Entries.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.view().count()
    }

    /// Bytes of an entry.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.ring.size
    }

    /// Bytes of all of them.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// The address that the kernel is told.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory.address(0)
    }

    /// Where its memory is from.
    #[must_use]
    pub fn pages(&self) -> &Arc<Pages> {
        &self.memory.pages
    }

    /// Its memory, for whoever does not look at it any more.
    #[must_use]
    pub fn into_memory(self) -> Arc<Memory> {
        self.memory
    }

    /// The completion at `index`.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, index: u32) -> Entry<'_> {
        self.view().entry(index)
    }
}

/// The entries of an [`Entries`], by value.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    ring: Ring,
    entries: PhantomData<&'a Entries>,
}

impl<'a> View<'a> {
    /// Entries.
    #[inline(always)]
    #[must_use]
    pub fn count(self) -> u32 {
        self.ring.mask + 1
    }

    /// The completion at `index`.
    #[inline(always)]
    #[must_use]
    pub fn entry(self, index: u32) -> Entry<'a> {
        let offset = (index & self.ring.mask) as usize * self.ring.size as usize;
        // SAFETY: D2.
        let base = unsafe { self.ring.base.add(offset) };
        Entry { base, size: self.ring.size as usize, entries: PhantomData }
    }
}

/// Which entry is the next, for the consumer, and whether it is written, for whoever asks without the queue's lock.
///
/// - D5: `base` is null, or that of `mask + 1` entries in `memory`, as in `Ring`.
#[derive(Debug)]
pub struct Consumer {
    index: AtomicU32,
    base: AtomicPtr<u8>,
    mask: u32,
    /// `mask + 1`, at hand.
    count: u32,
    size: u32,
    /// Keeps the ring that `base` leads to, even when the queue has another one by now.
    _memory: Arc<Memory>,
}

impl Consumer {
    /// Of `entries`, from the first on.
    #[must_use]
    pub fn new(entries: &Entries) -> Consumer {
        let Ring { base, mask, size } = entries.ring;
        Consumer {
            index: AtomicU32::new(0),
            base: AtomicPtr::new(base.as_ptr()),
            mask,
            count: mask + 1,
            size,
            _memory: entries.memory.clone(),
        }
    }

    /// The next entry, for the consumer.
    #[inline(always)]
    #[must_use]
    pub fn index(&self) -> u32 {
        // ORDER: Relaxed: only the consumer writes it, under the queue's lock.
        self.index.load(Ordering::Relaxed)
    }

    /// The entry at `index` is the next.
    #[inline(always)]
    pub fn set(&self, index: u32) {
        // ORDER: Relaxed: it only says where to look; who finds something looks again under the lock.
        self.index.store(index, Ordering::Relaxed);
    }

    /// From now on nothing can be told without the lock: the queue has another ring.
    pub fn hide(&self) {
        // ORDER: Relaxed, as in `set`.
        self.base.store(core::ptr::null_mut(), Ordering::Relaxed);
    }

    /// Whether it was hidden, which only the consumer does.
    #[inline(always)]
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        // ORDER: Relaxed, as in `set`.
        self.base.load(Ordering::Relaxed).is_null()
    }

    /// The next entry, as it is seen without the lock; `None` where that takes the lock.
    #[inline(always)]
    #[must_use]
    pub fn look(&self) -> Option<Look<'_>> {
        // ORDER: Relaxed, as in `set`.
        let base = NonNull::new(self.base.load(Ordering::Relaxed))?;
        // An index of before is that of an entry which was written, or, a whole lap late, of one that looks as if it was not: then
        // this question came first.
        let index = self.index();
        // SAFETY: D5: a completion, valid as long as `_memory`.
        let base = unsafe { base.add((index & self.mask) as usize * self.size as usize) };
        let at = At { base, index, consumer: PhantomData };
        // Nothing else of the entry is read here.
        let op_own = at.entry().first::<{ ENTRY - 1 }>();
        Some(Look { at, op_own, lap: u8::from(index & self.count != 0) })
    }

    /// The entry that was seen at `at`, if it is the next one: for the consumer. To find it anew took 10 instructions of a poll.
    #[inline(always)]
    #[must_use]
    pub fn again<'a>(&self, at: At<'a>) -> Option<Entry<'a>> {
        let shown = !self.is_hidden();
        (shown && self.index() == at.index).then(|| at.entry())
    }
}

/// Where [`Consumer::look`] saw an entry.
///
/// - D8: `base` is that of a completion in memory that is there for `'a`.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    base: NonNull<u8>,
    index: u32,
    consumer: PhantomData<&'a Consumer>,
}

impl<'a> At<'a> {
    /// Its number.
    #[inline(always)]
    #[must_use]
    pub fn index(self) -> u32 {
        self.index
    }

    /// Without a first half, which by this nobody reaches.
    #[inline(always)]
    fn entry(self) -> Entry<'a> {
        // D8.
        Entry { base: self.base, size: ENTRY, entries: PhantomData }
    }
}

/// An entry as it was seen without the lock.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// Where.
    pub at: At<'a>,
    /// Its last byte.
    pub op_own: u8,
    /// Bit 0 of that, once it is written.
    pub lap: u8,
}

impl Look<'_> {
    /// PRM: `op_own`: bit 0 is the owner's, and an opcode of 15 is that of no completion.
    #[inline(always)]
    #[must_use]
    pub fn is_written(self) -> bool {
        (self.op_own ^ self.lap) & 1 == 0 && self.op_own >> 4 != 0xf
    }
}

/// One completion: 64 bytes at `base`.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    base: NonNull<u8>,
    /// Bytes of the entry that it is the end of.
    size: usize,
    entries: PhantomData<&'a Entries>,
}

impl Entry<'_> {
    /// The byte at `OFFSET`, before anything that is read later.
    #[inline(always)]
    #[must_use]
    pub fn first<const OFFSET: usize>(self) -> u8 {
        const { assert!(OFFSET < ENTRY) };
        // SAFETY: within the 64 bytes.
        let at = unsafe { self.base.add(OFFSET) };
        // SAFETY: within D1; an atomic has no alignment but that of a byte.
        let byte = unsafe { AtomicU8::from_ptr(at.as_ptr()) };
        // ORDER: Relaxed; the caller's udma_from_device_barrier orders what follows.
        byte.load(Ordering::Relaxed)
    }

    /// The 32 bits at `OFFSET`, big-endian.
    #[inline(always)]
    #[must_use]
    pub fn be32<const OFFSET: usize>(self) -> u32 {
        const { assert!(OFFSET + 4 <= ENTRY && OFFSET.is_multiple_of(4)) };
        // SAFETY: within the 64 bytes, aligned.
        let at = unsafe { self.base.add(OFFSET) }.cast::<u32>();
        // SAFETY: D4.
        u32::from_be(unsafe { at.read_volatile() })
    }

    /// The 64 bits at `OFFSET`, big-endian.
    #[inline(always)]
    #[must_use]
    pub fn be64<const OFFSET: usize>(self) -> u64 {
        const { assert!(OFFSET + 8 <= ENTRY && OFFSET.is_multiple_of(8)) };
        // SAFETY: within the 64 bytes, aligned.
        let at = unsafe { self.base.add(OFFSET) }.cast::<u64>();
        // SAFETY: D4.
        u64::from_be(unsafe { at.read_volatile() })
    }

    /// The 64 bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; ENTRY] {
        // SAFETY: 64 readable bytes, D4.
        unsafe { self.base.cast::<[u8; ENTRY]>().read_volatile() }
    }

    /// The first half of a 128-byte entry.
    #[must_use]
    pub fn front(self) -> Option<[u8; ENTRY]> {
        if self.size == ENTRY {
            return None;
        }
        // SAFETY: a 128-byte entry has 64 bytes before its completion.
        let at = unsafe { self.base.sub(ENTRY) };
        // SAFETY: as above, D4.
        Some(unsafe { at.cast::<[u8; ENTRY]>().read_volatile() })
    }

    /// Writes the byte at `OFFSET`; the entry is ours to write.
    pub fn set<const OFFSET: usize>(self, byte: u8) {
        const { assert!(OFFSET < ENTRY) };
        // SAFETY: within the 64 bytes.
        let at = unsafe { self.base.add(OFFSET) };
        // SAFETY: D4.
        unsafe { at.write_volatile(byte) };
    }

    /// Makes this entry, which is ours to write, a copy of `from`, both halves.
    pub fn copy(self, from: Entry<'_>) {
        // SAFETY: 64 writable bytes, D4.
        unsafe { self.base.cast::<[u8; ENTRY]>().write_volatile(from.bytes()) };
        if self.size != ENTRY
            && let Some(front) = from.front()
        {
            // SAFETY: as in `front`.
            let at = unsafe { self.base.sub(ENTRY) };
            // SAFETY: as above.
            unsafe { at.cast::<[u8; ENTRY]>().write_volatile(front) };
        }
    }
}

/// A doorbell record: two big-endian words that the device reads when it likes.
#[derive(Debug, Clone)]
pub struct Record {
    words: NonNull<u32>,
    address: u64,
    /// Keeps D1.
    _memory: Arc<Memory>,
}

// SAFETY: D1, D4: two words that are only reached as atomics.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    /// The record at `offset` bytes of `memory`, zeroed.
    ///
    /// # Errors
    /// `ERANGE` where it is not within, or not aligned to 8.
    pub fn new(memory: &Arc<Memory>, offset: usize) -> Result<Record, Errno> {
        if !offset.is_multiple_of(8) {
            return Err(Errno::ERANGE);
        }
        let words = memory.place(offset, 8)?.cast();
        let record = Record { words, address: memory.address(offset), _memory: memory.clone() };
        record.store::<0>(0);
        record.store::<1>(0);
        Ok(record)
    }

    /// The address that the kernel is told.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    #[inline(always)]
    fn word<const AT: usize>(&self) -> &AtomicU32 {
        const { assert!(AT < 2) };
        // SAFETY: the record has two words.
        let at = unsafe { self.words.add(AT) };
        // SAFETY: D1: valid as long as `self`, aligned, and only reached as an atomic.
        unsafe { AtomicU32::from_ptr(at.as_ptr()) }
    }

    /// Writes a word. What the device shall see before it needs a barrier in front.
    #[inline(always)]
    pub fn store<const AT: usize>(&self, value: u32) {
        // ORDER: Relaxed: the reader is the device; a udma_to_device_barrier stands before.
        self.word::<AT>().store(value.to_be(), Ordering::Relaxed);
    }

    /// What was last written.
    #[inline(always)]
    #[must_use]
    pub fn load<const AT: usize>(&self) -> u32 {
        // ORDER: Relaxed: a number of our own.
        u32::from_be(self.word::<AT>().load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::sys::twin::Kernel;

    fn units(count: u32) -> Units {
        Units::new(&Memory::new(count as usize * UNIT, ForkRanges::default()).unwrap(), 0, count).unwrap()
    }

    #[test]
    fn units_wrap_and_user_bytes_with_them() {
        let _kernel = Kernel::real();
        let ring = units(4);
        ring.put(5, [1, 2]);
        assert_eq!((ring.get(1), ring.get(5)), ([1, 2], [1, 2]));
        let bytes: Vec<u8> = (1..=40).collect();
        ring.put_user(44, UserBytes::from_slice(&bytes));
        let mut seen = Vec::new();
        (0..4).for_each(|at| ring.get(at).iter().for_each(|word| seen.extend(word.to_ne_bytes())));
        let place = |at: usize| seen[(44 + at) % 64];
        assert!(bytes.iter().enumerate().all(|(at, byte)| place(at) == *byte), "{seen:?}");
    }

    #[test]
    fn a_ring_beyond_its_memory_is_refused() {
        let _kernel = Kernel::real();
        let memory = Memory::new(100, ForkRanges::default()).unwrap();
        assert_eq!(memory.len(), 4096);
        assert!(Units::new(&memory, 0, 256).is_ok());
        for (offset, count) in [(16, 256), (8, 1), (0, 3), (usize::MAX & !15, 1)] {
            assert_eq!(Units::new(&memory, offset, count).unwrap_err(), Errno::ERANGE, "{offset} {count}");
        }
        assert_eq!(Record::new(&memory, 4096).unwrap_err(), Errno::ERANGE);
        assert_eq!(Entries::new(3, 64, &Arc::default()).unwrap_err(), Errno::EINVAL);
        assert_eq!(Entries::new(4, 32, &Arc::default()).unwrap_err(), Errno::EINVAL);
    }

    #[test]
    fn a_record_is_two_big_endian_words() {
        let _kernel = Kernel::real();
        let memory = Memory::new(64, ForkRanges::default()).unwrap();
        let record = Record::new(&memory, 8).unwrap();
        record.store::<1>(0x0102_0304);
        assert_eq!((record.load::<0>(), record.load::<1>()), (0, 0x0102_0304));
        let ring = Units::new(&memory, 0, 1).unwrap();
        assert_eq!(ring.get(0)[1].to_ne_bytes(), [0, 0, 0, 0, 1, 2, 3, 4]);
    }

    #[test]
    fn scattered_bytes_fill_the_buffers_in_order() {
        let _kernel = Kernel::real();
        let ring = units(4);
        let (mut left, mut right) = ([0_u8; 3], [0_u8; 4]);
        let seg = |buffer: &mut [u8]| {
            let addr = buffer.as_mut_ptr().expose_provenance() as u64;
            [((buffer.len() as u64) << 32 | 7).to_be(), addr.to_be()]
        };
        ring.put(3, seg(&mut left));
        ring.put(4, seg(&mut right));
        ring.put(5, [u64::from(INVALID_LKEY).to_be(), 0]);
        assert_eq!(ring.scatter(3, 3, b"abcdefghi"), 2);
        assert_eq!((&left, &right), (b"abc", b"defg"));
    }

    #[test]
    fn a_consumer_tells_of_the_next_entry_and_outlives_the_ring() {
        let _kernel = Kernel::real();
        for size in [64, 128] {
            let entries = Entries::new(2, size, &Arc::default()).unwrap();
            let consumer = Consumer::new(&entries);
            let is_written = || consumer.look().unwrap().is_written();
            entries.entry(0).set::<63>(0xf0);
            assert!(!is_written());
            entries.entry(0).set::<63>(0);
            assert!(is_written());
            consumer.set(2);
            assert!(!is_written(), "the lap is another");
            entries.entry(2).set::<63>(1);
            entries.entry(3).set::<63>(0x20);
            assert!(is_written());
            drop(entries);
            assert!(is_written() && consumer.index() == 2);
            let Look { at, op_own, lap } = consumer.look().unwrap();
            assert_eq!((at.index(), op_own, lap), (2, 1, 1));
            let entry = consumer.again(at).unwrap();
            assert_eq!((entry.first::<63>(), entry.front()), (1, None));
            consumer.set(3);
            assert!(consumer.again(at).is_none(), "another is the next");
            assert_eq!(consumer.look().unwrap().op_own, 0x20);
            consumer.set(2);
            assert!(consumer.again(at).is_some());
            consumer.hide();
            assert!(consumer.look().is_none() && consumer.again(at).is_none(), "of another ring");
        }
    }

    #[test]
    fn memory_is_used_again_as_it_is() {
        let _kernel = Kernel::real();
        let pages = Arc::new(Pages::default());
        let first = pages.take(100).unwrap();
        let (address, units) = (first.address(0), Units::new(&first, 0, 8).unwrap());
        units.put(7, [1, 2]);
        drop(first);
        assert_ne!(pages.take(100).unwrap().address(0), address, "the ring still has it");
        drop(units);
        // The one just given back is of the same size; both are there.
        let (one, other) = (pages.take(4096).unwrap(), pages.take(1).unwrap());
        let again = if one.address(0) == address { &one } else { &other };
        assert_eq!(again.address(0), address);
        assert_eq!(Units::new(again, 0, 8).unwrap().get(7), [1, 2]);
        assert_ne!(pages.take(8192).unwrap().address(0), address);
        // No more than so many, and not so long: the oldest make room.
        let lens = || {
            let free = pages.free();
            let maps = free.sizes.iter().flat_map(|size| &size.maps);
            let mut maps: Vec<_> = maps.map(|(number, map)| (*number, map.len())).collect();
            maps.sort_unstable();
            assert_eq!((free.count, free.len), (maps.len(), maps.iter().map(|(_, len)| len).sum()));
            maps.into_iter().map(|(_, len)| len).collect::<Vec<_>>()
        };
        let make = |count: usize, len| drop((0..count).map(|_| pages.take(len).unwrap()).collect::<Vec<_>>());
        make(2 * KEPT, 4096);
        assert_eq!(lens(), [4096; KEPT]);
        make(1, LONGEST + 1);
        assert_eq!(lens(), [4096; KEPT]);
        make(1, 8192);
        make(1, 12288);
        let free = lens();
        assert_eq!((free.len(), free.first(), free.last()), (KEPT, Some(&4096), Some(&12288)));
        make(KEPT_LEN / LONGEST + 1, LONGEST);
        assert_eq!(lens(), [LONGEST; KEPT_LEN / LONGEST]);
    }

    #[test]
    fn an_entry_of_128_bytes_is_its_second_half() {
        let _kernel = Kernel::real();
        let entries = Entries::new(2, 128, &Arc::default()).unwrap();
        entries.entry(1).set::<63>(9);
        entries.entry(2).copy(entries.entry(1));
        assert_eq!((entries.entry(0).first::<63>(), entries.entry(3).first::<63>()), (9, 9));
        assert_eq!(entries.entry(0).front(), Some([0; 64]));
        assert_eq!(Entries::new(2, 64, &Arc::default()).unwrap().entry(0).front(), None);
    }
}
