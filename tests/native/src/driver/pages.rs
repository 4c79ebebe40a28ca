//! Pages that the program maps: doorbells and clocks. And the program's memory that the device may touch as it is.

use std::ffi::c_void;
use std::os::fd::RawFd;

use vhca::prm::layouts::{alloc_uar_out, op};
use zerocopy::IntoBytes;

use super::firmware::Command;
use super::{ContextId, Driver, Object, with};
use crate::attrs::Attrs;
use crate::uapi::attr;
use crate::{Errno, next};

pub(super) const PAGE: u64 = 4096;
/// Kinds of mapping, as the offset says them in its higher bits.
const CORE_CLOCK: u64 = 5;
const CLOCK_INFO: u64 = 7;
const FIRST_OBJECT: u64 = 9;

pub(super) const DUMP_FILL_MKEY: u32 = 0x900;

/// A doorbell page.
#[derive(Debug)]
pub(crate) struct Uar {
    page: u32,
}

/// What a mapping is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Doorbells(u32),
    CoreClock,
    ClockInfo,
}

/// Where the program has a page.
#[derive(Debug)]
pub(crate) struct Map {
    address: usize,
    target: Target,
    prot: i32,
}

/// Where in its page a buffer begins, in units of 64 bytes.
pub(super) fn offset(address: u64) -> u64 {
    address % PAGE / 64
}

/// The file offset by which a doorbell page is mapped.
fn map_offset(page: u32) -> u64 {
    ((FIRST_OBJECT << 8) + u64::from(page)) * PAGE
}

/// `mmap(2)` of a uverbs file.
pub(crate) fn map(
    id: ContextId,
    at: *mut c_void,
    len: usize,
    prot: i32,
    flags: i32,
    offset: u64,
) -> Result<*mut c_void, Errno> {
    with(|driver| {
        let target = driver.target(id, len, prot, flags, offset)?;
        let (file, page) = driver.behind(id, target)?;
        let place = next::map_shared(at, len, prot, flags, file, page * PAGE)?;
        if let Some(context) = driver.contexts.get_mut(&id) {
            let address = place.expose_provenance();
            context.maps.retain(|map| map.address != address);
            context.maps.push(Map { address, target, prot });
        }
        Ok(place)
    })
}

/// The program took a range of its memory away.
pub(crate) fn unmapped(start: usize, len: usize) {
    with(|driver| {
        let end = start.saturating_add(len);
        for context in driver.contexts.values_mut() {
            context.maps.retain(|map| !(start..end).contains(&map.address));
        }
        // A kernel would have the pages of a queue that is still there pinned; here the device finds none.
        driver.host.forget(start as u64, len as u64);
    });
}

/// The program moved a mapping.
pub(crate) fn moved(from: usize, to: usize) {
    with(|driver| {
        let maps = driver.contexts.values_mut().flat_map(|context| &mut context.maps);
        maps.filter(|map| map.address == from).for_each(|map| map.address = to);
    });
}

