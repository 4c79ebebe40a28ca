//! Protection domains.

use super::sys::Command;
use super::wire::{AllocPd, AllocPdResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;

/// `ibv_alloc_pd`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn alloc(cmd: CmdFd, drv: Udata<'_>) -> Result<Handle, Errno> {
    let resp: AllocPdResp = write::call(cmd, ids::write::ALLOC_PD, &AllocPd::default(), drv)?;
    Ok(Handle(resp.pd_handle))
}

/// `ibv_dealloc_pd`.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use).
pub fn dealloc(cmd: CmdFd, pd: Handle) -> Result<(), Errno> {
    Command::new(ids::PD_DESTROY).handle(ids::DESTROY_PD_HANDLE, pd).call(cmd).map(drop)
}
