//! The C API: what a program that knows holdfast may ask of it.
//!
//! `include/holdfast.h` is made from this file and checked in; `tests/header.rs` holds the two together, and
//! `HOLDFAST_WRITE_HEADER=1 cargo test --test header` writes it anew. A function, once released, keeps its name, its prototype and its meaning.
//!
//! Every function may be called from any thread, after a fatal event too, and takes NULL where it takes a pointer.
#![allow(unsafe_code, reason = "exported C functions")]

use core::ffi::{CStr, c_char};
use core::ptr;
use std::ffi::CString;
use std::panic::catch_unwind;
use std::sync::OnceLock;

use crate::abi::host::{Handle, Host};
use crate::abi::public::ibv_context;
use crate::verbs;

/// A version of three numbers, such as "0.1.0", as a C string.
const VERSION: &[u8] = concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes();

/// Holdfast's version, such as "0.1.0".
///
/// @return  a string that lives as long as the process
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

/// Which private ABI of libibverbs holdfast found in this process, for people to read: its number and the rdma-core
/// releases that have it, such as "34 (rdma-core 44)".
///
/// @return  a string that lives as long as the process; NULL when no libibverbs is loaded, or one that holdfast does not
///          serve (then `holdfast doctor` says why)
#[unsafe(no_mangle)]
pub extern "C" fn holdfast_abi_layout() -> *const c_char {
    static NAME: OnceLock<CString> = OnceLock::new();
    catch_unwind(|| {
        // Before libibverbs is loaded nothing may be decided: the decision is kept.
        let _loaded = Handle::loaded()?;
        let layout = Host::get().ok()?.layout();
        Some(NAME.get_or_init(|| CString::new(layout.to_string()).unwrap_or_default()).as_ptr())
    })
    .ok()
    .flatten()
    .unwrap_or(ptr::null())
}

/// The family of an open device, such as "rxe", if holdfast serves it.
///
/// @param context  from ibv_open_device or ibv_import_device and not yet closed, or NULL
/// @return         a string that lives as long as the process; NULL when another provider serves the device, or for NULL
///
/// # Safety
/// `context` is NULL or an open device of libibverbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_context_family(context: *const ibv_context) -> *const c_char {
    catch_unwind(|| {
        // SAFETY: the caller's promise.
        unsafe { verbs::context_family(context) }
    })
    .ok()
    .flatten()
    .map_or(ptr::null(), CStr::as_ptr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::public::{ibv_device, verbs_device, verbs_device_ops};
    use crate::config::Families;

    fn text(string: *const c_char) -> Option<String> {
        // SAFETY: the functions above give NULL or a C string constant.
        (!string.is_null()).then(|| unsafe { CStr::from_ptr(string) }.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_version_is_the_packages() {
        assert_eq!(text(holdfast_version()).as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn a_context_is_ours_or_not() {
        // SAFETY: NULL is allowed.
        assert_eq!(text(unsafe { holdfast_context_family(ptr::null()) }), None);

        let family = |ops: *const verbs_device_ops| {
            // SAFETY: plain C structures, for which zeros are a value.
            let mut device: Box<verbs_device> = Box::new(unsafe { core::mem::zeroed() });
            device.ops = ops;
            // SAFETY: as above.
            let mut context: Box<ibv_context> = Box::new(unsafe { core::mem::zeroed() });
            context.device = (&raw mut *device).cast::<ibv_device>();
            // SAFETY: a context as libibverbs makes it, as far as it is read.
            text(unsafe { holdfast_context_family(&raw const *context) })
        };
        assert_eq!(family(ptr::null()), None);
        for (ours, name) in verbs::device::of(Families::all()).zip(["rxe", "mlx5"]) {
            assert_eq!(family(ours).as_deref(), Some(name));
        }
        // SAFETY: as above.
        let other: Box<verbs_device_ops> = Box::new(unsafe { core::mem::zeroed() });
        assert_eq!(family(&raw const *other), None, "another provider's");
        // SAFETY: as above.
        let mut orphan: Box<ibv_context> = Box::new(unsafe { core::mem::zeroed() });
        orphan.device = ptr::null_mut();
        // SAFETY: as above.
        assert_eq!(text(unsafe { holdfast_context_family(&raw const *orphan) }), None);
    }
}
