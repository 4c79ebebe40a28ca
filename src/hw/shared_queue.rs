//! A ring of fixed-size elements in memory that a kernel driver and we share, with its two indices in the same mapping.
//!
//! Whoever produces writes an element and then its index with release order; whoever consumes loads that index with
//! acquire order first. Both indices are stored masked; the ring is empty when they are equal, and full when one more
//! element would make them so.
//!
//! Nothing read from the mapping is trusted: the geometry is read and checked once, when the queue is opened, and kept here;
//! an index of the other side that lies outside of the ring is [`Garbage`], and never an address.
//!
//! Invariants of [`SharedQueue`]:
//! - M1: a [`Map`] is one mapping, readable and writable over its whole length, until it is dropped.
//! - Q1: `slot_len` is `1 << shift`, and `data + (mask + 1) * slot_len` lies within `map`, and so do both indices; all are aligned for their type.
//! - Q2: a slot handed out lies within the data area by Q1, since its index was masked.
#![allow(unsafe_code, reason = "reads and writes memory that the kernel shares")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::wr::UserBytes;
use crate::error::Errno;
use crate::uapi::sys::{self, Map};

/// Where a family keeps the header fields and the elements: offsets in bytes from the start of the mapping.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// u32: log2 of an element's size in bytes.
    pub log2_elem_size: usize,
    /// u32: number of slots minus one; slots are a power of two.
    pub index_mask: usize,
    /// u32: the producer's index.
    pub producer_index: usize,
    /// u32: the consumer's index.
    pub consumer_index: usize,
    /// The first element.
    pub data: usize,
}

/// The other side's index lies outside of the ring: somebody wrote over the queue's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Garbage {
    /// What was found there.
    pub index: u32,
    /// The greatest index there can be.
    pub mask: u32,
}

/// The ring; see the module.
#[derive(Debug)]
pub struct SharedQueue {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    data: NonNull<u8>,
    mask: u32,
    shift: u32,
    slot_len: usize,
    map: Arc<Map>,
}

// SAFETY: the pointers lead into `map`, which is Send; the indices are atomics, and slots are written under the queue's lock.
unsafe impl Send for SharedQueue {}
// SAFETY: as for Send: shared use reaches only the atomic indices.
unsafe impl Sync for SharedQueue {}

/// One element of the ring: `len` bytes at `base`.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    base: NonNull<u8>,
    len: usize,
    queue: PhantomData<&'a SharedQueue>,
}

impl SharedQueue {
    /// Takes over `map`, which holds a ring as `geometry` says with elements of at least `elem_size` bytes.
    ///
    /// # Errors
    /// `EPROTO` where the header describes a ring that does not fit the mapping, or elements that are too small.
    pub fn open(map: Map, geometry: Geometry, elem_size: usize) -> Result<SharedQueue, Errno> {
        let len = map.len();
        let header = geometry.data;
        let word = |offset: usize| -> Result<NonNull<AtomicU32>, Errno> {
            if !offset.is_multiple_of(align_of::<u32>()) || offset + size_of::<u32>() > header || header > len
            {
                return Err(Errno::EPROTO);
            }
            // SAFETY: M1 and the test above: the word lies within the mapping.
            let at = unsafe { map.as_ptr().add(offset) };
            Ok(at.cast())
        };
        let read = |offset: usize| -> Result<u32, Errno> {
            let at = word(offset)?;
            // SAFETY: `word` gave an aligned address within the mapping (M1).
            let atomic = unsafe { at.as_ref() };
            // ORDER: Relaxed: written by the kernel before the offset was handed to us.
            Ok(atomic.load(Ordering::Relaxed))
        };
        let (shift, mask) = (read(geometry.log2_elem_size)?, read(geometry.index_mask)?);
        let slots = u64::from(mask) + 1;
        let fits = shift < 32
            && slots.is_power_of_two()
            && (1_u64 << shift) >= elem_size as u64
            && slots.checked_shl(shift).is_some_and(|bytes| bytes <= (len - header) as u64);
        if !fits {
            return Err(Errno::EPROTO);
        }
        let (producer, consumer) = (word(geometry.producer_index)?, word(geometry.consumer_index)?);
        // SAFETY: M1: `header <= len`, tested by `word`.
        let data = unsafe { map.as_ptr().add(header) };
        Ok(SharedQueue { producer, consumer, data, mask, shift, slot_len: 1 << shift, map: Arc::new(map) })
    }

