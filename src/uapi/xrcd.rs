//! XRC domains.

use super::sys::Command;
use super::wire::{OpenXrcd, OpenXrcdResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use std::os::fd::RawFd;

/// `ibv_open_xrcd`: `fd` names the inode to share the domain through; `oflags` as there.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn open(cmd: CmdFd, fd: Option<RawFd>, oflags: u32, drv: Udata<'_>) -> Result<Handle, Errno> {
    let req = OpenXrcd { fd: fd.unwrap_or(-1).cast_unsigned(), oflags, ..OpenXrcd::default() };
    let resp: OpenXrcdResp = write::call(cmd, ids::write::OPEN_XRCD, &req, drv)?;
    Ok(Handle(resp.xrcd_handle))
}

/// `ibv_close_xrcd`.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use).
pub fn close(cmd: CmdFd, xrcd: Handle) -> Result<(), Errno> {
    Command::new(ids::XRCD_DESTROY).handle(ids::DESTROY_XRCD_HANDLE, xrcd).call(cmd).map(drop)
}
