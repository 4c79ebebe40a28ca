//! Memory regions.

use super::sys::Command;
use super::wire::{RegMr, RegMrResp, ReregMr, ReregMrResp, Sge};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use std::os::fd::RawFd;
use zerocopy::IntoBytes;

/// A memory region, as the kernel made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mr {
    /// `ibv_mr::handle`.
    pub handle: Handle,
    /// `ibv_mr::lkey`.
    pub lkey: u32,
    /// `ibv_mr::rkey`.
    pub rkey: u32,
}

/// What to register.
#[derive(Clone, Copy, Debug)]
pub struct Reg {
    /// In which domain.
    pub pd: Handle,
    /// First byte in this process.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// First byte as remote peers and work requests say it.
    pub hca_va: u64,
    /// `IBV_ACCESS_*`.
    pub access_flags: u32,
}

/// `ibv_reg_mr`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn reg(cmd: CmdFd, mr: &Reg, drv: Udata<'_>) -> Result<Mr, Errno> {
    let req = RegMr {
        response: 0,
        start: mr.start,
        length: mr.length,
        hca_va: mr.hca_va,
        pd_handle: mr.pd.0,
        access_flags: mr.access_flags,
    };
    let resp: RegMrResp = write::call(cmd, ids::write::REG_MR, &req, drv)?;
    Ok(Mr { handle: Handle(resp.mr_handle), lkey: resp.lkey, rkey: resp.rkey })
}

/// `ibv_rereg_mr`: `flags` (`IBV_REREG_MR_*`) say which of `to` count. The new `(lkey, rkey)`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn rereg(cmd: CmdFd, mr: Handle, flags: u32, to: &Reg, drv: Udata<'_>) -> Result<(u32, u32), Errno> {
    let req = ReregMr {
        response: 0,
        mr_handle: mr.0,
        flags,
        start: to.start,
        length: to.length,
        hca_va: to.hca_va,
        pd_handle: to.pd.0,
        access_flags: to.access_flags,
    };
    let resp: ReregMrResp = write::call(cmd, ids::write::REREG_MR, &req, drv)?;
    Ok((resp.lkey, resp.rkey))
}

/// `ibv_dereg_mr`.
///
/// # Errors
/// The kernel's (`EBUSY`: windows are bound to it).
pub fn dereg(cmd: CmdFd, mr: Handle) -> Result<(), Errno> {
    Command::new(ids::MR_DESTROY).handle(ids::DESTROY_MR_HANDLE, mr).call(cmd).map(drop)
}

/// What to register of a dma-buf.
#[derive(Clone, Copy, Debug)]
pub struct RegDmabuf {
    /// In which domain.
    pub pd: Handle,
    /// First byte in the dma-buf.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// First byte as remote peers and work requests say it.
    pub iova: u64,
    /// The dma-buf.
    pub fd: RawFd,
    /// `IBV_ACCESS_*`.
    pub access_flags: u32,
}

/// `ibv_reg_dmabuf_mr`; kernel 5.12 on.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn reg_dmabuf(cmd: CmdFd, mr: &RegDmabuf, drv: Udata<'_>) -> Result<Mr, Errno> {
    let (mut lkey, mut rkey) = (0_u32, 0_u32);
    let answer = Command::new(ids::REG_DMABUF_MR)
        .new_handle(ids::REG_DMABUF_MR_HANDLE)
        .handle(ids::REG_DMABUF_MR_PD_HANDLE, mr.pd)
        .input_u64(ids::REG_DMABUF_MR_OFFSET, mr.offset)
        .input_u64(ids::REG_DMABUF_MR_LENGTH, mr.length)
        .input_u64(ids::REG_DMABUF_MR_IOVA, mr.iova)
        .input_u32(ids::REG_DMABUF_MR_FD, mr.fd.cast_unsigned())
        .input_u32(ids::REG_DMABUF_MR_ACCESS_FLAGS, mr.access_flags)
        .output(ids::REG_DMABUF_MR_RESP_LKEY, &mut lkey)
        .output(ids::REG_DMABUF_MR_RESP_RKEY, &mut rkey)
        .udata(drv)
        .call(cmd)?;
    Ok(Mr { handle: answer.handle(ids::REG_DMABUF_MR_HANDLE)?, lkey, rkey })
}

/// What to register of device memory.
#[derive(Clone, Copy, Debug)]
pub struct RegDm {
    /// In which domain.
    pub pd: Handle,
    /// The device memory.
    pub dm: Handle,
    /// First byte in it.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// `IBV_ACCESS_*`.
    pub access_flags: u32,
}

/// `ibv_reg_dm_mr`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn reg_dm(cmd: CmdFd, mr: &RegDm, drv: Udata<'_>) -> Result<Mr, Errno> {
    let (mut lkey, mut rkey) = (0_u32, 0_u32);
    let answer = Command::new(ids::DM_MR_REG)
        .new_handle(ids::REG_DM_MR_HANDLE)
        .input_u64(ids::REG_DM_MR_OFFSET, mr.offset)
        .input_u64(ids::REG_DM_MR_LENGTH, mr.length)
        .handle(ids::REG_DM_MR_PD_HANDLE, mr.pd)
        .input_u32(ids::REG_DM_MR_ACCESS_FLAGS, mr.access_flags)
        .handle(ids::REG_DM_MR_DM_HANDLE, mr.dm)
        .output(ids::REG_DM_MR_RESP_LKEY, &mut lkey)
        .output(ids::REG_DM_MR_RESP_RKEY, &mut rkey)
        .udata(drv)
        .call(cmd)?;
    Ok(Mr { handle: answer.handle(ids::REG_DM_MR_HANDLE)?, lkey, rkey })
}

/// `ibv_advise_mr`.
///
/// # Errors
/// The kernel's; `EINVAL` where `sg_list` exceeds 64 KiB.
pub fn advise(cmd: CmdFd, pd: Handle, advice: u32, flags: u32, sg_list: &[Sge]) -> Result<(), Errno> {
    Command::new(ids::ADVISE_MR)
        .handle(ids::ADVISE_MR_PD_HANDLE, pd)
        .constant(ids::ADVISE_MR_ADVICE, u64::from(advice))
        .input_u32(ids::ADVISE_MR_FLAGS, flags)
        .input(ids::ADVISE_MR_SGE_LIST, sg_list.as_bytes())
        .call(cmd)
        .map(drop)
}

/// What the kernel says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// `ibv_mr::lkey`.
    pub lkey: u32,
    /// `ibv_mr::rkey`.
    pub rkey: u32,
    /// Bytes.
    pub length: u64,
    /// First byte as remote peers and work requests say it.
    pub iova: u64,
}

/// Queries a region of a shared context (`ibv_import_mr`).
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query(cmd: CmdFd, mr: Handle) -> Result<Info, Errno> {
    let (mut lkey, mut rkey, mut length, mut iova) = (0_u32, 0_u32, 0_u64, 0_u64);
    Command::new(ids::QUERY_MR)
        .handle(ids::QUERY_MR_HANDLE, mr)
        .output(ids::QUERY_MR_RESP_LKEY, &mut lkey)
        .output(ids::QUERY_MR_RESP_RKEY, &mut rkey)
        .output(ids::QUERY_MR_RESP_LENGTH, &mut length)
        .expect_output(ids::QUERY_MR_RESP_IOVA, &mut iova)
        .call(cmd)?;
    Ok(Info { lkey, rkey, length, iova })
}
