//! Work queues.

use super::sys::Command;
use super::wire::ExModifyWq;
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use std::os::fd::RawFd;

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct Create {
    /// In which domain.
    pub pd: Handle,
    /// Where its completions go.
    pub cq: Handle,
    /// `enum ib_uverbs_wq_type`; 0 is the only one.
    pub wq_type: u32,
    /// What events call it: the address of the `ibv_wq`.
    pub user_handle: u64,
    /// Work requests wanted.
    pub max_wr: u32,
    /// Scatter entries wanted in each.
    pub max_sge: u32,
    /// `IBV_WQ_FLAGS_*`.
    pub create_flags: u32,
    /// Where async events go; `None`: to the context's first descriptor.
    pub event_fd: Option<RawFd>,
}

/// A WQ, as the kernel made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wq {
    /// `ibv_wq::handle`.
    pub handle: Handle,
    /// Work requests it holds.
    pub max_wr: u32,
    /// Scatter entries in each.
    pub max_sge: u32,
    /// `ibv_wq::wq_num`.
    pub wq_num: u32,
}

/// `ibv_create_wq`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, wq: &Create, drv: Udata<'_>) -> Result<Wq, Errno> {
    let (mut max_wr, mut max_sge, mut wq_num) = (0_u32, 0_u32, 0_u32);
    let mut create = Command::new(ids::WQ_CREATE);
    create
        .new_handle(ids::CREATE_WQ_HANDLE)
        .handle(ids::CREATE_WQ_PD_HANDLE, wq.pd)
        .handle(ids::CREATE_WQ_CQ_HANDLE, wq.cq)
        .input_u64(ids::CREATE_WQ_USER_HANDLE, wq.user_handle)
        .constant(ids::CREATE_WQ_TYPE, u64::from(wq.wq_type))
        .input_u32(ids::CREATE_WQ_MAX_WR, wq.max_wr)
        .input_u32(ids::CREATE_WQ_MAX_SGE, wq.max_sge)
        .input_u32(ids::CREATE_WQ_FLAGS, wq.create_flags)
        .output(ids::CREATE_WQ_RESP_MAX_WR, &mut max_wr)
        .output(ids::CREATE_WQ_RESP_MAX_SGE, &mut max_sge)
        .output(ids::CREATE_WQ_RESP_WQ_NUM, &mut wq_num);
    if let Some(fd) = wq.event_fd {
        create.fd(ids::CREATE_WQ_EVENT_FD, fd);
    }
    let answer = create.udata(drv).call(cmd)?;
    Ok(Wq { handle: answer.handle(ids::CREATE_WQ_HANDLE)?, max_wr, max_sge, wq_num })
}

/// `ibv_modify_wq`; `wq_handle` and `attr_mask` are in `attr`.
///
/// # Errors
/// The kernel's.
pub fn modify(cmd: CmdFd, attr: &ExModifyWq, drv: Udata<'_>) -> Result<(), Errno> {
    write::tell(cmd, ids::write::EX_CMD_MODIFY_WQ, attr, drv)
}

/// `ibv_destroy_wq`: how many events of it were read, all of which must be acknowledged.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use); `EPROTO`.
pub fn destroy(cmd: CmdFd, wq: Handle) -> Result<u32, Errno> {
    let mut events_reported = 0_u32;
    Command::new(ids::WQ_DESTROY)
        .handle(ids::DESTROY_WQ_HANDLE, wq)
        .output(ids::DESTROY_WQ_RESP, &mut events_reported)
        .call(cmd)?;
    Ok(events_reported)
}
