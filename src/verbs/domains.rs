//! Thread domains, XRC domains, and the device's clock.
#![allow(unsafe_code, reason = "reads C's arguments and writes C's objects")]

use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

use libc::c_int;

use super::cast::{self, Fresh, non_null};
use super::memory::{cx_of, destroyed};
use super::{context, guard};
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::Family;
use crate::ha::life::Life;
use crate::uapi::{self, CmdFd, Handle, Udata};

/// Our part of a thread domain.
#[derive(Debug)]
pub(crate) struct Td<F: Family> {
    pub(crate) part: F::Td,
    /// Parent domains that name it: it stays while there are any.
    pub(crate) users: AtomicU32,
}

/// The thread domain at `td`; none for NULL.
///
/// # Safety
/// `td` is NULL or a live thread domain of family `F` during `'a`.
pub(crate) unsafe fn td_of<'a, F: Family>(td: *mut ibv_td) -> Option<&'a Td<F>> {
    // SAFETY: the caller's word.
    (!td.is_null()).then(|| unsafe { cast::body::<ibv_td, Td<F>>(td) })
}

/// `alloc_td`.
///
/// # Safety
/// ibv_alloc_td(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn alloc_td<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_td_init_attr,
) -> *mut ibv_td {
    guard::pointer_of("ibv_alloc_td", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        if attr.comp_mask != 0 {
            return Err(Error::new("check the thread domain's comp_mask", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fresh = Fresh::<ibv_td, Td<F>>::new()?;
        let part = cx.family.alloc_td(&cx.device)?;
        // SAFETY: ours until `finish`.
        unsafe { (*fresh.head()).context = context };
        Ok(fresh.finish(Td { part, users: AtomicU32::new(0) }))
    })
}

/// `dealloc_td`.
///
/// # Safety
/// ibv_dealloc_td(3), for a thread domain of family `F`.
pub(crate) unsafe extern "C" fn dealloc_td<F: Family>(td: *mut ibv_td) -> c_int {
    guard::errno_of("ibv_dealloc_td", || {
        let td = non_null(td, "check the arguments")?;
        // SAFETY: the caller's word.
        let ours = unsafe { cast::body::<ibv_td, Td<F>>(td) };
        // ORDER: Relaxed: a count; the application orders creating and destroying.
        if ours.users.load(Ordering::Relaxed) != 0 {
            return Err(Error::new("deallocate a thread domain in use", Errno::EBUSY));
        }
        // SAFETY: nobody uses it, by the count and the application's word.
        unsafe { cast::free::<ibv_td, Td<F>>(td) };
        Ok(())
    })
}

/// Our part of an XRC domain.
#[derive(Debug)]
struct Xrcd {
    fd: CmdFd,
    handle: Handle,
    life: Arc<Life>,
}

/// The kernel's handle of the XRC domain at `xrcd`.
///
/// # Safety
/// `xrcd` is a live XRC domain of a context of ours.
pub(crate) unsafe fn xrcd_handle(xrcd: *mut ibv_xrcd) -> Handle {
    // SAFETY: the caller's word.
    unsafe { cast::body::<ibv_xrcd, Xrcd>(xrcd) }.handle
}

/// `open_xrcd`.
///
/// # Safety
/// ibv_open_xrcd(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn open_xrcd<F: Family>(
    context: *mut ibv_context,
    attr: *mut ibv_xrcd_init_attr,
) -> *mut ibv_xrcd {
    guard::pointer_of("ibv_open_xrcd", || {
        // SAFETY: the caller's word; plain data.
        let attr = unsafe { *non_null(attr, "check the arguments")? };
        let both = IBV_XRCD_INIT_ATTR_FD | IBV_XRCD_INIT_ATTR_OFLAGS;
        // As libibverbs's own command: nothing else is known, and both have to be there.
        if attr.comp_mask & !both != 0 {
            return Err(Error::new("check the XRC domain's comp_mask", Errno::ENOSYS));
        }
        if attr.comp_mask != both {
            return Err(Error::new("find the XRC domain's file and flags", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fd = cx.device.fd;
        let fresh = Fresh::<ibv_xrcd, Xrcd>::new()?;
        let file = (attr.fd >= 0).then_some(attr.fd);
        let handle = uapi::xrcd::open(fd, file, attr.oflags.cast_unsigned(), Udata::none())
            .step("open the XRC domain")?;
        // SAFETY: ours until `finish`.
        unsafe { (*fresh.head()).context = context };
        Ok(fresh.finish(Xrcd { fd, handle, life: cx.device.life.clone() }))
    })
}

/// `close_xrcd`.
///
/// # Safety
/// ibv_close_xrcd(3), for an XRC domain of a context of ours.
pub(crate) unsafe extern "C" fn close_xrcd(xrcd: *mut ibv_xrcd) -> c_int {
    guard::errno_of("ibv_close_xrcd", || {
        let xrcd = non_null(xrcd, "check the arguments")?;
        // SAFETY: the caller's word.
        let ours = unsafe { cast::body::<ibv_xrcd, Xrcd>(xrcd) };
        destroyed(uapi::xrcd::close(ours.fd, ours.handle), &ours.life, "close the XRC domain")?;
        // SAFETY: the kernel's side is gone; the application is done with it.
        unsafe { cast::free::<ibv_xrcd, Xrcd>(xrcd) };
        Ok(())
    })
}

/// `query_rt_values`.
///
/// # Safety
/// ibv_query_rt_values_ex(3), for a context of family `F`.
pub(crate) unsafe extern "C" fn query_rt_values<F: Family>(
    context: *mut ibv_context,
    values: *mut ibv_values_ex,
) -> c_int {
    guard::errno_of("ibv_query_rt_values_ex", || {
        let values = non_null(values, "check the arguments")?;
        // SAFETY: the caller's word: its own struct.
        let values = unsafe { &mut *values };
        let asked = core::mem::take(&mut values.comp_mask);
        if asked & !IBV_VALUES_MASK_RAW_CLOCK != 0 {
            return Err(Error::new("check the values asked for", Errno::EINVAL));
        }
        if asked & IBV_VALUES_MASK_RAW_CLOCK != 0 {
            // SAFETY: the caller's word.
            let cx = unsafe { context::of::<F>(context) };
            // A page that was taken away would be read as time.
            cx.usable()?;
            let cycles = cx.family.raw_clock().step("read the clock")?;
            values.raw_clock.tv_sec = 0;
            values.raw_clock.tv_nsec = cycles.cast_signed();
            values.comp_mask = IBV_VALUES_MASK_RAW_CLOCK;
        }
        Ok(())
    })
}

/// `set_ece`.
///
/// # Safety
/// ibv_set_ece(3), for a QP of family `F`.
pub(crate) unsafe extern "C" fn set_ece<F: Family>(qp: *mut ibv_qp, ece: *mut ibv_ece) -> c_int {
    guard::errno_of("ibv_set_ece", || {
        // SAFETY: the caller's word; plain data.
        let ece = unsafe { *non_null(ece, "check the arguments")? };
        if ece.comp_mask != 0 {
            return Err(Error::new("check the ECE's comp_mask", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let ours = unsafe { super::qp::ours::<F>(qp) };
        cx_of!(F, qp).family.set_ece(&ours.queues, ece.vendor_id, ece.options).step("set the ECE")
    })
}

/// `query_ece`.
///
/// # Safety
/// ibv_query_ece(3), for a QP of family `F`.
pub(crate) unsafe extern "C" fn query_ece<F: Family>(qp: *mut ibv_qp, ece: *mut ibv_ece) -> c_int {
    guard::errno_of("ibv_query_ece", || {
        let ece = non_null(ece, "check the arguments")?;
        // SAFETY: the caller's word.
        let ours = unsafe { super::qp::ours::<F>(qp) };
        let (vendor_id, options) = cx_of!(F, qp).family.query_ece(&ours.queues).step("query the ECE")?;
        // SAFETY: the caller's word: room for one.
        unsafe { ece.write(ibv_ece { vendor_id, options, comp_mask: 0 }) };
        Ok(())
    })
}
