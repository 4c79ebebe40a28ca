//! What runs when the library is loaded: the constructor, and the interposers in front of libibverbs's registration; and the one
//! in front of libmlx5, for programs that link it.
//!
//! libibverbs asks providers in the order in which they registered, and reads `RDMAV_DRIVERS` only for devices that nobody
//! has claimed by then. So a provider whose library the program links itself (libmlx5, in perftest) is always there first,
//! however holdfast is loaded. Hence the interposers: preloaded, our `verbs_register_driver_N` is what such a provider's
//! constructor calls; it registers ours first and then hands the call on. They are exported without a symbol version,
//! which the loader accepts for `verbs_register_driver_34@IBVERBS_PRIVATE_34`.
//!
//! Rules:
//! - R1: ours are registered once in a process, before any call that is handed on, from whichever thread comes first.
//! - R2: each call is handed on exactly once, to the object that would have got it without us.
//! - R3: in a process without libibverbs (every child of a preloaded shell) the constructor asks for it and is done.
//! - R4: once registered, libibverbs stays loaded: it has our addresses and we have its.
//! - R5: the constructors of other libraries may call us before our own has run, and everything below runs under the
//!   loader's lock then: no thread is waited for but in `REGISTERED`, which takes no such lock inside.
#![allow(unsafe_code, reason = "an ELF constructor and exported C functions")]

use core::ffi::{CStr, c_int, c_void};
use core::ptr::NonNull;
use std::sync::{Once, OnceLock};

use crate::abi::detect;
use crate::abi::host::{Handle, Host, RegisterDriver, object_of};
use crate::abi::layouts::supported;
use crate::abi::public::{ibv_context, verbs_device_ops};
use crate::verbs::{api, device};
use crate::{config, log};

static REGISTERED: Once = Once::new();
static LIBRARY: OnceLock<Handle> = OnceLock::new();

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    if let Some(handle) = Handle::loaded()
        && !off()
    {
        register(handle);
    }
}

/// Registers our devices with the libibverbs behind `handle`: R1, R4.
fn register(handle: Handle) {
    if REGISTERED.is_completed() {
        return;
    }
    let families = config::init(secure()).families;
    if families.is_empty() {
        return;
    }
    let Some(register) = detect::number(&handle).and_then(|number| handle.register_driver(number)) else {
        // Says which it is and what is supported, once; there is nothing to register with.
        let _ = Host::get();
        return;
    };
    // Kept, R4; a second handle, of a second thread, is one reference more to a library that stays anyway.
    let _ = LIBRARY.set(handle);
    REGISTERED.call_once(|| {
        for ops in device::of(families) {
            log::debug!("registering for {}", device::name(ops));
            // SAFETY: libibverbs's own function, and tables that live as long as the process.
            unsafe { register(ops) };
        }
    });
}

/// Whether the program gained privileges, and its environment is not to be trusted.
fn secure() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether the user wants holdfast to do nothing: `HOLDFAST=off`.
fn off() -> bool {
    !secure()
        && std::env::var_os("HOLDFAST").is_some_and(|value| value.eq_ignore_ascii_case("off") || value == "0")
}

/// A provider registers itself with private ABI `symbol` names.
///
/// # Safety
/// As for libibverbs's function: `ops` lives as long as the process.
unsafe fn intercept(symbol: &CStr, ops: *const verbs_device_ops) {
    if !off()
        && let Some(handle) = Handle::loaded()
    {
        register(handle);
    }
    match real(symbol) {
        // SAFETY: what the caller of the interposer meant to call, with its own argument.
        Some(function) => unsafe { function(ops) },
        None => log::notice(format_args!(
            "a provider called {}, which no libibverbs in this process has: it is not registered. \
             Run without LD_PRELOAD of holdfast, and report this",
            symbol.to_string_lossy()
        )),
    }
}

/// Where `symbol` of libibverbs leads without this object: R2.
fn real(symbol: &CStr) -> Option<RegisterDriver> {
    let address = behind(symbol).or_else(|| Handle::loaded()?.symbol(symbol).filter(|at| !is_ours(at)))?;
    // SAFETY: every object exports this name with libibverbs's prototype.
    Some(unsafe { core::mem::transmute::<NonNull<c_void>, RegisterDriver>(address) })
}

/// `symbol` in the next object: of another interposer, or the library itself, unless that was loaded RTLD_LOCAL.
fn behind(symbol: &CStr) -> Option<NonNull<c_void>> {
    Handle::next(symbol).filter(|address| !is_ours(address))
}

fn is_ours(address: &NonNull<c_void>) -> bool {
    let base = |address| object_of(address).map(|(base, _)| base);
    base(address.as_ptr()) == base((&raw const CONSTRUCTOR).cast())
}

macro_rules! interposers {
    ($($number:literal $symbol:ident: $($layout:ident)+;)*) => {$(
        /// In front of libibverbs's function of the same name: registers holdfast's devices, then hands the call on.
        ///
        /// # Safety
        /// `ops` lives as long as the process.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $symbol(ops: *const verbs_device_ops) {
            // SAFETY: the caller's promise.
            unsafe { intercept(crate::abi::layouts::register_symbol($number), ops) }
        }
    )*};
}
supported!(interposers);

/// The head of libmlx5's structure of this name (`<infiniband/mlx5dv.h>`), which has grown at its end.
#[allow(non_camel_case_types, reason = "C's name")]
#[repr(C)]
#[derive(Debug)]
pub struct mlx5dv_context {
    version: u8,
    flags: u64,
    /// In: which fields behind these are wanted; out: which there are.
    comp_mask: u64,
}

/// In front of libmlx5's function of the same name: what a device can do beyond verbs, which of ours is nothing. perftest asks
/// every device of this vendor before it makes a queue pair, and libmlx5's refusal of devices that it does not serve ends it.
///
/// # Safety
/// `context` is an open device, and `out` is libmlx5's structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlx5dv_query_device(context: *mut ibv_context, out: *mut mlx5dv_context) -> c_int {
    // SAFETY: the caller's word.
    if !out.is_null() && unsafe { api::is_mlx5(context) } {
        // SAFETY: not NULL, and the caller's word; every version of the structure begins so.
        unsafe { out.write(mlx5dv_context { version: 0, flags: 0, comp_mask: 0 }) };
        return 0;
    }
    type Query = unsafe extern "C" fn(*mut ibv_context, *mut mlx5dv_context) -> c_int;
    match behind(c"mlx5dv_query_device") {
        Some(address) => {
            // SAFETY: every object exports this name with libmlx5's prototype.
            let query = unsafe { core::mem::transmute::<NonNull<c_void>, Query>(address) };
            // SAFETY: what the caller meant to call, with its own arguments.
            unsafe { query(context, out) }
        }
        None => libc::EOPNOTSUPP,
    }
}
