//! What runs when the library is loaded: the constructor, and the interposers in front of libibverbs's registration.
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

use core::ffi::{CStr, c_void};
use core::ptr::NonNull;
use std::sync::{Once, OnceLock};

use crate::abi::detect;
use crate::abi::host::{Handle, Host, RegisterDriver, object_of};
use crate::abi::layouts::supported;
use crate::abi::public::verbs_device_ops;
use crate::verbs::device;
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

/// Where `symbol` leads without this object: R2.
fn real(symbol: &CStr) -> Option<RegisterDriver> {
    let ours = |address: &NonNull<c_void>| {
        let base = |address| object_of(address).map(|(base, _)| base);
        base(address.as_ptr()) == base((&raw const CONSTRUCTOR).cast())
    };
    // The next object first: another interposer, or libibverbs itself. It is not found when libibverbs was loaded
    // RTLD_LOCAL.
    let next = Handle::next(symbol).filter(|address| !ours(address));
    let address = next.or_else(|| Handle::loaded()?.symbol(symbol).filter(|address| !ours(address)))?;
    // SAFETY: every object exports this name with libibverbs's prototype.
    Some(unsafe { core::mem::transmute::<NonNull<c_void>, RegisterDriver>(address) })
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
