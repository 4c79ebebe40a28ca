//! Device memory.

use super::sys::Command;
use super::{CmdFd, Handle, Udata, ids};
use crate::error::Errno;

/// `ibv_alloc_dm`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn alloc(cmd: CmdFd, length: u64, log_align_req: u32, drv: Udata<'_>) -> Result<Handle, Errno> {
    Command::new(ids::DM_ALLOC)
        .new_handle(ids::ALLOC_DM_HANDLE)
        .input_u64(ids::ALLOC_DM_LENGTH, length)
        .input_u32(ids::ALLOC_DM_ALIGNMENT, log_align_req)
        .udata(drv)
        .call(cmd)?
        .handle(ids::ALLOC_DM_HANDLE)
}

/// `ibv_free_dm`.
///
/// # Errors
/// The kernel's (`EBUSY`: still registered).
pub fn free(cmd: CmdFd, dm: Handle) -> Result<(), Errno> {
    Command::new(ids::DM_FREE).handle(ids::FREE_DM_HANDLE, dm).call(cmd).map(drop)
}
