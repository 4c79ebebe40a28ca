//! Address handles.

use super::sys::Command;
use super::wire::{AhAttr, CreateAh, CreateAhResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;

/// `ibv_create_ah`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(
    cmd: CmdFd,
    pd: Handle,
    user_handle: u64,
    attr: &AhAttr,
    drv: Udata<'_>,
) -> Result<Handle, Errno> {
    let req = CreateAh { response: 0, user_handle, pd_handle: pd.0, reserved: 0, attr: *attr };
    let resp: CreateAhResp = write::call(cmd, ids::write::CREATE_AH, &req, drv)?;
    Ok(Handle(resp.ah_handle))
}

/// `ibv_destroy_ah`.
///
/// # Errors
/// The kernel's.
pub fn destroy(cmd: CmdFd, ah: Handle) -> Result<(), Errno> {
    Command::new(ids::AH_DESTROY).handle(ids::DESTROY_AH_HANDLE, ah).call(cmd).map(drop)
}
