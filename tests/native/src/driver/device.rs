//! Commands that ask about the device.

use zerocopy::IntoBytes;

use super::{ContextId, Driver};
use crate::Errno;
use crate::attrs::{self, Attrs, Write};
use crate::uapi::{
    AllocUcontextReq, AllocUcontextResp, ExQueryDeviceResp, QueryDeviceResp, QueryPort, QueryPortResp, attr,
};

/// The GUID of a device.
pub(super) fn guid(index: u32) -> u64 {
    0x0002_c903_00fa_ce01 + u64::from(index)
}

const LIB_CAP_DYN_UAR: u64 = 1 << 1;
const RESP_MASK_ECE: u32 = 1 << 2;
/// `cmds_supp_uhw`: query_device and create_ah have driver data.
const UHW_COMMANDS: u8 = 3;
/// Inline mode "none", plus one.
const ETH_MIN_INLINE_NONE: u8 = 1;

fn device() -> QueryDeviceResp {
    QueryDeviceResp {
        fw_ver: 22 << 32 | 35 << 16 | 1000,
        node_guid: guid(0).to_be(),
        sys_image_guid: guid(0).to_be(),
        max_mr_size: u64::MAX,
        page_size_cap: !0xfff,
        vendor_id: 0x2c9,
        vendor_part_id: 0x101b,
        max_qp: 1 << 17,
        max_qp_wr: 32768,
        max_sge: 30,
        max_sge_rd: 30,
        max_cq: 1 << 20,
        max_cqe: (1 << 22) - 1,
        max_mr: 1 << 20,
        max_pd: 1 << 20,
        max_qp_rd_atom: 16,
        max_qp_init_rd_atom: 16,
        atomic_cap: 1,
        max_srq: 1 << 20,
        max_srq_wr: 32767,
        max_srq_sge: 31,
        max_pkeys: 128,
        phys_port_cnt: 1,
        ..QueryDeviceResp::default()
    }
}

/// The port, which is always up.
fn port() -> QueryPortResp {
    const ACTIVE: u8 = 4;
    const MTU_4096: u8 = 5;
    const LINK_UP: u8 = 5;
    const INFINIBAND: u8 = 1;
    QueryPortResp {
        max_msg_sz: 1 << 30,
        gid_tbl_len: 8,
        pkey_tbl_len: 128,
        lid: 1,
        sm_lid: 1,
        state: ACTIVE,
        max_mtu: MTU_4096,
        active_mtu: MTU_4096,
        max_vl_num: 4,
        active_width: 2,
        active_speed: 32,
        phys_state: LINK_UP,
        link_layer: INFINIBAND,
        ..QueryPortResp::default()
    }
}

pub(super) fn query(call: &mut Write) -> Result<(), Errno> {
    call.answer(&device());
    Ok(())
}

pub(super) fn query_ex(call: &mut Write) -> Result<(), Errno> {
    /// Bytes of `struct mlx5_ib_query_device_resp`; its second word says how many.
    const DRIVER: u32 = 112;
    call.answer(&ExQueryDeviceResp {
        base: device(),
        response_length: size_of::<ExQueryDeviceResp>() as u32,
        ..ExQueryDeviceResp::default()
    });
    let mut driver = [0u32; DRIVER as usize / 4];
    if let Some(length) = driver.get_mut(1) {
        *length = DRIVER;
    }
    call.answer_udata(&driver);
    Ok(())
}

fn check_port(port_num: u64) -> Result<(), Errno> {
    if port_num == 1 { Ok(()) } else { Err(Errno(libc::EINVAL)) }
}

pub(super) fn query_port_write(call: &mut Write) -> Result<(), Errno> {
    check_port(call.input::<QueryPort>().port_num.into())?;
    call.answer(&port());
    Ok(())
}

pub(super) fn query_port(attrs: &mut Attrs) -> Result<(), Errno> {
    check_port(attrs.number(attr::QUERY_PORT_PORT_NUM)?)?;
    attrs.output(attr::QUERY_PORT_RESP, port().as_bytes())
}

/// A query of the device's capabilities by DEVX: there are none.
pub(super) fn no_capabilities(attrs: &mut Attrs) -> Result<(), Errno> {
    attrs.output(attr::DEVX_OTHER_CMD_OUT, &[])
}

impl Driver {
    pub(super) fn get_context(&mut self, id: ContextId, attrs: &mut Attrs) -> Result<(), Errno> {
        const COMP_VECTORS: u32 = 2;
        const OPTIONAL_MR_ACCESS: u64 = 1;
        let request: AllocUcontextReq = attrs::read(attrs.udata_in());
        // Only the dynamic doorbell pages of today's providers.
        if request.lib_caps & LIB_CAP_DYN_UAR == 0 {
            return Err(Errno(libc::EOPNOTSUPP));
        }
        let context = self.contexts.get_mut(&id).ok_or(Errno(libc::EIO))?;
        if std::mem::replace(&mut context.allocated, true) {
            return Err(Errno(libc::EINVAL));
        }
        let response = AllocUcontextResp {
            qp_tab_size: 1 << 17,
            bf_reg_size: 512,
            cache_line_size: 64,
            max_sq_desc_sz: 1008,
            max_rq_desc_sz: 512,
            max_send_wqebb: 32768,
            max_recv_wr: 32768,
            max_srq_recv_wr: 32767,
            num_ports: 1,
            comp_mask: RESP_MASK_ECE,
            response_length: size_of::<AllocUcontextResp>() as u32,
            cqe_version: request.max_cqe_version.min(1),
            cmds_supp_uhw: UHW_COMMANDS,
            eth_min_inline: ETH_MIN_INLINE_NONE,
            log_uar_size: 12,
            num_uars_per_page: 1,
            ..AllocUcontextResp::default()
        };
        attrs.output(attr::GET_CONTEXT_NUM_COMP_VECTORS, &COMP_VECTORS.to_ne_bytes())?;
        attrs.output(attr::GET_CONTEXT_CORE_SUPPORT, &OPTIONAL_MR_ACCESS.to_ne_bytes())?;
        attrs.udata_out(response.as_bytes())
    }
}