impl Driver {
    fn target(
        &mut self,
        id: ContextId,
        len: usize,
        prot: i32,
        flags: i32,
        offset: u64,
    ) -> Result<Target, Errno> {
        let context = self.context(id)?;
        if len as u64 != PAGE || flags & libc::MAP_SHARED == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let index = offset / PAGE;
        match index >> 8 {
            CORE_CLOCK | CLOCK_INFO if prot & libc::PROT_WRITE != 0 => Err(Errno(libc::EPERM)),
            CORE_CLOCK => Ok(Target::CoreClock),
            CLOCK_INFO if index & 0xff == 0 => Ok(Target::ClockInfo),
            FIRST_OBJECT.. => {
                let page = context.objects.values().find_map(|object| match object {
                    Object::Uar(uar) if map_offset(uar.page) == offset => Some(uar.page),
                    _ => None,
                });
                page.map(Target::Doorbells).ok_or(Errno(libc::EINVAL))
            }
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    /// The file behind a mapping, and which page of it.
    fn behind(&self, id: ContextId, target: Target) -> Result<(RawFd, u64), Errno> {
        let number = self.device_of(id)?;
        let doorbells = self.host.doorbell_file(number).ok_or(Errno(libc::EIO))?;
        let clock = self.devices.get(number).and_then(|device| device.clock.as_ref());
        Ok(match target {
            Target::Doorbells(page) => (doorbells, page.into()),
            Target::CoreClock => (clock.ok_or(Errno(libc::EIO))?.file(), 0),
            Target::ClockInfo => (clock.ok_or(Errno(libc::EIO))?.file(), 1),
        })
    }

    pub(super) fn alloc_uar(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const NC: u64 = 1;
        let kind = attrs.number(attr::UAR_OBJ_ALLOC_TYPE)?;
        self.context(id)?;
        if kind > NC {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let device = self.device_of(id)?;
        let page = self.number(device, &Command::new(op::ALLOC_UAR, 16), alloc_uar_out::UAR)?;
        let handle = self.context(id)?.insert(Object::Uar(Uar { page }));
        attrs.output(attr::UAR_OBJ_ALLOC_MMAP_OFFSET, map_offset(page).as_bytes())?;
        attrs.output(attr::UAR_OBJ_ALLOC_MMAP_LENGTH, PAGE.as_bytes())?;
        attrs.output(attr::UAR_OBJ_ALLOC_PAGE_ID, page.as_bytes())?;
        attrs.answer(attr::UAR_OBJ_ALLOC_HANDLE, handle.into())
    }

    pub(super) fn free_uar(&mut self, id: ContextId, device: usize, handle: u32) -> Result<(), Errno> {
        let object = self.contexts.get(&id).and_then(|context| context.objects.get(handle));
        let Some(Object::Uar(uar)) = object else { return Ok(()) };
        let command = Command::of(op::DEALLOC_UAR, uar.page);
        self.execute(device, &command, 16).map(drop)
    }

    /// Where the program has a doorbell page; 0: nowhere.
    pub(crate) fn page_address(&self, page: u32) -> u64 {
        let mut maps = self.contexts.values().flat_map(|context| &context.maps);
        maps.find(|map| map.target == Target::Doorbells(page)).map_or(0, |map| map.address as u64)
    }

    /// Swaps the pages that the program has of the device: doorbells for one page of memory that all of them share, the core
    /// clock for zeroes. The page that tells how cycles are nanoseconds is the kernel's own and stays.
    pub(super) fn swap_pages(&mut self, id: ContextId) {
        let Some(context) = self.contexts.get_mut(&id) else { return };
        let Ok(dummy) = next::memory_file(PAGE) else { return };
        for map in context.maps.drain(..) {
            let file = match map.target {
                Target::Doorbells(_) => Some(&dummy),
                Target::CoreClock => None,
                Target::ClockInfo => continue,
            };
            // One that cannot be put there leaves the device's own page, which nothing looks at any more.
            let _ = next::map_over(map.address, PAGE as usize, map.prot, file);
        }
    }

    /// Lets a device touch ranges of the program's memory as they are.
    #[allow(unsafe_code, reason = "the promise is the program's: queues stay while the kernel has them")]
    pub(super) fn hold(&mut self, device: usize, ranges: &[(u64, u64)]) {
        for (start, len) in ranges {
            // SAFETY: it was just found to be there (`user::pin`). Providers keep the memory of a queue until it is
            // destroyed, which releases it here, or the context closed; memory that is unmapped before is forgotten.
            unsafe { self.host.pin(device, *start, *len) };
        }
    }

    /// Takes that back.
    pub(super) fn release(&mut self, device: usize, ranges: &[(u64, u64)]) {
        ranges.iter().for_each(|(start, len)| self.host.unpin(device, *start, *len));
    }
}
