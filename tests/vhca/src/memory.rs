//! Memory shared with the guest: its RAM, as the front hands it over, and the device's own doorbell pages. A device without
//! a guest, in the process of its driver, has that process's memory instead.
//!
//! Both are mappings of files that another process stores into at any time, so nothing here is ever a reference or a
//! slice: bytes are copied in and out, and single words are read and written as atomics.
#![allow(unsafe_code, reason = "raw memory shared with the guest lives here and nowhere else")]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

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

/// Where the device finds its own memory: beyond all that a guest, or a process, has.
pub(crate) const OWN: u64 = 1 << 62;

/// The guest's memory, by guest-physical address; or this process's, by address.
#[derive(Debug)]
pub(crate) enum GuestMemory {
    Ranges(Ranges),
    Process(ProcessMemory),
}

impl Default for GuestMemory {
    fn default() -> GuestMemory {
        GuestMemory::Ranges(Ranges::default())
    }
}

/// A guest's memory, and the device's own.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    ranges: Vec<Range>,
}

impl GuestMemory {
    /// Adds a range that `file` backs.
    pub(crate) fn map(&mut self, start: u64, len: u64, file: &File, offset: u64) -> io::Result<()> {
        let GuestMemory::Ranges(ranges) = self else { return Err(io::Error::other("there is no guest")) };
        let len = usize::try_from(len).map_err(io::Error::other)?;
        ranges.ranges.push(Range { start, map: Mapping::new(file, offset, len)? });
        Ok(())
    }

    /// Takes away all ranges inside `start..start + len`.
    pub(crate) fn unmap(&mut self, start: u64, len: u64) {
        if let GuestMemory::Ranges(ranges) = self {
            ranges.ranges.retain(|range| range.start < start || range.start - start >= len);
        }
    }

    /// Takes away all of the guest's.
    pub(crate) fn clear(&mut self) {
        if let GuestMemory::Ranges(ranges) = self {
            ranges.ranges.retain(|range| range.start >= OWN);
        }
    }

    pub(crate) fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        match self {
            GuestMemory::Ranges(ranges) => {
                let (map, offset) = ranges.find(address, to.len())?;
                map.read(offset, to).ok_or(Unmapped(address))
            }
            GuestMemory::Process(process) => process.read(address, to),
        }
    }

    pub(crate) fn write(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        match self {
            GuestMemory::Ranges(ranges) => {
                let (map, offset) = ranges.find(address, from.len())?;
                map.write(offset, from).ok_or(Unmapped(address))
            }
            GuestMemory::Process(process) => process.write(address, from),
        }
    }

    /// Writes `from` so that its last byte, which hands it over, becomes visible after the rest.
    pub(crate) fn publish(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        let Some((last, body)) = from.split_last() else { return Ok(()) };
        self.write(address, body)?;
        let end = address.checked_add(body.len() as u64).ok_or(Unmapped(address))?;
        let owner = match self {
            GuestMemory::Ranges(ranges) => {
                let (map, offset) = ranges.find(end, 1)?;
                map.byte(offset)
            }
            GuestMemory::Process(process) => process.byte(end),
        };
        // ORDER: pairs with the guest's load of the ownership byte.
        owner.ok_or(Unmapped(address))?.store(*last, Ordering::Release);
        Ok(())
    }

    /// A big-endian word that the guest stores into, such as a doorbell record.
    pub(crate) fn word(&self, address: u64) -> Result<u32, Unmapped> {
        let word = match self {
            GuestMemory::Ranges(ranges) => {
                let (map, offset) = ranges.find(address, 4)?;
                map.word(offset)
            }
            GuestMemory::Process(process) => process.word(address),
        };
        // ORDER: pairs with the guest's store of the record, after what it announces.
        Ok(u32::from_be(word.ok_or(Unmapped(address))?.load(Ordering::Acquire)))
    }

    /// Replaces eight bytes by what `change` makes of them, in the host's byte order, and says what they were.
    pub(crate) fn update(&self, address: u64, change: impl Fn(u64) -> u64) -> Result<u64, Unmapped> {
        let word = match self {
            GuestMemory::Ranges(ranges) => {
                let (map, offset) = ranges.find(address, 8)?;
                map.long(offset)
            }
            GuestMemory::Process(process) => process.long(address),
        };
        let word = word.ok_or(Unmapped(address))?;
        // ORDER: an RDMA atomic is atomic to the processor as well.
        let update = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| Some(change(old)));
        Ok(update.unwrap_or_else(|old| old))
    }
}

impl Ranges {
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
}

/// The memory of this process. Queues and doorbell records, which the driver pinned, are touched as they are; anything else
/// goes by the system, which knows what is mapped.
///
/// Invariant: (P1) whoever pins a range keeps it mapped, readable and writable, until it is unpinned or forgotten.
#[derive(Debug)]
pub(crate) struct ProcessMemory {
    process: libc::pid_t,
    /// How often each page was pinned.
    pinned: HashMap<u64, u32>,
    /// The system does not let a process read itself: everything is touched as it is.
    blind: AtomicBool,
}

/// Pages that bytes are in.
fn pages_of(address: u64, len: u64) -> Option<std::ops::RangeInclusive<u64>> {
    let last = address.checked_add(len.checked_sub(1)?)?;
    Some(address / PAGE as u64..=last / PAGE as u64)
}

