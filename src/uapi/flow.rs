//! Flow steering rules.

use super::sys::Command;
use super::wire::{CreateFlow, CreateFlowResp, FlowAttr};
use super::{CmdFd, Handle, Udata, ids, write};
use crate::error::Errno;
use zerocopy::IntoBytes;

/// `ibv_create_flow`: `flow_specs` are the rule's `ib_uverbs_flow_spec_*`, `flow_attr.num_of_specs` of them; its `size`
/// is filled in.
///
/// # Errors
/// `EINVAL` where the specs are too long; the kernel's; `EPROTO`.
pub fn create(
    cmd: CmdFd,
    qp: Handle,
    flow_attr: &FlowAttr,
    flow_specs: &[u8],
    drv: Udata<'_>,
) -> Result<Handle, Errno> {
    let size = u16::try_from(flow_specs.len()).map_err(|_| Errno::EINVAL)?;
    let head = CreateFlow { comp_mask: 0, qp_handle: qp.0, flow_attr: FlowAttr { size, ..*flow_attr } };
    let mut req = Vec::with_capacity(size_of::<CreateFlow>() + flow_specs.len());
    req.extend_from_slice(head.as_bytes());
    req.extend_from_slice(flow_specs);
    let resp: CreateFlowResp = write::call(cmd, ids::write::EX_CMD_CREATE_FLOW, req.as_slice(), drv)?;
    Ok(Handle(resp.flow_handle))
}

/// `ibv_destroy_flow`.
///
/// # Errors
/// The kernel's.
pub fn destroy(cmd: CmdFd, flow: Handle) -> Result<(), Errno> {
    Command::new(ids::FLOW_DESTROY).handle(ids::DESTROY_FLOW_HANDLE, flow).call(cmd).map(drop)
}
