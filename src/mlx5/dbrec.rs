//! Doorbell records: pairs of words in memory of ours that the device reads. One to a cache line, many to a page, since the
//! kernel pins whole pages.

use std::sync::{Arc, Mutex, PoisonError};

use crate::abi::host::ForkRanges;
use crate::error::Errno;
use crate::hw::dma::{Memory, Record};

/// Bytes of a page of records.
const PAGE: usize = 4096;

#[derive(Debug)]
struct Page {
    memory: Arc<Memory>,
    /// Places that nobody has, as a stack.
    free: Vec<u16>,
}

/// The records of a context.
#[derive(Debug)]
pub(super) struct Pool {
    pages: Mutex<Vec<Page>>,
    /// Bytes between records.
    stride: usize,
    fork: ForkRanges,
}

impl Pool {
    /// Records a device's cache line, `line` bytes, apart.
    pub(super) fn new(line: u32, fork: ForkRanges) -> Arc<Pool> {
        // A number that no cache line has comes from a broken answer; records stay apart all the same.
        let stride = if line.is_power_of_two() && (8..=1024).contains(&line) { line as usize } else { 64 };
        Arc::new(Pool { pages: Mutex::default(), stride, fork })
    }

    /// A record, zeroed.
    pub(super) fn take(self: &Arc<Pool>) -> Result<Dbrec, Errno> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match pages.iter().position(|page| !page.free.is_empty()) {
            Some(at) => at,
            None => {
                let memory = Memory::new(PAGE, self.fork)?;
                pages.push(Page { memory, free: (0..self.places() as u16).rev().collect() });
                pages.len() - 1
            }
        };
        let page = pages.get_mut(at).ok_or(Errno::ENOMEM)?;
        let place = page.free.pop().ok_or(Errno::ENOMEM)?;
        let record = Record::new(&page.memory, usize::from(place) * self.stride)?;
        Ok(Dbrec { record, place, pool: self.clone() })
    }

    /// Records of a page.
    fn places(&self) -> usize {
        PAGE / self.stride
    }

    /// The record at `address`, the `place`th of its page, has no owner any more.
    fn give_back(&self, address: u64, place: u16) {
        let start = address - u64::from(place) * self.stride as u64;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = pages.iter().position(|page| page.memory.address(0) == start) else { return };
        let Some(page) = pages.get_mut(at) else { return };
        page.free.push(place);
        // One that nobody has a record of is kept for the next one who wants one.
        let unused = |page: &Page| page.free.len() == self.places();
        if unused(page) && pages.iter().filter(|page| unused(page)).count() > 1 {
            pages.swap_remove(at);
        }
    }
}

/// One record; given back when nobody has it any more.
#[derive(Debug)]
pub(super) struct Dbrec {
    pub(super) record: Record,
    place: u16,
    pool: Arc<Pool>,
}

impl Drop for Dbrec {
    fn drop(&mut self) {
        self.pool.give_back(self.record.address(), self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uapi::sys::twin::Kernel;

    #[test]
    fn records_are_a_line_apart_and_pages_come_and_go() {
        let kernel = Kernel::real();
        let pool = Pool::new(64, ForkRanges::default());
        let mut records: Vec<_> = (0..65).map(|_| pool.take().unwrap()).collect();
        let mut addresses: Vec<u64> = records.iter().map(|record| record.record.address()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), 65);
        assert!(addresses.iter().all(|address| address % 64 == 0));
        assert_eq!(pool.pages.lock().unwrap().len(), 2);
        let again = records.remove(0).record.address();
        assert_eq!(pool.take().unwrap().record.address(), again, "a place is used again");
        records.clear();
        assert_eq!(pool.pages.lock().unwrap().len(), 1, "one is kept");
        drop(kernel);
    }

    #[test]
    fn a_cache_line_that_cannot_be_does_no_harm() {
        for line in [0, 3, 1 << 20] {
            assert_eq!(Pool::new(line, ForkRanges::default()).stride, 64);
        }
    }
}
