//! The C API: what a program that knows holdfast may ask of it.
//!
//! `include/holdfast.h` is made from this file and checked in; `tests/header.rs` holds the two together, and
//! `HOLDFAST_WRITE_HEADER=1 cargo test --test header` writes it anew. A function, once released, keeps its name, its prototype and its meaning.
//!
//! Every function may be called from any thread, after a fatal event too, and takes NULL where it takes a pointer.
#![allow(unsafe_code, reason = "exported C functions")]
#![allow(non_camel_case_types, reason = "C's names")]

use core::ffi::{CStr, c_char, c_int};
use core::ptr;
use std::ffi::CString;
use std::panic::catch_unwind;
use std::sync::OnceLock;
use std::time::Duration;

use crate::abi::host::{Handle, Host};
use crate::abi::public::{ibv_context, ibv_qp};
use crate::error::Errno;
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

/// Nothing is known to be wrong with the device.
pub const HOLDFAST_ALIVE: u32 = 0;
/// Nothing is asked of the device any more; what it completes is still believed. Posts are kept.
pub const HOLDFAST_DYING: u32 = 1;
/// What is owed is flushed.
pub const HOLDFAST_GONE: u32 = 2;

/// The device is alive.
pub const HOLDFAST_REASON_NONE: u32 = 0;
/// The driver reported a fatal error (IBV_EVENT_DEVICE_FATAL while the device was still there).
pub const HOLDFAST_REASON_FATAL: u32 = 1;
/// The kernel took the device away.
pub const HOLDFAST_REASON_REMOVED: u32 = 2;
/// The kernel is taking the device away.
pub const HOLDFAST_REASON_REMOVING: u32 = 3;
/// The device's node is gone.
pub const HOLDFAST_REASON_NODE_GONE: u32 = 4;
/// holdfast_context_kill was called.
pub const HOLDFAST_REASON_KILLED: u32 = 5;

/// Not yet.
pub const HOLDFAST_NEVER: u64 = u64::MAX;

/// Where a context is on its way from alive to gone.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct holdfast_status {
    /// HOLDFAST_ALIVE, HOLDFAST_DYING, HOLDFAST_GONE
    pub state: u32,
    /// HOLDFAST_REASON_...: the first sign of death
    pub reason: u32,
    /// nanoseconds since the first sign, or HOLDFAST_NEVER
    pub since_ns: u64,
    /// nanoseconds since the last store to the device was over, or HOLDFAST_NEVER
    pub closed_ns: u64,
    /// nanoseconds since what is owed is flushed, or HOLDFAST_NEVER
    pub gone_ns: u64,
}

/// The device was told of it, and may have executed it, in part or as a whole.
pub const HOLDFAST_FATE_UNKNOWN: u32 = 0;
/// A completion that says so waits to be polled.
pub const HOLDFAST_FATE_EXECUTED: u32 = 1;
/// The device was never told of it.
pub const HOLDFAST_FATE_NOT_EXECUTED: u32 = 2;

/// A work request that has not completed.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct holdfast_wr {
    /// as it was posted
    pub wr_id: u64,
    /// IBV_WC_...: what its completion will say
    pub opcode: u32,
    /// HOLDFAST_FATE_...
    pub fate: u32,
}

/// Runs `f`; a panic, which is a bug, is `EIO`.
fn guarded(f: impl FnOnce() -> Result<c_int, Errno>) -> c_int {
    match catch_unwind(core::panic::AssertUnwindSafe(f)) {
        Ok(Ok(value)) => value,
        Ok(Err(errno)) => -errno.get(),
        Err(_) => -libc::EIO,
    }
}

/// Our part of `context`: `EINVAL` for NULL, `EOPNOTSUPP` where another provider serves it.
///
/// # Safety
/// `context` is NULL or an open device of libibverbs, and stays open during `'a`.
unsafe fn ours<'a>(context: *mut ibv_context) -> Result<&'a dyn verbs::api::Api, Errno> {
    if context.is_null() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the caller's promise.
    unsafe { verbs::api::of(context) }.ok_or(Errno::EOPNOTSUPP)
}

/// Where a context is on its way.
///
/// @param context  from ibv_open_device and not yet closed
/// @param status   filled up to `size` bytes
/// @param size     sizeof(struct holdfast_status) as the program knows it: later versions may have more fields
/// @return         0; -EINVAL for NULL or a size of no version; -EOPNOTSUPP where another provider serves the device
///
/// # Safety
/// `context` is NULL or an open device of libibverbs; `status` is NULL or `size` bytes to be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_context_status(
    context: *mut ibv_context,
    status: *mut holdfast_status,
    size: usize,
) -> c_int {
    guarded(|| {
        if status.is_null() || size < size_of::<holdfast_status>() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the caller's promise.
        let ours = unsafe { ours(context) }?;
        let [since, closed, gone] = ours.life().ages().map(|age| age.unwrap_or(HOLDFAST_NEVER));
        let reason = ours.life().first_sign().map_or(HOLDFAST_REASON_NONE, |sign| sign as u32);
        let answer = holdfast_status {
            state: ours.life().phase() as u32,
            reason,
            since_ns: since,
            closed_ns: closed,
            gone_ns: gone,
        };
        // SAFETY: the caller's promise: that much may be written.
        unsafe { status.write_unaligned(answer) };
        Ok(0)
    })
}