impl ProcessMemory {
    /// The memory of the process that calls this, not of one that is forked from it.
    pub(crate) fn new() -> ProcessMemory {
        // SAFETY: no arguments.
        let process = unsafe { libc::getpid() };
        ProcessMemory { process, pinned: HashMap::new(), blind: AtomicBool::new(false) }
    }

    /// Pins a range.
    ///
    /// # Safety
    /// (P1) holds of it.
    pub(crate) unsafe fn pin(&mut self, start: u64, len: u64) {
        for page in pages_of(start, len).into_iter().flatten() {
            *self.pinned.entry(page).or_insert(0) += 1;
        }
    }

    /// Takes back one pin.
    pub(crate) fn unpin(&mut self, start: u64, len: u64) {
        for page in pages_of(start, len).into_iter().flatten() {
            if let Some(count) = self.pinned.get_mut(&page) {
                *count -= 1;
                if *count == 0 {
                    self.pinned.remove(&page);
                }
            }
        }
    }

    /// Takes back every pin of the pages of a range: the program took them away under the device.
    pub(crate) fn forget(&mut self, start: u64, len: u64) {
        if let Some(pages) = pages_of(start, len).filter(|_| !self.pinned.is_empty()) {
            self.pinned.retain(|page, _| !pages.contains(page));
        }
    }

    fn pointer(address: u64) -> Option<*mut u8> {
        usize::try_from(address).ok().filter(|_| address < OWN).map(ptr::with_exposed_provenance_mut)
    }

    /// The address of `len` bytes, if they are pinned.
    fn at(&self, address: u64, len: usize) -> Option<*mut u8> {
        let mut pages = pages_of(address, u64::try_from(len).ok()?)?;
        let pinned = pages.all(|page| self.pinned.contains_key(&page));
        ProcessMemory::pointer(address).filter(|_| pinned)
    }

    fn byte(&self, address: u64) -> Option<&AtomicU8> {
        // SAFETY: (P1); any byte is a valid `AtomicU8`.
        self.at(address, 1).map(|at| unsafe { AtomicU8::from_ptr(at) })
    }

    fn word(&self, address: u64) -> Option<&AtomicU32> {
        let at = self.at(address, 4).filter(|_| address.is_multiple_of(4))?;
        // SAFETY: (P1), aligned; any four bytes are a valid `AtomicU32`.
        Some(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// Eight bytes that an RDMA atomic changes, pinned or not.
    fn long(&self, address: u64) -> Option<&AtomicU64> {
        let at = ProcessMemory::pointer(address).filter(|_| address.is_multiple_of(8))?;
        // There is no other way to touch them than as they are, so whether they are there is asked first.
        self.read(address, &mut [0; 8]).ok()?;
        // SAFETY: they were just read, aligned; any eight bytes are a valid `AtomicU64`. A program that takes its memory
        // away between the two has a data race with its own work request.
        Some(unsafe { AtomicU64::from_ptr(at.cast()) })
    }

    fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Unmapped> {
        let from = ProcessMemory::pointer(address).ok_or(Unmapped(address))?;
        if self.at(address, to.len()).is_some() {
            // SAFETY: (P1); `to` is our own memory, so the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
            return Ok(());
        }
        self.copy(to.as_mut_ptr(), from, to.len()).ok_or(Unmapped(address))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Unmapped> {
        let to = ProcessMemory::pointer(address).ok_or(Unmapped(address))?;
        if self.at(address, from.len()).is_some() {
            // SAFETY: (P1); `from` is our own memory, so the two do not overlap.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
            return Ok(());
        }
        self.copy(to, from.as_ptr().cast_mut(), from.len()).ok_or(Unmapped(address))
    }

    /// Copies by the system, which finds out that an address is not there. Both directions read "remotely", so that it is
    /// the program's own buffer that tools such as valgrind see being written to.
    fn copy(&self, to: *mut u8, from: *mut u8, len: usize) -> Option<()> {
        if len == 0 {
            return Some(());
        }
        let local = libc::iovec { iov_base: to.cast(), iov_len: len };
        let remote = libc::iovec { iov_base: from.cast(), iov_len: len };
        // ORDER: whoever reads an old value asks the system, which says the same again.
        if !self.blind.load(Ordering::Relaxed) {
            // SAFETY: both vectors live here; the system checks what they point to.
            let copied = unsafe {
                libc::syscall(
                    libc::SYS_process_vm_readv,
                    self.process,
                    &raw const local,
                    1usize,
                    &raw const remote,
                    1usize,
                    0usize,
                )
            };
            if usize::try_from(copied) == Ok(len) {
                return Some(());
            }
            let error = io::Error::last_os_error().raw_os_error();
            if copied >= 0 || !matches!(error, Some(libc::ENOSYS | libc::EPERM)) {
                return None;
            }
            // ORDER: as above.
            self.blind.store(true, Ordering::Relaxed);
        }
        // SAFETY: nobody can check the address here. One of the two ranges is ours; the other is under a memory key, which
        // the program registered.
        unsafe { ptr::copy_nonoverlapping(from, to, len) };
        Some(())
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

    /// The file behind them.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Stores `from` at `offset`.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        // Beyond the end there is nothing to store to.
        let _ = self.map.write(offset, from);
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
