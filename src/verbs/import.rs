//! Objects that somebody else made in the same context: another process that holds its file, or another library in this one.
//! They are the other's to destroy.
#![allow(unsafe_code, reason = "writes C's objects")]

use super::cast::{self, Fresh};
use super::memory::{self, Pd, cx_of};
use super::{context, guard};
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::Family;
use crate::uapi::mr::Mr;
use crate::uapi::{self, Handle};

/// `import_pd`.
///
/// # Safety
/// ibv_import_pd(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn import_pd<F: Family>(
    context: *mut ibv_context,
    pd_handle: u32,
) -> *mut ibv_pd {
    guard::pointer_of("ibv_import_pd", || {
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fresh = Fresh::<ibv_pd, Pd<F>>::new()?;
        let part = cx.family.import_pd(&cx.device, Handle(pd_handle))?;
        // SAFETY: ours until `finish`, nobody else has the address.
        let head = unsafe { &mut *fresh.head() };
        head.context = context;
        head.handle = pd_handle;
        Ok(fresh.finish(Pd::new(part)))
    })
}

/// `unimport_pd`: the kernel's side stays.
///
/// # Safety
/// ibv_unimport_pd(3), for an imported PD of family `F`.
pub(crate) unsafe extern "C" fn unimport_pd<F: Family>(pd: *mut ibv_pd) {
    guard::nothing_of("ibv_unimport_pd", || {
        // SAFETY: the caller's word: made by `import_pd`, and used no more.
        unsafe { cast::free::<ibv_pd, Pd<F>>(pd) };
    });
}

/// `import_mr`. Where it is in the other's memory does not matter here: its address is NULL.
///
/// # Safety
/// ibv_import_mr(3), for a PD of family `F`.
pub(crate) unsafe extern "C" fn import_mr<F: Family>(pd: *mut ibv_pd, mr_handle: u32) -> *mut ibv_mr {
    guard::pointer_of("ibv_import_mr", || {
        let cx = cx_of!(F, pd);
        cx.usable()?;
        let fd = cx.device.fd;
        let handle = Handle(mr_handle);
        let info = uapi::mr::query(fd, handle).step("ask for the memory region")?;
        let length = usize::try_from(info.length)
            .map_err(|_| Error::new("take the memory region's length", Errno::EOVERFLOW))?;
        let register = || Ok(Mr { handle, lkey: info.lkey, rkey: info.rkey });
        // SAFETY: the caller's word: a live PD.
        unsafe { memory::new_mr_in(pd, length, IBV_MR_TYPE_IMPORTED_MR, 0, register) }
    })
}

/// `unimport_mr`: the kernel's side stays.
///
/// # Safety
/// ibv_unimport_mr(3), for an imported region.
pub(crate) unsafe extern "C" fn unimport_mr(mr: *mut ibv_mr) {
    guard::nothing_of("ibv_unimport_mr", || {
        // SAFETY: the caller's word: made by `import_mr`, and used no more.
        unsafe { cast::free::<verbs_mr, ()>(mr.cast()) };
    });
}