    /// A copy of the whole queue in memory of our own, where we are the other side too.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn copy(&self) -> Result<SharedQueue, Errno> {
        let map = sys::map_memory(self.map.len())?;
        let (from, to) = (self.map.as_ptr(), map.as_ptr());
        // SAFETY: M1: both are as long, and neither is within the other. What the kernel changes meanwhile is the caller's business.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), self.map.len()) };
        // SAFETY: as far into `map` as the present one is into its own, which is as long (Q1).
        let moved = |at: NonNull<u8>| unsafe { to.add(at.as_ptr().addr() - from.as_ptr().addr()) };
        Ok(SharedQueue {
            producer: moved(self.producer.cast()).cast(),
            consumer: moved(self.consumer.cast()).cast(),
            data: moved(self.data),
            map: Arc::new(map),
            ..*self
        })
    }

    /// The same queue once more: one of them for who produces, the other for who consumes.
    #[must_use]
    pub fn share(&self) -> SharedQueue {
        SharedQueue { map: self.map.clone(), ..*self }
    }

    /// Elements the ring can hold at once: one slot always stays free.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.mask
    }

    /// Bytes of one slot.
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Bytes mapped.
    #[must_use]
    pub fn mapped(&self) -> usize {
        self.map.len()
    }

    /// The index after `index`.
    #[inline]
    #[must_use]
    pub fn next(&self, index: u32) -> u32 {
        index.wrapping_add(1) & self.mask
    }

    /// The index before `index`.
    #[inline]
    #[must_use]
    pub fn prev(&self, index: u32) -> u32 {
        index.wrapping_sub(1) & self.mask
    }

    #[inline]
    fn checked(&self, index: u32) -> Result<u32, Garbage> {
        if index <= self.mask { Ok(index) } else { Err(Garbage { index, mask: self.mask }) }
    }

    /// The producer's index, where the kernel produces: elements before it may be read.
    ///
    /// # Errors
    /// [`Garbage`] where it lies outside of the ring.
    #[inline]
    pub fn load_producer(&self) -> Result<u32, Garbage> {
        // SAFETY: Q1.
        let atomic = unsafe { self.producer.as_ref() };
        // ORDER: Acquire, partner is the kernel's smp_store_release of the index after it wrote the element.
        self.checked(atomic.load(Ordering::Acquire))
    }

    /// The consumer's index, where the kernel consumes: slots before it may be written again.
    ///
    /// # Errors
    /// [`Garbage`] where it lies outside of the ring.
    #[inline]
    pub fn load_consumer(&self) -> Result<u32, Garbage> {
        // SAFETY: Q1.
        let atomic = unsafe { self.consumer.as_ref() };
        // ORDER: Acquire, partner is the kernel's smp_store_release of the index after it read the element.
        self.checked(atomic.load(Ordering::Acquire))
    }

    /// Publishes our producer index: the kernel may read every element before it.
    #[inline]
    pub fn store_producer(&self, index: u32) {
        // SAFETY: Q1.
        let atomic = unsafe { self.producer.as_ref() };
        // ORDER: Release, partner is the kernel's smp_load_acquire of this index.
        atomic.store(index & self.mask, Ordering::Release);
    }

    /// Publishes our consumer index: the kernel may write every slot before it.
    #[inline]
    pub fn store_consumer(&self, index: u32) {
        // SAFETY: Q1.
        let atomic = unsafe { self.consumer.as_ref() };
        // ORDER: Release, partner is the kernel's smp_load_acquire of this index.
        atomic.store(index & self.mask, Ordering::Release);
    }

    /// The slots as values of `T`.
    ///
    /// # Errors
    /// `EINVAL` where a slot is smaller than that.
    #[inline(always)]
    pub fn elements<T: FromBytes>(&self) -> Result<Elements<'_, T>, Errno> {
        if self.slot_len < size_of::<T>() {
            return Err(Errno::EINVAL);
        }
        Ok(Elements { data: self.data, mask: self.mask, shift: self.shift, queue: PhantomData })
    }

    /// How many elements lie from `consumer` up to `producer`.
    #[inline(always)]
    #[must_use]
    pub fn between(&self, consumer: u32, producer: u32) -> u32 {
        producer.wrapping_sub(consumer) & self.mask
    }

    /// The slot at `index`, which is taken modulo the ring.
    #[inline]
    #[must_use]
    pub fn slot(&self, index: u32) -> Slot<'_> {
        let offset = ((index & self.mask) as usize) << self.shift;
        // SAFETY: Q2.
        let base = unsafe { self.data.add(offset) };
        Slot { base, len: self.slot_len, queue: PhantomData }
    }
}

