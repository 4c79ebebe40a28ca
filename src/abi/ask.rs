//! Asking a libibverbs which provider each device gets: for the `holdfast` command, never in a program of the user's.
#![allow(unsafe_code, reason = "calls into libibverbs, through addresses dlsym gave")]

use core::ffi::{CStr, c_char, c_int, c_void};
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use std::path::Path;

use super::host::Handle;
use super::public::{ibv_device, verbs_device};
use crate::error::Errno;

type GetDeviceList = unsafe extern "C" fn(*mut c_int) -> *mut *mut ibv_device;
type FreeDeviceList = unsafe extern "C" fn(*mut *mut ibv_device);

/// More devices than any machine has: the list ends with NULL, which a broken library might forget.
const MOST: usize = 4096;

/// The name of each device that the libibverbs at `path` lists, and of the provider it gave it to.
///
/// This loads the library and, in it, the providers that the environment and the driver files name: their code runs. A
/// process that does nothing else should call this.
///
/// # Errors
/// What the loader or the library said.
pub fn providers(path: &Path) -> Result<Vec<(String, String)>, String> {
    // The providers it loads stay, so it has to stay too.
    let library = ManuallyDrop::new(Handle::load(path)?);
    let symbol =
        |name: &CStr| library.symbol(name).ok_or_else(|| format!("it has no {}", name.to_string_lossy()));
    let get = symbol(c"ibv_get_device_list")?;
    let free = symbol(c"ibv_free_device_list")?;
    // SAFETY: its public prototype, the same in every release.
    let get = unsafe { core::mem::transmute::<NonNull<c_void>, GetDeviceList>(get) };
    // SAFETY: as above.
    let free = unsafe { core::mem::transmute::<NonNull<c_void>, FreeDeviceList>(free) };

    let mut count = 0;
    // SAFETY: a place for the number.
    let list = unsafe { get(&raw mut count) };
    if list.is_null() {
        return Err(format!("ibv_get_device_list: {}", Errno::last()));
    }
    let mut found = Vec::new();
    for index in 0..usize::try_from(count).unwrap_or(0).min(MOST) {
        // SAFETY: the list has `count` entries and a NULL.
        let entry = unsafe { list.add(index) };
        // SAFETY: as above.
        let device = unsafe { entry.read() };
        if device.is_null() {
            break;
        }
        // SAFETY: an entry stays valid until the list is freed.
        let name = text(unsafe { &raw const (*device).name }.cast());
        // SAFETY: every device of libibverbs begins a verbs_device, in every release served.
        let ops = unsafe { (*device.cast::<verbs_device>()).ops };
        let provider = if ops.is_null() {
            String::new()
        } else {
            // SAFETY: a provider's table lives as long as the process.
            text(unsafe { (*ops).name })
        };
        found.push((name, provider));
    }
    // SAFETY: from `get`, used no more.
    unsafe { free(list) };
    Ok(found)
}

/// A C string of libibverbs's or a provider's.
fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: libibverbs ends these with a NUL, and they are not written while we read.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
