//! Queue pairs, and multicast groups they join.

use super::sys::Command;
use super::wire::{
    AttachMcast, CreateQpResp, DestroyQpResp, ExModifyQp, ExModifyQpResp, ModifyQp, OpenQp, PostSend,
    PostSendResp, QpCap, QueryQp, QueryQpResp, SendWr,
};
use super::{CmdFd, Handle, Udata, ids, sys, write};
use crate::error::Errno;
use std::os::fd::RawFd;
use zerocopy::IntoBytes;

/// `IB_UVERBS_QP_CREATE_SQ_SIG_ALL` of [`Create::create_flags`].
pub const CREATE_SQ_SIG_ALL: u32 = 1 << 12;

/// What to create. Which handles a type needs: ibv_create_qp_ex(3).
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    /// `enum ibv_qp_type`.
    pub qp_type: u32,
    /// What events call it: the address of the `ibv_qp`.
    pub user_handle: u64,
    /// Sizes wanted.
    pub cap: QpCap,
    /// [`CREATE_SQ_SIG_ALL`] and `IBV_QP_CREATE_*`, but for `IBV_QP_CREATE_SOURCE_QPN`.
    pub create_flags: u32,
    /// `ibv_qp_init_attr_ex::source_qpn`.
    pub source_qpn: Option<u32>,
    /// Its protection domain.
    pub pd: Option<Handle>,
    /// Its XRC domain.
    pub xrcd: Option<Handle>,
    /// Where its receives are posted, if not to itself.
    pub srq: Option<Handle>,
    /// Where its send completions go.
    pub send_cq: Option<Handle>,
    /// Where its receive completions go.
    pub recv_cq: Option<Handle>,
    /// Where its receives are spread.
    pub ind_table: Option<Handle>,
    /// Where async events go; `None`: to the context's first descriptor.
    pub event_fd: Option<RawFd>,
}

/// A QP, as the kernel made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qp {
    /// `ibv_qp::handle`.
    pub handle: Handle,
    /// `ibv_qp::qp_num`.
    pub qp_num: u32,
    /// Sizes it has.
    pub cap: QpCap,
}

/// A QP's number has 24 bits.
fn number(qp_num: u32) -> Result<u32, Errno> {
    if qp_num >> 24 == 0 { Ok(qp_num) } else { Err(Errno::EPROTO) }
}

/// `ibv_create_qp`, `ibv_create_qp_ex`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn create(cmd: CmdFd, qp: &Create, drv: Udata<'_>) -> Result<Qp, Errno> {
    let (mut cap, mut qp_num) = (QpCap::default(), 0_u32);
    let mut create = Command::new(ids::QP_CREATE);
    create
        .new_handle(ids::CREATE_QP_HANDLE)
        .constant(ids::CREATE_QP_TYPE, u64::from(qp.qp_type))
        .input_u64(ids::CREATE_QP_USER_HANDLE, qp.user_handle)
        .input(ids::CREATE_QP_CAP, qp.cap.as_bytes())
        .output(ids::CREATE_QP_RESP_CAP, &mut cap)
        .output(ids::CREATE_QP_RESP_QP_NUM, &mut qp_num);
    for (id, handle) in [
        (ids::CREATE_QP_XRCD_HANDLE, qp.xrcd),
        (ids::CREATE_QP_PD_HANDLE, qp.pd),
        (ids::CREATE_QP_SRQ_HANDLE, qp.srq),
        (ids::CREATE_QP_SEND_CQ_HANDLE, qp.send_cq),
        (ids::CREATE_QP_RECV_CQ_HANDLE, qp.recv_cq),
        (ids::CREATE_QP_IND_TABLE_HANDLE, qp.ind_table),
    ] {
        if let Some(handle) = handle {
            create.handle(id, handle);
        }
    }
    if qp.create_flags != 0 {
        create.input_u32(ids::CREATE_QP_FLAGS, qp.create_flags);
    }
    if let Some(qpn) = qp.source_qpn {
        create.input_u32(ids::CREATE_QP_SOURCE_QPN, qpn);
    }
    if let Some(fd) = qp.event_fd {
        create.fd(ids::CREATE_QP_EVENT_FD, fd);
    }
    let answer = create.udata(drv).call(cmd)?;
    Ok(Qp { handle: answer.handle(ids::CREATE_QP_HANDLE)?, qp_num: number(qp_num)?, cap })
}

