//! Counters of flow steering rules.

use super::sys::Command;
use super::{CmdFd, Handle, Udata, ids};
use crate::error::Errno;

/// `ibv_create_counters`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, drv: Udata<'_>) -> Result<Handle, Errno> {
    Command::new(ids::COUNTERS_CREATE)
        .new_handle(ids::CREATE_COUNTERS_HANDLE)
        .udata(drv)
        .call(cmd)?
        .handle(ids::CREATE_COUNTERS_HANDLE)
}

/// `ibv_destroy_counters`.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use).
pub fn destroy(cmd: CmdFd, counters: Handle) -> Result<(), Errno> {
    Command::new(ids::COUNTERS_DESTROY).handle(ids::DESTROY_COUNTERS_HANDLE, counters).call(cmd).map(drop)
}

/// `ibv_read_counters`: fills `values`. `flags`: `IBV_READ_COUNTERS_ATTR_PREFER_CACHED`.
///
/// # Errors
/// The kernel's; `EINVAL` where `values` exceeds 64 KiB.
pub fn read(cmd: CmdFd, counters: Handle, values: &mut [u64], flags: u32) -> Result<(), Errno> {
    Command::new(ids::COUNTERS_READ)
        .handle(ids::READ_COUNTERS_HANDLE, counters)
        .output(ids::READ_COUNTERS_BUFF, values)
        .input_u32(ids::READ_COUNTERS_FLAGS, flags)
        .call(cmd)
        .map(drop)
}
