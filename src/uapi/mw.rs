//! Memory windows.

use super::sys::Command;
use super::wire::{AllocMw, AllocMwResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;

/// `ibv_alloc_mw`: handle and rkey. `mw_type`: 1 or 2.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn alloc(cmd: CmdFd, pd: Handle, mw_type: u8, drv: Udata<'_>) -> Result<(Handle, u32), Errno> {
    let req = AllocMw { pd_handle: pd.0, mw_type, ..AllocMw::default() };
    let resp: AllocMwResp = write::call(cmd, ids::write::ALLOC_MW, &req, drv)?;
    Ok((Handle(resp.mw_handle), resp.rkey))
}

/// `ibv_dealloc_mw`.
///
/// # Errors
/// The kernel's.
pub fn dealloc(cmd: CmdFd, mw: Handle) -> Result<(), Errno> {
    Command::new(ids::MW_DESTROY).handle(ids::DESTROY_MW_HANDLE, mw).call(cmd).map(drop)
}
