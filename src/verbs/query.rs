//! query_device(_ex) and query_port.
#![allow(unsafe_code, reason = "writes C's structs, which differ in length from release to release")]

use libc::{c_int, size_t};

use super::cast::non_null;
use super::{attr, context, guard};
use crate::abi::public::*;
use crate::error::{Errno, Error, Step as _};
use crate::family::{DriverCaps, Family};
use crate::uapi::{self, wire};

/// Writes as much of `value` as the caller's struct, `room` bytes long, can take; what it has beyond is zeroed.
///
/// # Safety
/// `to` is writable for `room` bytes.
unsafe fn write_prefix<T: Copy>(to: *mut u8, room: usize, value: &T) {
    let len = room.min(size_of::<T>());
    let from: *const T = value;
    // SAFETY: `len` is within both; the caller's struct cannot overlap ours.
    unsafe { core::ptr::copy_nonoverlapping(from.cast::<u8>(), to, len) };
    // SAFETY: within `room`.
    let rest = unsafe { to.add(len) };
    // SAFETY: as above.
    unsafe { rest.write_bytes(0, room - len) };
}

/// `query_device_ex`, which also serves ibv_query_device: `attr_size` then ends with `orig_attr`.
///
/// # Safety
/// ibv_query_device_ex(3), by libibverbs, for a context of family `F`.
pub(crate) unsafe extern "C" fn query_device_ex<F: Family>(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    attr_size: size_t,
) -> c_int {
    guard::errno_of("ibv_query_device", || {
        let attr = non_null(attr, "check the arguments")?;
        // SAFETY: the caller's word: NULL or valid; a single field is read.
        let asked = if input.is_null() { 0 } else { unsafe { (*input).comp_mask } };
        if asked != 0 || attr_size < size_of::<ibv_device_attr>() {
            return Err(Error::new("check the arguments", Errno::EINVAL));
        }
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let fd = cx.device.fd;
        let extended = if attr_size > size_of::<ibv_device_attr>() {
            match cx.family.query_device_ex(&cx.device) {
                Ok(resp) => Some(resp),
                // A driver without the extended form has nothing beyond the plain one.
                Err(errno) if uapi::is_unsupported(errno) => None,
                Err(errno) => return Err(Error::new("query the device", errno)),
            }
        } else {
            None
        };
        let (resp, caps) = match extended {
            Some(both) => both,
            None => {
                let base = uapi::device::query_device(fd).step("query the device")?;
                (wire::ExQueryDeviceResp { base, ..Default::default() }, DriverCaps::default())
            }
        };
        let value = attr::device_attr_ex(&resp, &caps, &F::fw_ver(resp.base.fw_ver));
        // SAFETY: the caller's word: `attr_size` bytes.
        unsafe { write_prefix(attr.cast(), attr_size, &value) };
        Ok(())
    })
}

/// `query_port`.
///
/// # Safety
/// ibv_query_port(3), by libibverbs, for a context of family `F`; the struct is as long as this libibverbs knows it.
pub(crate) unsafe extern "C" fn query_port<F: Family>(
    context: *mut ibv_context,
    port_num: u8,
    attr: *mut ibv_port_attr,
) -> c_int {
    guard::errno_of("ibv_query_port", || {
        let attr = non_null(attr, "check the arguments")?;
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let resp = uapi::device::query_port(cx.device.fd, port_num).step("query the port")?;
        let mut value = ibv_port_attr::zeroed();
        attr::fill_port_attr(&mut value, &resp);
        // SAFETY: the caller's word: as long as this libibverbs says.
        unsafe { write_prefix(attr.cast(), cx.host.port_attr_size(), &value) };
        Ok(())
    })
}

/// `query_port_speed`.
///
/// # Safety
/// ibv_query_port_speed(3), by libibverbs, for a context of family `F`.
pub(crate) unsafe extern "C" fn query_port_speed<F: Family>(
    context: *mut ibv_context,
    port_num: u32,
    speed: *mut u64,
) -> c_int {
    guard::errno_of("ibv_query_port_speed", || {
        let speed = non_null(speed, "check the arguments")?;
        // SAFETY: the caller's word.
        let cx = unsafe { context::of::<F>(context) };
        cx.usable()?;
        let value = uapi::device::query_port_speed(cx.device.fd, port_num)
            .map_err(|errno| if uapi::is_unsupported(errno) { Errno::EOPNOTSUPP } else { errno })
            .step("query the port's speed")?;
        // SAFETY: the caller's word: room for one.
        unsafe { speed.write(value) };
        Ok(())
    })
}
