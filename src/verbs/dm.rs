//! Device memory: allocating, copying, registering.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use libc::{c_int, c_uint, c_void, size_t};

use super::cast::{self, Fresh, non_null};
use super::memory::{self, cx_of, handle_of};
use super::{context, guard};
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{Created, Family};
use crate::hw::mmio::DeviceMemory;
use crate::uapi::mr::RegDm;
use crate::uapi::{self, Handle, Udata};

/// What the region of device memory may be asked to allow.
const ACCESS: u32 = IBV_ACCESS_LOCAL_WRITE
    | IBV_ACCESS_REMOTE_WRITE
    | IBV_ACCESS_REMOTE_READ
    | IBV_ACCESS_REMOTE_ATOMIC
    | IBV_ACCESS_ZERO_BASED
    | IBV_ACCESS_OPTIONAL_RANGE;

/// Gives `dm` to the application.
fn hand_out(
    context: *mut ibv_context,
    fresh: Fresh<ibv_dm, DeviceMemory>,
    dm: Created<DeviceMemory>,
) -> *mut ibv_dm {
    // SAFETY: ours until `finish`, nobody else has the address.
    let head = unsafe { &mut *fresh.head() };
    head.context = context;
    head.memcpy_to_dm = Some(memcpy_to_dm);
    head.memcpy_from_dm = Some(memcpy_from_dm);
    head.comp_mask = IBV_DM_MASK_HANDLE;
    head.handle = dm.handle.0;
    fresh.finish(dm.object)
}

/// `alloc_dm`.
///
/// # Safety
/// ibv_alloc_dm(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn alloc_dm<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_alloc_dm_attr,
) -> *mut ibv_dm {
    guard::pointer_of("ibv_alloc_dm", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        if attr.comp_mask != 0 {
            return Err(Error::new("check the comp_mask", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fresh = Fresh::new()?;
        let created = cx.family.alloc_dm(&cx.device, attr.length, attr.log_align_req)?;
        Ok(hand_out(context, fresh, created))
    })
}

/// `free_dm`.
///
/// # Safety
/// ibv_free_dm(3), for device memory of family `F`.
pub(crate) unsafe extern "C" fn free_dm<F: Family>(dm: *mut ibv_dm) -> c_int {
    guard::errno_of("ibv_free_dm", || {
        let cx = cx_of!(F, dm);
        let freed = uapi::dm::free(cx.device.fd, handle_of!(dm));
        memory::destroyed(freed, &cx.device.life, "free the device memory")?;
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<ibv_dm, DeviceMemory>(dm) };
        Ok(())
    })
}

/// `import_dm`.
///
/// # Safety
/// ibv_import_dm(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn import_dm<F: Family>(
    context: *mut ibv_context,
    dm_handle: u32,
) -> *mut ibv_dm {
    guard::pointer_of("ibv_import_dm", || {
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fresh = Fresh::new()?;
        let handle = Handle(dm_handle);
        let object = cx.family.import_dm(&cx.device, handle)?;
        Ok(hand_out(context, fresh, Created { handle, object }))
    })
}

/// `unimport_dm`: the kernel's side stays.
///
/// # Safety
/// ibv_unimport_dm(3), for imported device memory.
pub(crate) unsafe extern "C" fn unimport_dm(dm: *mut ibv_dm) {
    guard::nothing_of("ibv_unimport_dm", || {
        // SAFETY: the caller's word: made by `import_dm`, and used no more.
        unsafe { cast::free::<ibv_dm, DeviceMemory>(dm) };
    });
}

/// Copies `length` bytes, word by word, with `word` doing one: its offset in the device memory and in the other.
fn copy(
    dm: &DeviceMemory,
    dm_offset: u64,
    length: size_t,
    mut word: impl FnMut(usize, usize) -> Result<(), Errno>,
) -> c_int {
    let copied = (|| {
        let offset = usize::try_from(dm_offset).map_err(|_| Errno::EFAULT)?;
        dm.check(offset, length)?;
        (0..length).step_by(4).try_for_each(|at| word(offset + at, at))
    })();
    copied.map_or_else(Errno::get, |()| 0)
}

/// `ibv_memcpy_to_dm`: an errno, which is not set.
///
/// # Safety
/// ibv_memcpy_to_dm(3).
unsafe extern "C" fn memcpy_to_dm(
    dm: *mut ibv_dm,
    dm_offset: u64,
    host_addr: *const c_void,
    length: size_t,
) -> c_int {
    // SAFETY: the caller's word: live device memory of ours.
    let ours: &DeviceMemory = unsafe { cast::body(dm) };
    copy(ours, dm_offset, length, |to, from| {
        // SAFETY: the caller's word: `length` readable bytes, of which these are 4.
        let at = unsafe { host_addr.byte_add(from) }.cast::<u32>();
        // SAFETY: as above; of any alignment.
        ours.store(to, unsafe { at.read_unaligned() })
    })
}

/// `ibv_memcpy_from_dm`: an errno, which is not set.
///
/// # Safety
/// ibv_memcpy_from_dm(3).
unsafe extern "C" fn memcpy_from_dm(
    host_addr: *mut c_void,
    dm: *mut ibv_dm,
    dm_offset: u64,
    length: size_t,
) -> c_int {
    // SAFETY: the caller's word: live device memory of ours.
    let ours: &DeviceMemory = unsafe { cast::body(dm) };
    copy(ours, dm_offset, length, |from, to| {
        // SAFETY: the caller's word: `length` writable bytes, of which these are 4.
        let at = unsafe { host_addr.byte_add(to) }.cast::<u32>();
        let word = ours.load(from)?;
        // SAFETY: as above; of any alignment.
        unsafe { at.write_unaligned(word) };
        Ok(())
    })
}

/// `reg_dm_mr`.
///
/// # Safety
/// ibv_reg_dm_mr(3), for a PD and device memory of family `F`.
pub(crate) unsafe extern "C" fn reg_dm_mr<F: Family>(
    pd: *mut ibv_pd,
    dm: *mut ibv_dm,
    dm_offset: u64,
    length: size_t,
    access: c_uint,
) -> *mut ibv_mr {
    guard::pointer_of("ibv_reg_dm_mr", || {
        // Its address in the process is nobody's business: such a region begins at 0.
        if access & !ACCESS != 0 || access & IBV_ACCESS_ZERO_BASED == 0 {
            return Err(Error::new("check the access flags", Errno::EINVAL));
        }
        let dm = non_null(dm, "check the device memory")?;
        let request = RegDm {
            pd: handle_of!(pd),
            dm: handle_of!(dm),
            offset: dm_offset,
            length: length as u64,
            access_flags: access,
        };
        let cx = cx_of!(F, pd);
        cx.usable()?;
        let fd = cx.device.fd;
        let register = || uapi::mr::reg_dm(fd, &request, Udata::none()).step("register the device memory");
        // SAFETY: the caller's word: a live PD.
        unsafe { memory::new_mr_in(pd, length, IBV_MR_TYPE_MR, access.cast_signed(), register) }
    })
}
