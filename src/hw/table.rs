//! Tables beside a ring: what we note of each of its places, where no device reads it.
//!
//! Invariants of [`Table`]:
//! - T1: `first` is the first of `mask + 1` values, a power of two: where `is_static`, one of which only shared references are made,
//!   else values that the table owns, of a boxed slice, or, where `beside` is there, in what the [`Beside`] stood for that it was in.
#![allow(unsafe_code, reason = "reaches a place by a masked index, without a test that it is one")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use std::sync::Arc;

use super::dma::{Beside, Memory};
use crate::error::Errno;

/// A table of a power of two of `T`, whose indices wrap around: every index is a place, so that none is tested.
///
/// In place of a slice it saves a compare and a branch at each access, of which a post has two and a completion two.
#[derive(Debug)]
pub struct Table<T> {
    first: NonNull<T>,
    mask: u32,
    is_static: bool,
    beside: Option<Arc<Memory>>,
}

// SAFETY: T1: it owns its values, as a box does.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above; only shared references are given out.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// At least `count` values, each from `make`.
    pub fn new(count: u32, make: impl FnMut() -> T) -> Table<T> {
        let count = count.max(1).checked_next_power_of_two().unwrap_or(1 << 31);
        let values: Box<[T]> = core::iter::repeat_with(make).take(count as usize).collect();
        Table {
            first: NonNull::from(Box::leak(values)).cast(),
            mask: count - 1,
            is_static: false,
            beside: None,
        }
    }

    /// `value` alone, without an allocation until [`Table::at_mut`].
    pub fn of_static(value: &'static T) -> Table<T>
    where
        T: Sync,
    {
        Table { first: NonNull::from(value), mask: 0, is_static: true, beside: None }
    }

    /// What `count` values take beside a ring.
    #[must_use]
    pub const fn bytes(count: u32) -> usize {
        (count as usize).saturating_mul(size_of::<T>())
    }

    /// `count` values, a power of two, all zero, in memory beside a ring.
    ///
    /// # Errors
    /// `ERANGE` where there is no room for them, or `count` is no power of two.
    #[cfg(not(loom))]
    pub fn zeroed(beside: Beside, count: u32) -> Result<Table<T>, Errno>
    where
        T: zerocopy::FromZeros,
    {
        const { assert!(align_of::<T>() <= super::dma::ENTRY && !core::mem::needs_drop::<T>()) };
        let bytes = beside.bytes();
        if !count.is_power_of_two() || bytes.len() < Table::<T>::bytes(count) {
            return Err(Errno::ERANGE);
        }
        Ok(Table {
            first: bytes.cast(),
            mask: count - 1,
            is_static: false,
            beside: Some(beside.into_memory()),
        })
    }

    /// As without loom, whose atomics are more than their bytes.
    #[cfg(loom)]
    pub fn zeroed(_beside: Beside, count: u32) -> Result<Table<T>, Errno>
    where
        T: Default,
    {
        Ok(Table::new(count, T::default))
    }

    /// The value at `index`, taken modulo the table, to be changed.
    pub fn at_mut(&mut self, index: u32) -> &mut T
    where
        T: Clone,
    {
        if self.is_static {
            *self = Table::new(1, || self.at(0).clone());
        }
        // SAFETY: T1: a masked index is within the slice.
        let mut at = unsafe { self.first.add((index & self.mask) as usize) };
        // SAFETY: T1, and no static one any more; `self` is borrowed for as long.
        unsafe { at.as_mut() }
    }

    /// Values.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> u32 {
        self.mask + 1
    }

    /// Whether `index` is a place as it is. (Compared with [`Table::len`], which is computed, it took a register more.)
    #[inline(always)]
    #[must_use]
    pub fn has(&self, index: u32) -> bool {
        index <= self.mask
    }

    /// The value at `index`, which is taken modulo the table.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, index: u32) -> &T {
        self.view().at(index)
    }

    /// Where the values are, by value: a barrier between two accesses does not make the compiler load that again.
    #[inline(always)]
    #[must_use]
    pub fn view(&self) -> View<'_, T> {
        View { first: self.first, mask: self.mask, table: PhantomData }
    }

    /// All of them, from the first on.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        (0..=self.mask).map(|index| self.at(index))
    }
}

