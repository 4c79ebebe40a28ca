//! What the driver creates: the device's tables of queues, keys and small things that are only numbers.
//!
//! Numbers are handed out in rising order and come back only after the whole space was used, so that a late doorbell
//! or key of a destroyed object never names a new one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub(crate) mod cq;
pub(crate) mod eq;
pub(crate) mod mkey;
pub(crate) mod qp;
pub(crate) mod srq;

use cq::Cq;
use eq::Eq;
use mkey::Mkey;
use qp::Qp;
use srq::Srq;

/// A queue's memory: guest pages, where in the first one the queue begins, and how large a page is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer {
    pages: Vec<u64>,
    shift: u32,
    offset: u64,
}

impl Buffer {
    /// `log_page` counts from 4 KiB; `offset` is in bytes.
    pub(crate) fn new(pages: Vec<u64>, log_page: u64, offset: u64) -> Buffer {
        Buffer { pages, shift: 12 + u32::try_from(log_page & 0x1f).unwrap_or(0), offset }
    }

    /// The same pages, seen `further` bytes on.
    pub(crate) fn skip(&self, further: u64) -> Buffer {
        Buffer { offset: self.offset + further, ..self.clone() }
    }

    /// The guest-physical address of a byte of the queue, if its pages reach that far.
    pub(crate) fn address(&self, at: u64) -> Option<u64> {
        let at = self.offset.checked_add(at)?;
        let page = self.pages.get(usize::try_from(at >> self.shift).ok()?)?;
        page.checked_add(at & ((1 << self.shift) - 1))
    }

    /// Do the pages hold `len` bytes?
    pub(crate) fn holds(&self, len: u64) -> bool {
        len.checked_sub(1).is_none_or(|last| self.address(last).is_some())
    }
}

/// Hands out numbers.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    first: u32,
    next: u32,
    end: u32,
}

impl Numbers {
    pub(crate) const fn new(first: u32, end: u32) -> Numbers {
        Numbers { first, next: first, end }
    }

    /// The next number that `taken` does not know.
    pub(crate) fn next(&mut self, taken: impl Fn(u32) -> bool) -> Option<u32> {
        for _ in self.first..self.end {
            let number = self.next;
            self.next = if number + 1 >= self.end { self.first } else { number + 1 };
            if !taken(number) {
                return Some(number);
            }
        }
        None
    }
}

/// Things that are only a number to the device.
#[derive(Clone, Debug)]
pub(crate) struct Ids {
    numbers: Numbers,
    live: BTreeSet<u32>,
}

impl Ids {
    const fn new(first: u32, end: u32) -> Ids {
        Ids { numbers: Numbers::new(first, end), live: BTreeSet::new() }
    }

    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let number = self.numbers.next(|number| self.live.contains(&number))?;
        self.live.insert(number);
        Some(number)
    }

    pub(crate) fn release(&mut self, number: u32) -> bool {
        self.live.remove(&number)
    }

    pub(crate) fn contains(&self, number: u32) -> bool {
        self.live.contains(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.iter().copied()
    }
}

/// Objects with a content.
#[derive(Debug)]
pub(crate) struct Table<T> {
    numbers: Numbers,
    live: BTreeMap<u32, T>,
}

impl<T> Table<T> {
    const fn new(first: u32, end: u32) -> Table<T> {
        Table { numbers: Numbers::new(first, end), live: BTreeMap::new() }
    }

    pub(crate) fn insert(&mut self, object: T) -> Option<u32> {
        let number = self.numbers.next(|number| self.live.contains_key(&number))?;
        self.live.insert(number, object);
        Some(number)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.live.get(&number)
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.live.get_mut(&number)
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        self.live.remove(&number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.live.iter().map(|(number, object)| (*number, object))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        self.live.iter_mut().map(|(number, object)| (*number, object))
    }
}

/// The first doorbell page that is handed out: those before it are the initialization segment and the MSI-X table.
pub(crate) const FIRST_UAR: u32 = 16;

/// All objects of a device.
#[derive(Debug)]
pub(crate) struct Objects {
    pub(crate) uars: Ids,
    pub(crate) pds: Ids,
    pub(crate) transport_domains: Ids,
    pub(crate) xrcds: Ids,
    pub(crate) counters: Ids,
    pub(crate) mkeys: Table<Mkey>,
    pub(crate) eqs: Table<Eq>,
    pub(crate) cqs: Table<Cq>,
    /// Queue pairs and bare send queues: a doorbell names both by one number space.
    pub(crate) qps: Table<Qp>,
    /// Shared receive queues of all kinds: the drivers look them up by one number space.
    pub(crate) srqs: Table<Srq>,
    /// Multicast groups: the queue pairs attached to each.
    pub(crate) groups: BTreeMap<[u8; 16], BTreeSet<u32>>,
    /// Pieces of the device's own memory: where each begins in the BAR, and its length.
    pub(crate) device_memory: BTreeMap<u64, u64>,
}

impl Objects {
    /// Empty tables of a device whose BAR has `uars` doorbell pages and which gives out queue pair numbers of `qps`.
    pub(crate) const fn new(uars: u32, qps: &Range<u32>) -> Objects {
        Objects {
            uars: Ids::new(FIRST_UAR, uars),
            pds: Ids::new(1, 1 << 16),
            transport_domains: Ids::new(1, 1 << 16),
            xrcds: Ids::new(1, 1 << 16),
            counters: Ids::new(1, 1 << 8),
            mkeys: Table::new(0x100, 1 << 20),
            eqs: Table::new(1, 64),
            cqs: Table::new(1, 1 << 16),
            qps: Table::new(qps.start, qps.end),
            srqs: Table::new(1, 1 << 16),
            groups: BTreeMap::new(),
            device_memory: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_comes_back_late() {
        let mut ids = Ids::new(3, 6);
        assert_eq!(ids.allocate(), Some(3));
        assert!(ids.release(3) && !ids.release(3));
        assert_eq!([ids.allocate(), ids.allocate(), ids.allocate()], [Some(4), Some(5), Some(3)]);
        assert_eq!(ids.allocate(), None);
    }

    #[test]
    fn a_buffer_ends_where_its_pages_do() {
        let buffer = Buffer::new(vec![0x1000, 0x8000], 0, 0x40).skip(0x80);
        assert_eq!(buffer.address(0), Some(0x10c0));
        assert_eq!(buffer.address(0xf40), Some(0x8000));
        assert!(buffer.holds(0x1f40) && !buffer.holds(0x1f41));
        assert_eq!(buffer.address(u64::MAX), None);
    }
}