/// The ring's slots as values of `T`, with all that their addresses need at hand.
///
/// Invariant E1: a slot holds a `T`.
#[derive(Debug, Clone, Copy)]
pub struct Elements<'a, T> {
    data: NonNull<u8>,
    mask: u32,
    shift: u32,
    queue: PhantomData<(&'a SharedQueue, T)>,
}

impl<T: FromBytes> Elements<'_, T> {
    /// The element at `index`, which is taken modulo the ring, and which the producer has published.
    #[inline(always)]
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        let offset = ((index & self.mask) as usize) << self.shift;
        // SAFETY: Q2.
        let from = unsafe { self.data.add(offset) };
        // SAFETY: E1: `size_of::<T>()` readable bytes, any of which make a `T` (FromBytes). The producer's index, loaded with
        // acquire order, says that nobody writes them meanwhile.
        unsafe { core::ptr::read_unaligned(from.as_ptr().cast()) }
    }
}

impl Slot<'_> {
    /// Bytes of the slot.
    #[inline]
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::EINVAL);
        }
        // SAFETY: Q2 and the test above.
        Ok(unsafe { self.base.add(offset) })
    }

    /// Writes `value` at `offset` bytes.
    ///
    /// # Errors
    /// `EINVAL` where it does not fit the slot; nothing is written then.
    #[inline]
    pub fn put<T: IntoBytes + Immutable + ?Sized>(&self, offset: usize, value: &T) -> Result<(), Errno> {
        let bytes = value.as_bytes();
        let to = self.at(offset, bytes.len())?;
        // SAFETY: `at` gave room for `bytes.len()` bytes in the mapping; application memory cannot overlap it.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies memory of the application to `offset` bytes.
    ///
    /// # Errors
    /// `EINVAL` where it does not fit the slot; nothing is written then.
    #[inline]
    pub fn put_user(&self, offset: usize, bytes: UserBytes<'_>) -> Result<(), Errno> {
        let to = self.at(offset, bytes.len())?;
        // SAFETY: `at` gave room for `bytes.len()` bytes.
        unsafe { bytes.copy_to(to.as_ptr()) };
        Ok(())
    }

    /// Reads a `T` at `offset` bytes.
    ///
    /// # Errors
    /// `EINVAL` where the slot has no such bytes.
    #[inline]
    pub fn get<T: FromBytes>(&self, offset: usize) -> Result<T, Errno> {
        let from = self.at(offset, size_of::<T>())?;
        // SAFETY: `at` gave `size_of::<T>()` readable bytes, any of which make a `T` (FromBytes). The producer's index, loaded
        // with acquire order, says that nobody writes them meanwhile.
        Ok(unsafe { core::ptr::read_unaligned(from.as_ptr().cast()) })
    }
}