/// `ibv_open_qp`: an XRC receive QP that another process made.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn open(
    cmd: CmdFd,
    xrcd: Handle,
    user_handle: u64,
    qpn: u32,
    qp_type: u8,
    drv: Udata<'_>,
) -> Result<Qp, Errno> {
    let req = OpenQp { user_handle, pd_handle: xrcd.0, qpn, qp_type, ..OpenQp::default() };
    let resp: CreateQpResp = write::call(cmd, ids::write::OPEN_QP, &req, drv)?;
    let cap = QpCap {
        max_send_wr: resp.max_send_wr,
        max_recv_wr: resp.max_recv_wr,
        max_send_sge: resp.max_send_sge,
        max_recv_sge: resp.max_recv_sge,
        max_inline_data: resp.max_inline_data,
    };
    Ok(Qp { handle: Handle(resp.qp_handle), qp_num: number(resp.qpn)?, cap })
}

/// `ibv_modify_qp`; `qp_handle` and `attr_mask` are in `attr`.
///
/// # Errors
/// The kernel's.
pub fn modify(cmd: CmdFd, attr: &ModifyQp, drv: Udata<'_>) -> Result<(), Errno> {
    write::tell(cmd, ids::write::MODIFY_QP, attr, drv)
}

/// `ibv_modify_qp` with a rate limit or driver data that answer (ECE).
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn modify_ex(cmd: CmdFd, attr: &ExModifyQp, drv: Udata<'_>) -> Result<(), Errno> {
    let resp: ExModifyQpResp = write::call(cmd, ids::write::EX_CMD_MODIFY_QP, attr, drv)?;
    let size = size_of::<ExModifyQpResp>();
    write::check_length(resp.response_length, size, size)
}

/// `IBV_QPS_ERR`.
pub(super) const STATE_LAST: u8 = 6;

/// `ibv_query_qp`.
///
/// # Errors
/// The kernel's; `EPROTO`, also for a state that verbs does not know.
pub fn query(cmd: CmdFd, qp: Handle, attr_mask: u32) -> Result<QueryQpResp, Errno> {
    let req = QueryQp { qp_handle: qp.0, attr_mask, ..QueryQp::default() };
    let resp: QueryQpResp = write::call(cmd, ids::write::QUERY_QP, &req, Udata::none())?;
    if resp.qp_state > STATE_LAST || resp.cur_qp_state > STATE_LAST {
        return Err(Errno::EPROTO);
    }
    Ok(resp)
}

/// `ibv_destroy_qp`: how many events of it were read, all of which must be acknowledged.
///
/// # Errors
/// The kernel's (`EBUSY`: still in a multicast group); `EPROTO`.
pub fn destroy(cmd: CmdFd, qp: Handle) -> Result<u32, Errno> {
    let mut resp = DestroyQpResp::default();
    Command::new(ids::QP_DESTROY)
        .handle(ids::DESTROY_QP_HANDLE, qp)
        .output(ids::DESTROY_QP_RESP, &mut resp)
        .call(cmd)?;
    Ok(resp.events_reported)
}

/// Tells the kernel to look at a send queue it shares with user space (rxe): `POST_SEND` of no work request, by a plain
/// `write`. Allocates nothing.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn post_send_kick(cmd: CmdFd, qp: Handle) -> Result<(), Errno> {
    let req = PostSend {
        response: 0,
        qp_handle: qp.0,
        wr_count: 0,
        sge_count: 0,
        wqe_size: size_of::<SendWr>() as u32,
    };
    sys::post_send(cmd.fd, req, &mut PostSendResp::default())
}

/// `ibv_attach_mcast`; `mlid` in host order.
///
/// # Errors
/// The kernel's.
pub fn attach_mcast(cmd: CmdFd, qp: Handle, gid: [u8; 16], mlid: u16) -> Result<(), Errno> {
    let req = AttachMcast { gid, qp_handle: qp.0, mlid, reserved: 0 };
    write::tell(cmd, ids::write::ATTACH_MCAST, &req, Udata::none())
}

/// `ibv_detach_mcast`; `mlid` in host order.
///
/// # Errors
/// The kernel's.
pub fn detach_mcast(cmd: CmdFd, qp: Handle, gid: [u8; 16], mlid: u16) -> Result<(), Errno> {
    let req = AttachMcast { gid, qp_handle: qp.0, mlid, reserved: 0 };
    write::tell(cmd, ids::write::DETACH_MCAST, &req, Udata::none())
}
