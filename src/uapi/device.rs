//! The device and its ports.

use super::sys::Command;
use super::wire::{
    ExQueryDevice, ExQueryDeviceResp, GidEntry, QueryDevice, QueryDeviceResp, QueryPortRespEx,
};
use super::{CmdFd, Udata, ids, write};
use crate::error::Errno;

/// A context, as the kernel opened it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// `ibv_context::num_comp_vectors`.
    pub num_comp_vectors: u32,
    /// `enum ib_uverbs_core_support`; goes to `verbs_device::core_support`.
    pub core_support: u64,
}

/// `IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS` of [`Context::core_support`].
pub const CORE_SUPPORT_OPTIONAL_MR_ACCESS: u64 = 1;

/// Opens the context of `cmd`, which can be done once. No async fd comes with it.
///
/// # Errors
/// The kernel's (`EINVAL` where it is open already); `EPROTO`.
pub fn get_context(cmd: CmdFd, drv: Udata<'_>) -> Result<Context, Errno> {
    let (mut num_comp_vectors, mut core_support) = (0_u32, 0_u64);
    Command::new(ids::GET_CONTEXT)
        .expect_output(ids::GET_CONTEXT_NUM_COMP_VECTORS, &mut num_comp_vectors)
        .expect_output(ids::GET_CONTEXT_CORE_SUPPORT, &mut core_support)
        .udata(drv)
        .call(cmd)?;
    Ok(Context { num_comp_vectors, core_support })
}

/// What [`get_context`] answered whoever opened the context (`ibv_import_device`). `resp_uctx` takes the driver's answer,
/// where the driver has one (mlx5; it is zeroed first); empty otherwise.
///
/// # Errors
/// The kernel's (`EOPNOTSUPP` where the driver cannot share a context, as rxe); `EPROTO`.
pub fn query_context(cmd: CmdFd, resp_uctx: &mut [u8]) -> Result<Context, Errno> {
    let (mut num_comp_vectors, mut core_support) = (0_u32, 0_u64);
    let mut query = Command::new(ids::QUERY_CONTEXT);
    query
        .expect_output(ids::QUERY_CONTEXT_NUM_COMP_VECTORS, &mut num_comp_vectors)
        .expect_output(ids::QUERY_CONTEXT_CORE_SUPPORT, &mut core_support);
    if !resp_uctx.is_empty() {
        resp_uctx.fill(0);
        query.expect_output(ids::QUERY_CONTEXT_RESP_UCTX, resp_uctx);
    }
    query.call(cmd)?;
    Ok(Context { num_comp_vectors, core_support })
}

/// `ibv_query_device`.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query_device(cmd: CmdFd) -> Result<QueryDeviceResp, Errno> {
    write::call(cmd, ids::write::QUERY_DEVICE, &QueryDevice::default(), Udata::none())
}

/// `ibv_query_device_ex`. What an older kernel does not know is 0; `response_length` says how far it went.
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query_device_ex(cmd: CmdFd, drv: Udata<'_>) -> Result<ExQueryDeviceResp, Errno> {
    let resp: ExQueryDeviceResp =
        write::call(cmd, ids::write::EX_CMD_QUERY_DEVICE, &ExQueryDevice::default(), drv)?;
    let least = core::mem::offset_of!(ExQueryDeviceResp, odp_caps);
    write::check_length(resp.response_length, least, size_of::<ExQueryDeviceResp>())?;
    Ok(resp)
}

/// `IBV_PORT_ACTIVE_DEFER`.
pub(super) const PORT_STATE_LAST: u8 = 5;
/// `IBV_LINK_LAYER_ETHERNET`.
pub(super) const LINK_LAYER_LAST: u8 = 2;

/// `ibv_query_port`. What an older kernel does not know is 0.
///
/// # Errors
/// The kernel's; `EPROTO`, also for a `state` or `link_layer` that verbs does not know.
pub fn query_port(cmd: CmdFd, port_num: u8) -> Result<QueryPortRespEx, Errno> {
    let mut resp = QueryPortRespEx::default();
    Command::new(ids::QUERY_PORT)
        .constant(ids::QUERY_PORT_PORT_NUM, u64::from(port_num))
        .output(ids::QUERY_PORT_RESP, &mut resp)
        .call(cmd)?;
    let port = &resp.legacy_resp;
    if port.state > PORT_STATE_LAST || port.link_layer > LINK_LAYER_LAST {
        return Err(Errno::EPROTO);
    }
    Ok(resp)
}

/// One entry of a port's GID table.
///
/// # Errors
/// The kernel's (`ENODATA` for an empty entry); `EPROTO`.
pub fn query_gid_entry(cmd: CmdFd, port_num: u32, gid_index: u32) -> Result<GidEntry, Errno> {
    let mut entry = GidEntry::default();
    Command::new(ids::QUERY_GID_ENTRY)
        .constant(ids::QUERY_GID_ENTRY_PORT, u64::from(port_num))
        .constant(ids::QUERY_GID_ENTRY_GID_INDEX, u64::from(gid_index))
        .input_u32(ids::QUERY_GID_ENTRY_FLAGS, 0)
        .output(ids::QUERY_GID_ENTRY_RESP_ENTRY, &mut entry)
        .call(cmd)?;
    Ok(entry)
}

/// The valid entries of all ports' GID tables, from the start of `entries`: how many there are.
///
/// # Errors
/// The kernel's (`EINVAL` where `entries` is too short); `EPROTO`.
pub fn query_gid_table(cmd: CmdFd, entries: &mut [GidEntry]) -> Result<usize, Errno> {
    let mut num_entries = 0_u64;
    let room = entries.len();
    Command::new(ids::QUERY_GID_TABLE)
        .constant(ids::QUERY_GID_TABLE_ENTRY_SIZE, size_of::<GidEntry>() as u64)
        .input_u32(ids::QUERY_GID_TABLE_FLAGS, 0)
        .output(ids::QUERY_GID_TABLE_RESP_ENTRIES, entries)
        .output(ids::QUERY_GID_TABLE_RESP_NUM_ENTRIES, &mut num_entries)
        .call(cmd)?;
    usize::try_from(num_entries).ok().filter(|n| *n <= room).ok_or(Errno::EPROTO)
}

/// `ibv_query_port_speed`, in units of 100 Mb/s. Newer kernels (7.2 has it, 6.12 not).
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query_port_speed(cmd: CmdFd, port_num: u32) -> Result<u64, Errno> {
    let mut speed = 0_u64;
    Command::new(ids::QUERY_PORT_SPEED)
        .constant(ids::QUERY_PORT_SPEED_PORT_NUM, u64::from(port_num))
        .expect_output(ids::QUERY_PORT_SPEED_RESP, &mut speed)
        .call(cmd)?;
    Ok(speed)
}
