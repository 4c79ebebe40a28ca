//! Memory for the bed's own use. A kernel's does not cost more where the program has a second thread, or frees much of the same size; the C
//! library's does, and two providers were charged differently for what the bed does for both alike. So what the bed gives back is kept for
//! it, by size, and only what is not there is asked of the C library.
//!
//! Nobody waits here: where another thread is at a list just now, or was when this process was forked, the C library serves.
//!
//! Invariants of [`List`]:
//! - H1: what is reached by `first` only whoever made `taken` true touches, until it makes it false.
//! - H2: each block in a list was allocated with the list's [`layout`], and nobody has it.
#![allow(unsafe_code, reason = "an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the smallest blocks, as a power of two; those of each further list are twice as large.
const SMALLEST: u32 = 4;
const LISTS: usize = 9;
/// No block is aligned to more.
const ALIGN: usize = 16;
/// Blocks that a list keeps.
const KEPT: u32 = 1024;

/// A block that nobody has.
struct Block {
    next: *mut Block,
}

struct Free {
    first: *mut Block,
    count: u32,
}

/// Blocks of one size.
struct List {
    taken: AtomicBool,
    free: UnsafeCell<Free>,
}

// SAFETY: H1.
unsafe impl Sync for List {}

/// See the module.
struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

static FREE: [List; LISTS] = [const {
    List { taken: AtomicBool::new(false), free: UnsafeCell::new(Free { first: ptr::null_mut(), count: 0 }) }
}; LISTS];

/// Which list has blocks for `asked`, and what they are; none for what is larger, or aligned to more.
fn list_of(asked: Layout) -> Option<(&'static List, Layout)> {
    let size = asked.size().max(1 << SMALLEST).checked_next_power_of_two()?;
    let list = FREE.get((size.trailing_zeros() - SMALLEST) as usize)?;
    (asked.align() <= ALIGN).then_some((list, layout(size)?))
}

fn layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size, ALIGN).ok()
}

impl List {
    /// Does something with the list, unless somebody else does just now.
    fn with<T>(&self, work: impl FnOnce(&mut Free) -> Option<T>) -> Option<T> {
        // ORDER: Acquire, partner is the Release below, of whoever had it before.
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: H1.
        let result = work(unsafe { &mut *self.free.get() });
        // ORDER: Release, see above.
        self.taken.store(false, Ordering::Release);
        result
    }

    fn take(&self) -> Option<*mut u8> {
        self.with(|free| {
            let block = free.first;
            if block.is_null() {
                return None;
            }
            // SAFETY: H2: it was written when it came.
            free.first = unsafe { (*block).next };
            free.count -= 1;
            Some(block.cast())
        })
    }

    /// Keeps a block, which the caller gives up, if there is room.
    ///
    /// # Safety
    /// H2.
    unsafe fn keep(&self, block: *mut u8) -> bool {
        let kept = self.with(|free| {
            if free.count == KEPT {
                return None;
            }
            let block: *mut Block = block.cast();
            // SAFETY: the caller's word: nobody has it, and it is large enough and aligned.
            unsafe { block.write(Block { next: free.first }) };
            free.first = block;
            free.count += 1;
            Some(())
        });
        kept.is_some()
    }
}

// SAFETY: each block is the C library's, allocated and freed with the same layout, that of its list or the one that was asked for, and given
// to one at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, asked: Layout) -> *mut u8 {
        match list_of(asked) {
            // SAFETY: the layout is not empty.
            Some((list, layout)) => list.take().unwrap_or_else(|| unsafe { System.alloc(layout) }),
            // SAFETY: the caller's word.
            None => unsafe { System.alloc(asked) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, asked: Layout) {
        match list_of(asked) {
            Some((list, layout)) => {
                // SAFETY: it came from `alloc` with the same layout, and the caller gives it up.
                if !unsafe { list.keep(block) } {
                    // SAFETY: as above.
                    unsafe { System.dealloc(block, layout) };
                }
            }
            // SAFETY: the caller's word.
            None => unsafe { System.dealloc(block, asked) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, old: Layout, size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(size, old.align()) else { return ptr::null_mut() };
        let lists = (list_of(old), list_of(new));
        match lists {
            (None, None) => {
                // SAFETY: the caller's word.
                return unsafe { System.realloc(block, old, size) };
            }
            (Some((_, has)), Some((_, wants))) if has == wants => return block,
            _ => {}
        }
        // SAFETY: the caller's word: the new layout is not empty.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: two blocks of at least so many bytes.
            unsafe { ptr::copy_nonoverlapping(block, moved, old.size().min(size)) };
            // SAFETY: the caller's word.
            unsafe { self.dealloc(block, old) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_lists_of_their_own() {
        let of = |size, align| {
            list_of(Layout::from_size_align(size, align).unwrap()).map(|(_, layout)| layout.size())
        };
        assert_eq!(
            [of(1, 1), of(16, 16), of(17, 8), of(4096, 8)],
            [Some(16), Some(16), Some(32), Some(4096)]
        );
        assert_eq!([of(4097, 8), of(16, 32)], [None, None]);
    }

    #[test]
    fn bytes_move_with_a_vector_that_grows() {
        let mut bytes = Vec::new();
        for at in 0..20_000_u32 {
            bytes.push(at as u8);
        }
        bytes.shrink_to_fit();
        assert!(bytes.iter().zip(0..20_000_u32).all(|(byte, at)| *byte == at as u8));
        bytes.truncate(100);
        bytes.shrink_to_fit();
        assert!(bytes.iter().zip(0..100_u32).all(|(byte, at)| u32::from(*byte) == at));
        let zeroes = vec![0_u8; 4096];
        drop(bytes);
        assert!(zeroes.iter().all(|byte| *byte == 0));
    }
}