/// A descriptor that becomes readable when the context's state changes (an eventfd: each change adds 1). It belongs to the
/// context, which closes it.
///
/// @param context  from ibv_open_device and not yet closed
/// @return         the descriptor; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device, or what the
///                 kernel said, such as -EMFILE
///
/// # Safety
/// `context` is NULL or an open device of libibverbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_context_change_fd(context: *mut ibv_context) -> c_int {
    guarded(|| {
        // SAFETY: the caller's promise.
        unsafe { ours(context) }?.changes()
    })
}

/// How long the context waits, after the driver reported a fatal error, for the kernel to take the device off the program's
/// memory, before what is owed is flushed all the same. Default: HOLDFAST_FLUSH_AFTER, 30 s.
///
/// @param context       from ibv_open_device and not yet closed
/// @param milliseconds  0: not at all
/// @return              0; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device
///
/// # Safety
/// `context` is NULL or an open device of libibverbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_context_flush_after(context: *mut ibv_context, milliseconds: u32) -> c_int {
    guarded(|| {
        // SAFETY: the caller's promise.
        let ours = unsafe { ours(context) }?;
        ours.set_patience(Duration::from_millis(milliseconds.into()));
        Ok(0)
    })
}

/// Lets a context die as if its device had, to leave a device on purpose: its queue pairs are destroyed in the kernel, and
/// then all that is owed is flushed. IBV_EVENT_DEVICE_FATAL is the kernel's alone: it does not come. There is no way back but
/// to open the device anew.
///
/// @param context  from ibv_open_device and not yet closed
/// @return         0, also where it was dead already; -EINVAL for NULL, -EOPNOTSUPP where another provider serves the device
///
/// # Safety
/// `context` is NULL or an open device of libibverbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_context_kill(context: *mut ibv_context) -> c_int {
    guarded(|| {
        // SAFETY: the caller's promise.
        unsafe { ours(context) }?.kill();
        Ok(0)
    })
}

/// What a queue pair has outstanding: sends in posting order, then the receives of its own queue. Nobody posts or polls
/// meanwhile. What was polled, flushed too, is not outstanding any more.
///
/// @param qp     of an open device
/// @param list   room for `room` entries, or NULL
/// @param room   how many are filled at most
/// @return       how many there are, which may be more than `room`; -EINVAL for NULL, -EOPNOTSUPP where another provider
///               serves the device
///
/// # Safety
/// `qp` is NULL or a queue pair of libibverbs; `list` is NULL or `room` entries to be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn holdfast_qp_outstanding(
    qp: *mut ibv_qp,
    list: *mut holdfast_wr,
    room: usize,
) -> c_int {
    guarded(|| {
        if qp.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: the caller's promise; a single field is read.
        let context = unsafe { (*qp).context };
        // SAFETY: as above.
        let ours = unsafe { ours(context) }?;
        // SAFETY: as above.
        let found = unsafe { ours.outstanding(qp) };
        let room = if list.is_null() { 0 } else { room };
        for (at, wr) in found.iter().take(room).enumerate() {
            // SAFETY: the caller's promise, and `at` is below `room`.
            let to = unsafe { list.add(at) };
            // SAFETY: as above.
            unsafe { to.write(holdfast_wr { wr_id: wr.wr_id, opcode: wr.opcode, fate: wr.fate as u32 }) };
        }
        Ok(c_int::try_from(found.len()).unwrap_or(c_int::MAX))
    })
}

const _: () = {
    use crate::ha::ledger::Fate;
    use crate::ha::life::{Phase, Sign};
    assert!(Phase::Alive as u32 == HOLDFAST_ALIVE && Phase::Dying as u32 == HOLDFAST_DYING);
    assert!(Phase::Gone as u32 == HOLDFAST_GONE);
    assert!(Sign::Early as u32 == HOLDFAST_REASON_FATAL && Sign::Final as u32 == HOLDFAST_REASON_REMOVED);
    assert!(
        Sign::Removing as u32 == HOLDFAST_REASON_REMOVING
            && Sign::NodeGone as u32 == HOLDFAST_REASON_NODE_GONE
    );
    assert!(Sign::Forced as u32 == HOLDFAST_REASON_KILLED);
    assert!(Fate::Unknown as u32 == HOLDFAST_FATE_UNKNOWN && Fate::Executed as u32 == HOLDFAST_FATE_EXECUTED);
    assert!(Fate::NotExecuted as u32 == HOLDFAST_FATE_NOT_EXECUTED);
};

#[cfg(test)]
mod tests {
    use core::mem::MaybeUninit;

    use super::*;
    use crate::abi::public::{ibv_device, verbs_device, verbs_device_ops};
    use crate::config::Families;

    #[test]
    fn null_is_refused_and_nothing_is_read() {
        let mut status = MaybeUninit::uninit();
        let size = size_of::<holdfast_status>();
        let null = ptr::null_mut();
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { holdfast_context_status(null, status.as_mut_ptr(), size) }, -libc::EINVAL);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { holdfast_context_change_fd(null) }, -libc::EINVAL);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { holdfast_context_flush_after(null, 1) }, -libc::EINVAL);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { holdfast_context_kill(null) }, -libc::EINVAL);
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { holdfast_qp_outstanding(ptr::null_mut(), ptr::null_mut(), 0) }, -libc::EINVAL);
    }

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
