//! Completion queues.

use super::sys::{self, Command};
use super::wire::{CqModeration, DestroyCqResp, ExModifyCq, ReqNotifyCq, ResizeCq, ResizeCqResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use std::os::fd::RawFd;

/// `IB_UVERBS_CQ_FLAGS_TIMESTAMP_COMPLETION` of [`Create::flags`].
pub const TIMESTAMP_COMPLETION: u32 = 1;
/// `IB_UVERBS_CQ_FLAGS_IGNORE_OVERRUN` of [`Create::flags`].
pub const IGNORE_OVERRUN: u32 = 2;

/// `IBV_CQ_ATTR_MODERATE`.
pub(super) const MODERATE: u32 = 1;

/// What to create.
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    /// Entries wanted.
    pub cqe: u32,
    /// What events call it: the address of the `ibv_cq`.
    pub user_handle: u64,
    /// Where completion events go; `None`: nowhere.
    pub comp_channel: Option<RawFd>,
    /// Which vector signals them.
    pub comp_vector: u32,
    /// [`TIMESTAMP_COMPLETION`], [`IGNORE_OVERRUN`].
    pub flags: u32,
    /// Where async events go; `None`: to the context's first descriptor.
    pub event_fd: Option<RawFd>,
}

/// A CQ, as the kernel made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cq {
    /// `ibv_cq::handle`.
    pub handle: Handle,
    /// Entries it has.
    pub cqe: u32,
}

/// `ibv_cq::cqe` is an `int`.
fn entries(cqe: u32) -> Result<u32, Errno> {
    i32::try_from(cqe).map(|_| cqe).map_err(|_| Errno::EPROTO)
}

/// `ibv_create_cq`, `ibv_create_cq_ex`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, cq: &Create, drv: Udata<'_>) -> Result<Cq, Errno> {
    let mut cqe = 0_u32;
    let mut create = Command::new(ids::CQ_CREATE);
    create
        .new_handle(ids::CREATE_CQ_HANDLE)
        .input_u32(ids::CREATE_CQ_CQE, cq.cqe)
        .input_u64(ids::CREATE_CQ_USER_HANDLE, cq.user_handle)
        .input_u32(ids::CREATE_CQ_COMP_VECTOR, cq.comp_vector)
        .output(ids::CREATE_CQ_RESP_CQE, &mut cqe);
    if let Some(fd) = cq.comp_channel {
        create.fd(ids::CREATE_CQ_COMP_CHANNEL, fd);
    }
    if cq.flags != 0 {
        create.input_u32(ids::CREATE_CQ_FLAGS, cq.flags);
    }
    if let Some(fd) = cq.event_fd {
        create.fd(ids::CREATE_CQ_EVENT_FD, fd);
    }
    let answer = create.udata(drv).call(cmd)?;
    Ok(Cq { handle: answer.handle(ids::CREATE_CQ_HANDLE)?, cqe: entries(cqe)? })
}

/// `ibv_resize_cq`: the entries it has now.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn resize(cmd: CmdFd, cq: Handle, cqe: u32, drv: Udata<'_>) -> Result<u32, Errno> {
    let req = ResizeCq { cq_handle: cq.0, cqe, ..ResizeCq::default() };
    let resp: ResizeCqResp = write::call(cmd, ids::write::RESIZE_CQ, &req, drv)?;
    entries(resp.cqe)
}

/// `ibv_req_notify_cq`.
///
/// # Errors
/// The kernel's.
pub fn req_notify(cmd: CmdFd, cq: Handle, solicited_only: bool) -> Result<(), Errno> {
    let req = ReqNotifyCq { cq_handle: cq.0, solicited_only: u32::from(solicited_only) };
    sys::req_notify_cq(cmd.fd, req)
}

/// `ibv_modify_cq`, moderation: an event after `cq_count` completions or `cq_period` microseconds.
///
/// # Errors
/// The kernel's.
pub fn modify(cmd: CmdFd, cq: Handle, cq_count: u16, cq_period: u16) -> Result<(), Errno> {
    let attr = CqModeration { cq_count, cq_period };
    let req = ExModifyCq { cq_handle: cq.0, attr_mask: MODERATE, attr, reserved: 0 };
    write::tell(cmd, ids::write::EX_CMD_MODIFY_CQ, &req, Udata::none())
}

/// `ibv_destroy_cq`: how many events of it were read, all of which must be acknowledged.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use); `EPROTO`.
pub fn destroy(cmd: CmdFd, cq: Handle) -> Result<DestroyCqResp, Errno> {
    let mut resp = DestroyCqResp::default();
    Command::new(ids::CQ_DESTROY)
        .handle(ids::DESTROY_CQ_HANDLE, cq)
        .output(ids::DESTROY_CQ_RESP, &mut resp)
        .call(cmd)?;
    Ok(resp)
}