/// The values of a [`Table`].
#[derive(Debug)]
pub struct View<'a, T> {
    first: NonNull<T>,
    mask: u32,
    table: PhantomData<&'a Table<T>>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<'a, T> View<'a, T> {
    /// The value at `index`, which is taken modulo the table.
    #[inline(always)]
    #[must_use]
    pub fn at(self, index: u32) -> &'a T {
        // SAFETY: T1: a masked index is within the slice.
        let at = unsafe { self.first.add((index & self.mask) as usize) };
        // SAFETY: T1; only shared references are made of it while the table is borrowed.
        unsafe { at.as_ref() }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        if self.is_static || self.beside.is_some() {
            return;
        }
        let values = NonNull::slice_from_raw_parts(self.first, self.mask as usize + 1);
        // SAFETY: T1: the box that `new` leaked, and nobody looks at it any more.
        drop(unsafe { Box::from_raw(values.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU32, Ordering};
    use std::sync::Arc;

    use super::*;
    use crate::abi::host::ForkRanges;
    use crate::hw::dma::{Pages, Units};
    use crate::uapi::sys::twin::Kernel;

    #[test]
    fn indices_wrap_around_a_power_of_two() {
        let mut next = 0;
        let table = Table::new(5, || {
            next += 1;
            AtomicU32::new(next)
        });
        assert_eq!(table.len(), 8);
        assert_eq!(
            table.iter().map(|value| value.load(Ordering::Relaxed)).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
        table.at(9).store(20, Ordering::Relaxed);
        assert_eq!(table.at(u32::MAX - 6).load(Ordering::Relaxed), 20);
        let mut one = Table::new(0, || 7);
        *one.at_mut(5) += 1;
        assert_eq!((one.len(), *one.at(0)), (1, 8));
        static SEVEN: i32 = 7;
        let mut one = Table::of_static(&SEVEN);
        assert_eq!((one.len(), one.at(3)), (1, &7));
        *one.at_mut(5) += 1;
        assert_eq!((one.len(), *one.at(0), SEVEN), (1, 8, 7));
        drop(Table::of_static(&SEVEN));
    }

    #[test]
    fn values_beside_a_ring_are_zero_and_their_own() {
        let _kernel = Kernel::real();
        let pages = Pages::new(ForkRanges::default());
        let (ring, beside) = pages.take_beside(100, Table::<AtomicU32>::bytes(16)).unwrap();
        assert_eq!(ring.len(), 128);
        assert_eq!(Units::new(&ring, 0, 16).unwrap_err(), Errno::ERANGE, "not the ring's");
        let units = Units::new(&ring, 0, 8).unwrap();
        let table = Table::<AtomicU32>::zeroed(beside, 16).unwrap();
        table.at(0).store(1, Ordering::Relaxed);
        table.at(31).store(2, Ordering::Relaxed);
        assert_eq!((table.at(16).load(Ordering::Relaxed), table.at(15).load(Ordering::Relaxed)), (1, 2));
        assert_eq!(units.get(7), [0, 0]);
        let address = ring.address(0);
        drop((ring, units));
        assert_ne!(pages.take(100).unwrap().address(0), address, "the table still has it");
        drop(table);
        let (ring, beside) = pages.take_beside(128, 64).unwrap();
        assert_eq!(ring.address(0), address);
        let table = Table::<AtomicU32>::zeroed(beside, 16).unwrap();
        assert!(table.iter().all(|value| value.load(Ordering::Relaxed) == 0));
        for (bytes, count) in [(64, 32), (64, 3), (0, 1)] {
            let (_ring, beside) = pages.take_beside(64, bytes).unwrap();
            assert_eq!(Table::<AtomicU32>::zeroed(beside, count).unwrap_err(), Errno::ERANGE);
        }
    }

    #[test]
    fn tables_beside_a_ring_do_not_overlap() {
        let _kernel = Kernel::real();
        let pages = Pages::new(ForkRanges::default());
        let (_ring, beside) = pages.take_beside(64, 192 + 32).unwrap();
        let (first, rest) = beside.split(100);
        let tables = [(first, 32), (rest, 16)].map(|(part, count)| {
            let table = Table::<AtomicU32>::zeroed(part, count).unwrap();
            table.iter().for_each(|value| value.store(count, Ordering::Relaxed));
            (table, count)
        });
        for (table, count) in &tables {
            assert!(table.iter().all(|value| value.load(Ordering::Relaxed) == *count));
        }
        let (_ring, beside) = pages.take_beside(64, 32).unwrap();
        let (all, none) = beside.split(usize::MAX);
        assert!(Table::<AtomicU32>::zeroed(all, 8).is_ok());
        assert_eq!(Table::<AtomicU32>::zeroed(none, 1).unwrap_err(), Errno::ERANGE);
    }

    #[test]
    fn values_are_dropped_with_it() {
        let token = Arc::new(());
        let table = Table::new(4, || token.clone());
        assert_eq!(Arc::strong_count(&token), 5);
        drop(table);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
