//! Memory shared with the guest: its RAM, as the front hands it over, and the device's own doorbell pages.
//!
//! Both are mappings of files that another process stores into at any time, so nothing here is ever a reference or a
//! slice: bytes are copied in and out, and single words are read and written as atomics.
#![allow(unsafe_code, reason = "raw memory shared with the guest lives here and nowhere else")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A shared mapping of a file.
///
/// Invariants: (M1) `start` is valid for reads and writes of `len` bytes until drop; (M2) it is page-aligned.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: (M1) holds in every thread; all accesses are copies or atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, offset: u64, len: usize) -> io::Result<Mapping> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no existing one.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.as_raw_fd(), offset)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at null"))?;
        Ok(Mapping { start, len })
    }

    /// The address of `len` bytes at `offset`, if the mapping has them.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: (M1), and the offset was just compared with the length.
        Some(unsafe { self.start.as_ptr().add(offset) })
    }

    fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let from = self.at(offset, to.len())?;
        // SAFETY: (M1); `to` is our own memory, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Some(())
    }

    fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.at(offset, from.len())?;
        // SAFETY: (M1); `from` is our own memory, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Some(())
    }

    fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        let at = self.at(offset, 1)?;
        // SAFETY: (M1); any byte is a valid `AtomicU8`.
        Some(unsafe { AtomicU8::from_ptr(at) })
    }

    fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let at = self.at(offset, 4).filter(|_| offset.is_multiple_of(4))?;
        // SAFETY: (M1), (M2): aligned; any four bytes are a valid `AtomicU32`.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    fn long(&self, offset: usize) -> Option<&AtomicU64> {
        let at = self.at(offset, 8).filter(|_| offset.is_multiple_of(8))?;
        // SAFETY: (M1), (M2): aligned; any eight bytes are a valid `AtomicU64`.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: (M1): ours, and nothing borrowed from it outlives it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// An access to guest memory that no mapping backs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmapped(pub(crate) u64);

#[derive(Debug)]
struct Range {
    start: u64,
    map: Mapping,
}

/// The guest's memory, by guest-physical address.
#[derive(Debug, Default)]
pub(crate) struct GuestMemory {
    ranges: Vec<Range>,
}

impl GuestMemory {
    /// Adds a range that `file` backs.
    pub(crate) fn map(&mut self, start: u64, len: u64, file: &File, offset: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.ranges.push(Range { start, map: Mapping::new(file, offset, len)? });
        Ok(())
    }

    /// Takes away all ranges inside `start..start + len`.
    pub(crate) fn unmap(&mut self, start: u64, len: u64) {
        self.ranges.retain(|range| range.start < start || range.start - start >= len);
    }

    /// Takes away all there is.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    fn find(&self, address: u64, len: usize) -> Result<(&Mapping, usize), Unmapped> {
        for range in &self.ranges {
            let Some(offset) =
                address.checked_sub(range.start).and_then(|offset| usize::try_from(offset).ok())
            else {
                continue;
            };
            if offset.checked_add(len).is_some_and(|end| end <= range.map.len) {
                return Ok((&range.map, offset));
            }
        }
        Err(Unmapped(address))
    }

    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        let (map, offset) = self.find(address, to.len())?;
        map.read(offset, to).ok_or(Unmapped(address))
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        let (map, offset) = self.find(address, from.len())?;
        map.write(offset, from).ok_or(Unmapped(address))
    }

    /// Writes `from` so that its last byte, which hands it over, becomes visible after the rest.
    pub(crate) fn publish(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        let (map, offset) = self.find(address, from.len())?;
        let Some((last, body)) = from.split_last() else { return Ok(()) };
        map.write(offset, body).ok_or(Unmapped(address))?;
        let owner = map.byte(offset + body.len()).ok_or(Unmapped(address))?;
        // ORDER: pairs with the guest's load of the ownership byte.
        owner.store(*last, Ordering::Release);
        Ok(())
    }

    /// A big-endian word that the guest stores into, such as a doorbell record.
    pub(crate) fn word(&self, address: u64) -> Result<u32, Unmapped> {
        let (map, offset) = self.find(address, 4)?;
        // ORDER: pairs with the guest's store of the record, after what it announces.
        Ok(u32::from_be(map.word(offset).ok_or(Unmapped(address))?.load(Ordering::Acquire)))
    }

    /// Replaces eight bytes by what `change` makes of them, in the host's byte order, and says what they were.
    pub(crate) fn update(&self, address: u64, change: impl Fn(u64) -> u64) -> Result<u64, Unmapped> {
        let (map, offset) = self.find(address, 8)?;
        let word = map.long(offset).ok_or(Unmapped(address))?;
        // ORDER: an RDMA atomic is atomic to the processor as well.
        let update = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(change(old)));
        Ok(update.unwrap_or_else(|old| old))
    }
}

