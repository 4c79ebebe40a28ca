//! Shared receive queues.

use super::sys::Command;
use super::wire::{DestroySrqResp, ModifySrq, QuerySrq, QuerySrqResp};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use std::os::fd::RawFd;

/// `IB_UVERBS_SRQT_BASIC`.
pub(super) const BASIC: u32 = 0;
/// `IB_UVERBS_SRQT_XRC`.
pub(super) const XRC: u32 = 1;
/// `IB_UVERBS_SRQT_TM`.
pub(super) const TM: u32 = 2;

/// `enum ib_uverbs_srq_type`, with what each type needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `IB_UVERBS_SRQT_BASIC`.
    Basic,
    /// `IB_UVERBS_SRQT_XRC`.
    Xrc {
        /// Its domain.
        xrcd: Handle,
        /// Where its completions go.
        cq: Handle,
    },
    /// `IB_UVERBS_SRQT_TM`.
    Tm {
        /// Where its completions go.
        cq: Handle,
        /// Tags it can hold.
        max_num_tags: u32,
    },
}

/// What to create.
#[derive(Clone, Copy, Debug)]
pub struct Create {
    /// In which domain.
    pub pd: Handle,
    /// What kind.
    pub srq_type: Type,
    /// What events call it: the address of the `ibv_srq`.
    pub user_handle: u64,
    /// Work requests wanted.
    pub max_wr: u32,
    /// Scatter entries wanted in each.
    pub max_sge: u32,
    /// `ibv_srq_attr::srq_limit`.
    pub srq_limit: u32,
    /// Where async events go; `None`: to the context's first descriptor.
    pub event_fd: Option<RawFd>,
}

/// A SRQ, as the kernel made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Srq {
    /// `ibv_srq::handle`.
    pub handle: Handle,
    /// Work requests it holds.
    pub max_wr: u32,
    /// Scatter entries in each.
    pub max_sge: u32,
    /// Its number, for XRC; otherwise 0.
    pub srq_num: u32,
}

/// `ibv_create_srq`, `ibv_create_srq_ex`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, srq: &Create, drv: Udata<'_>) -> Result<Srq, Errno> {
    let (mut max_wr, mut max_sge, mut srq_num) = (0_u32, 0_u32, 0_u32);
    let mut create = Command::new(ids::SRQ_CREATE);
    create
        .new_handle(ids::CREATE_SRQ_HANDLE)
        .handle(ids::CREATE_SRQ_PD_HANDLE, srq.pd)
        .input_u64(ids::CREATE_SRQ_USER_HANDLE, srq.user_handle)
        .input_u32(ids::CREATE_SRQ_MAX_WR, srq.max_wr)
        .input_u32(ids::CREATE_SRQ_MAX_SGE, srq.max_sge)
        .input_u32(ids::CREATE_SRQ_LIMIT, srq.srq_limit)
        .output(ids::CREATE_SRQ_RESP_MAX_WR, &mut max_wr)
        .output(ids::CREATE_SRQ_RESP_MAX_SGE, &mut max_sge);
    match srq.srq_type {
        Type::Basic => {
            create.constant(ids::CREATE_SRQ_TYPE, u64::from(BASIC));
        }
        Type::Xrc { xrcd, cq } => {
            create
                .constant(ids::CREATE_SRQ_TYPE, u64::from(XRC))
                .handle(ids::CREATE_SRQ_XRCD_HANDLE, xrcd)
                .handle(ids::CREATE_SRQ_CQ_HANDLE, cq)
                .expect_output(ids::CREATE_SRQ_RESP_SRQ_NUM, &mut srq_num);
        }
        Type::Tm { cq, max_num_tags } => {
            create
                .constant(ids::CREATE_SRQ_TYPE, u64::from(TM))
                .handle(ids::CREATE_SRQ_CQ_HANDLE, cq)
                .input_u32(ids::CREATE_SRQ_MAX_NUM_TAGS, max_num_tags);
        }
    }
    if let Some(fd) = srq.event_fd {
        create.fd(ids::CREATE_SRQ_EVENT_FD, fd);
    }
    let answer = create.udata(drv).call(cmd)?;
    Ok(Srq { handle: answer.handle(ids::CREATE_SRQ_HANDLE)?, max_wr, max_sge, srq_num })
}

/// `ibv_modify_srq`: `attr_mask` (`IBV_SRQ_*`) says which of the numbers count.
///
/// # Errors
/// The kernel's.
pub fn modify(
    cmd: CmdFd,
    srq: Handle,
    attr_mask: u32,
    max_wr: u32,
    srq_limit: u32,
    drv: Udata<'_>,
) -> Result<(), Errno> {
    let req = ModifySrq { srq_handle: srq.0, attr_mask, max_wr, srq_limit };
    write::tell(cmd, ids::write::MODIFY_SRQ, &req, drv)
}

/// `ibv_query_srq`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query(cmd: CmdFd, srq: Handle) -> Result<QuerySrqResp, Errno> {
    let req = QuerySrq { srq_handle: srq.0, ..QuerySrq::default() };
    write::call(cmd, ids::write::QUERY_SRQ, &req, Udata::none())
}

/// `ibv_destroy_srq`: how many events of it were read, all of which must be acknowledged.
///
/// # Errors
/// The kernel's (`EBUSY`: still in use); `EPROTO`.
pub fn destroy(cmd: CmdFd, srq: Handle) -> Result<u32, Errno> {
    let mut resp = DestroySrqResp::default();
    Command::new(ids::SRQ_DESTROY)
        .handle(ids::DESTROY_SRQ_HANDLE, srq)
        .output(ids::DESTROY_SRQ_RESP, &mut resp)
        .call(cmd)?;
    Ok(resp.events_reported)
}
