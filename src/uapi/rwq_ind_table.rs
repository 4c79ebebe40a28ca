//! Indirection tables of work queues.

use super::sys::Command;
use super::wire::{ExCreateRwqIndTable, ExCreateRwqIndTableResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use zerocopy::IntoBytes;

/// `IB_USER_VERBS_MAX_LOG_IND_TBL_SIZE`.
pub(super) const MAX_LOG_SIZE: u32 = 13;

/// `ibv_create_rwq_ind_table` over `wqs`, a power of two of them: handle and number.
///
/// # Errors
/// `EINVAL` where their count is no power of two, or too many; the kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, wqs: &[Handle], drv: Udata<'_>) -> Result<(Handle, u32), Errno> {
    let log_ind_tbl_size = wqs.len().checked_ilog2().ok_or(Errno::EINVAL)?;
    if !wqs.len().is_power_of_two() || log_ind_tbl_size > MAX_LOG_SIZE {
        return Err(Errno::EINVAL);
    }
    let mut req = Vec::with_capacity(size_of::<ExCreateRwqIndTable>() + 4 * wqs.len().next_multiple_of(2));
    req.extend_from_slice(ExCreateRwqIndTable { comp_mask: 0, log_ind_tbl_size }.as_bytes());
    for wq in wqs {
        req.extend_from_slice(wq.0.as_bytes());
    }
    // The request is a multiple of 8 bytes, even for a table of one.
    req.resize(req.len().next_multiple_of(8), 0);
    let resp: ExCreateRwqIndTableResp =
        write::call(cmd, ids::write::EX_CMD_CREATE_RWQ_IND_TBL, req.as_slice(), drv)?;
    let size = size_of::<ExCreateRwqIndTableResp>();
    write::check_length(resp.response_length, size, size)?;
    Ok((Handle(resp.ind_tbl_handle), resp.ind_tbl_num))
}

/// `ibv_destroy_rwq_ind_table`.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use).
pub fn destroy(cmd: CmdFd, table: Handle) -> Result<(), Errno> {
    Command::new(ids::RWQ_IND_TBL_DESTROY).handle(ids::DESTROY_RWQ_IND_TBL_HANDLE, table).call(cmd).map(drop)
}