/// A file of zeroes that only memory holds.
pub(crate) fn anonymous(len: u64) -> io::Result<File> {
    // SAFETY: the name is a C string; the answer is checked.
    let fd = unsafe { libc::memfd_create(c"vhca".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len)?;
    Ok(file)
}

/// The size of a doorbell page.
pub(crate) const PAGE: usize = 4096;

/// The memory behind the part of the BAR that a guest may map: doorbell pages.
#[derive(Debug)]
pub(crate) struct DoorbellPages {
    file: File,
    map: Mapping,
}

impl DoorbellPages {
    pub(crate) fn new(len: usize) -> io::Result<DoorbellPages> {
        let file = anonymous(u64::try_from(len).map_err(io::Error::other)?)?;
        let map = Mapping::new(&file, 0, len)?;
        Ok(DoorbellPages { file, map })
    }

    /// The descriptor to hand to the guest's machine.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Takes the register at byte `offset`, leaving zero: a later store of the same value shows again.
    pub(crate) fn take(&self, offset: usize) -> u64 {
        let Some(register) = self.map.long(offset) else { return 0 };
        // ORDER: pairs with the guest's store, which follows the doorbell record and the work request.
        if register.load(Ordering::Relaxed) == 0 {
            0
        } else {
            u64::from_be(register.swap(0, Ordering::Acquire))
        }
    }

    /// Copies out what is stored at `offset`.
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        if self.map.read(offset, to).is_none() {
            to.fill(0);
        }
    }

    /// Zeroes a page before a new owner gets it.
    pub(crate) fn clear(&self, page: usize) {
        self.map.write(page * PAGE, &[0; PAGE]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> io::Result<GuestMemory> {
        let file = anonymous(0x3000)?;
        let mut memory = GuestMemory::default();
        memory.map(0x10_0000, 0x2000, &file, 0x1000)?;
        Ok(memory)
    }

    #[test]
    fn only_what_is_mapped_is_reached() -> io::Result<()> {
        let mut memory = memory()?;
        assert_eq!(memory.write(0x10_1ffc, &[1, 2, 3, 4]), Ok(()));
        assert_eq!(memory.word(0x10_1ffc), Ok(0x0102_0304));
        assert_eq!(memory.write(0x10_1ffd, &[0; 4]), Err(Unmapped(0x10_1ffd)));
        assert_eq!(memory.word(0xf_ffff), Err(Unmapped(0xf_ffff)));
        assert_eq!(memory.word(u64::MAX - 1), Err(Unmapped(u64::MAX - 1)));
        assert_eq!(memory.word(0x10_0001), Err(Unmapped(0x10_0001)), "unaligned");
        memory.unmap(0x10_0000, 0x2000);
        assert_eq!(memory.word(0x10_0000), Err(Unmapped(0x10_0000)));
        Ok(())
    }

    #[test]
    fn an_update_says_what_was_there() -> io::Result<()> {
        let memory = memory()?;
        assert_eq!(memory.update(0x10_0008, |old| old + 5), Ok(0));
        assert_eq!(memory.update(0x10_0008, |old| old + 5), Ok(5));
        Ok(())
    }

    #[test]
    fn a_register_is_taken_once() -> io::Result<()> {
        let pages = DoorbellPages::new(2 * PAGE)?;
        assert!(pages.map.write(PAGE + 0x800, &7u64.to_be_bytes()).is_some());
        assert_eq!((pages.take(PAGE + 0x800), pages.take(PAGE + 0x800)), (7, 0));
        assert_eq!(pages.take(2 * PAGE), 0);
        Ok(())
    }
}
