//! Attribute structs: verbs.h on one side, the kernel's on the other.

use libc::{c_char, c_int};

use crate::abi::public::*;
use crate::family::DriverCaps;
use crate::uapi::Handle;
use crate::uapi::wire;

fn dest(attr: &ibv_ah_attr) -> wire::QpDest {
    wire::QpDest {
        dgid: attr.grh.dgid.raw,
        flow_label: attr.grh.flow_label,
        dlid: attr.dlid,
        reserved: 0,
        sgid_index: attr.grh.sgid_index,
        hop_limit: attr.grh.hop_limit,
        traffic_class: attr.grh.traffic_class,
        sl: attr.sl,
        src_path_bits: attr.src_path_bits,
        static_rate: attr.static_rate,
        is_global: attr.is_global,
        port_num: attr.port_num,
    }
}

fn ah_attr(dest: &wire::QpDest) -> ibv_ah_attr {
    let mut attr = ibv_ah_attr::zeroed();
    attr.grh.dgid.raw = dest.dgid;
    attr.grh.flow_label = dest.flow_label;
    attr.grh.sgid_index = dest.sgid_index;
    attr.grh.hop_limit = dest.hop_limit;
    attr.grh.traffic_class = dest.traffic_class;
    attr.dlid = dest.dlid;
    attr.sl = dest.sl;
    attr.src_path_bits = dest.src_path_bits;
    attr.static_rate = dest.static_rate;
    attr.is_global = dest.is_global;
    attr.port_num = dest.port_num;
    attr
}

/// An address for the create_ah command.
pub(crate) fn ah_command(attr: &ibv_ah_attr) -> wire::AhAttr {
    wire::AhAttr {
        grh: wire::GlobalRoute {
            dgid: attr.grh.dgid.raw,
            flow_label: attr.grh.flow_label,
            sgid_index: attr.grh.sgid_index,
            hop_limit: attr.grh.hop_limit,
            traffic_class: attr.grh.traffic_class,
            reserved: 0,
        },
        dlid: attr.dlid,
        sl: attr.sl,
        src_path_bits: attr.src_path_bits,
        static_rate: attr.static_rate,
        is_global: attr.is_global,
        port_num: attr.port_num,
        reserved: 0,
    }
}

/// An enumerator that the kernel takes in one byte; what does not fit becomes one that no kernel knows, so that it refuses it.
fn byte(value: u32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

/// The modify_qp command. Only fields named in `mask` mean anything; the others are left 0, so that what an application did
/// not initialise does not leave the process.
pub(crate) fn modify_command(qp: Handle, attr: &ibv_qp_attr, mask: u32) -> wire::ModifyQp {
    let mut cmd = wire::ModifyQp { qp_handle: qp.0, attr_mask: mask, ..Default::default() };
    let has = |bit: u32| mask & bit != 0;
    if has(IBV_QP_STATE) {
        cmd.qp_state = byte(attr.qp_state);
    }
    if has(IBV_QP_CUR_STATE) {
        cmd.cur_qp_state = byte(attr.cur_qp_state);
    }
    if has(IBV_QP_EN_SQD_ASYNC_NOTIFY) {
        cmd.en_sqd_async_notify = attr.en_sqd_async_notify;
    }
    if has(IBV_QP_ACCESS_FLAGS) {
        cmd.qp_access_flags = attr.qp_access_flags;
    }
    if has(IBV_QP_PKEY_INDEX) {
        cmd.pkey_index = attr.pkey_index;
    }
    if has(IBV_QP_PORT) {
        cmd.port_num = attr.port_num;
    }
    if has(IBV_QP_QKEY) {
        cmd.qkey = attr.qkey;
    }
    if has(IBV_QP_AV) {
        cmd.dest = dest(&attr.ah_attr);
    }
    if has(IBV_QP_PATH_MTU) {
        cmd.path_mtu = byte(attr.path_mtu);
    }
    if has(IBV_QP_TIMEOUT) {
        cmd.timeout = attr.timeout;
    }
    if has(IBV_QP_RETRY_CNT) {
        cmd.retry_cnt = attr.retry_cnt;
    }
    if has(IBV_QP_RNR_RETRY) {
        cmd.rnr_retry = attr.rnr_retry;
    }
    if has(IBV_QP_RQ_PSN) {
        cmd.rq_psn = attr.rq_psn;
    }
    if has(IBV_QP_MAX_QP_RD_ATOMIC) {
        cmd.max_rd_atomic = attr.max_rd_atomic;
    }
    if has(IBV_QP_ALT_PATH) {
        cmd.alt_dest = dest(&attr.alt_ah_attr);
        cmd.alt_pkey_index = attr.alt_pkey_index;
        cmd.alt_port_num = attr.alt_port_num;
        cmd.alt_timeout = attr.alt_timeout;
    }
    if has(IBV_QP_MIN_RNR_TIMER) {
        cmd.min_rnr_timer = attr.min_rnr_timer;
    }
    if has(IBV_QP_SQ_PSN) {
        cmd.sq_psn = attr.sq_psn;
    }
    if has(IBV_QP_MAX_DEST_RD_ATOMIC) {
        cmd.max_dest_rd_atomic = attr.max_dest_rd_atomic;
    }
    if has(IBV_QP_PATH_MIG_STATE) {
        cmd.path_mig_state = byte(attr.path_mig_state);
    }
    if has(IBV_QP_DEST_QPN) {
        cmd.dest_qp_num = attr.dest_qp_num;
    }
    cmd
}

/// The queue sizes in a query_qp answer.
pub(crate) fn cap_of(resp: &wire::QueryQpResp) -> ibv_qp_cap {
    ibv_qp_cap {
        max_send_wr: resp.max_send_wr,
        max_recv_wr: resp.max_recv_wr,
        max_send_sge: resp.max_send_sge,
        max_recv_sge: resp.max_recv_sge,
        max_inline_data: resp.max_inline_data,
    }
}

/// A query_qp answer. Fields that the command does not carry (`en_sqd_async_notify`, `rate_limit`) stay as they were: an
/// application built against older headers has no room for the latter.
pub(crate) fn fill_qp_attr(attr: &mut ibv_qp_attr, resp: &wire::QueryQpResp) {
    attr.qp_state = u32::from(resp.qp_state);
    attr.cur_qp_state = u32::from(resp.cur_qp_state);
    attr.path_mtu = u32::from(resp.path_mtu);
    attr.path_mig_state = u32::from(resp.path_mig_state);
    attr.qkey = resp.qkey;
    attr.rq_psn = resp.rq_psn;
    attr.sq_psn = resp.sq_psn;
    attr.dest_qp_num = resp.dest_qp_num;
    attr.qp_access_flags = resp.qp_access_flags;
    attr.cap = cap_of(resp);
    attr.ah_attr = ah_attr(&resp.dest);
    attr.alt_ah_attr = ah_attr(&resp.alt_dest);
    attr.pkey_index = resp.pkey_index;
    attr.alt_pkey_index = resp.alt_pkey_index;
    attr.sq_draining = resp.sq_draining;
    attr.max_rd_atomic = resp.max_rd_atomic;
    attr.max_dest_rd_atomic = resp.max_dest_rd_atomic;
    attr.min_rnr_timer = resp.min_rnr_timer;
    attr.port_num = resp.port_num;
    attr.timeout = resp.timeout;
    attr.retry_cnt = resp.retry_cnt;
    attr.rnr_retry = resp.rnr_retry;
    attr.alt_port_num = resp.alt_port_num;
    attr.alt_timeout = resp.alt_timeout;
}

/// A port, but for the fields that only newer libraries have room for.
pub(crate) fn fill_port_attr(attr: &mut PortAttr, resp: &wire::QueryPortRespEx) {
    let port = &resp.legacy_resp;
    attr.state = u32::from(port.state);
    attr.max_mtu = u32::from(port.max_mtu);
    attr.active_mtu = u32::from(port.active_mtu);
    attr.gid_tbl_len = int(port.gid_tbl_len);
    attr.port_cap_flags = port.port_cap_flags;
    attr.max_msg_sz = port.max_msg_sz;
    attr.bad_pkey_cntr = port.bad_pkey_cntr;
    attr.qkey_viol_cntr = port.qkey_viol_cntr;
    attr.pkey_tbl_len = port.pkey_tbl_len;
    attr.lid = port.lid;
    attr.sm_lid = port.sm_lid;
    attr.lmc = port.lmc;
    attr.max_vl_num = port.max_vl_num;
    attr.sm_sl = port.sm_sl;
    attr.subnet_timeout = port.subnet_timeout;
    attr.init_type_reply = port.init_type_reply;
    attr.active_width = port.active_width;
    attr.active_speed = port.active_speed;
    attr.phys_state = port.phys_state;
    attr.link_layer = port.link_layer;
    attr.flags = port.flags;
    attr.port_cap_flags2 = resp.port_cap_flags2;
    attr.active_speed_ex = resp.active_speed_ex;
}

/// `ibv_port_attr` of the newest library; older ones copy less of it.
pub(crate) type PortAttr = ibv_port_attr;

/// A number that verbs.h keeps in an `int`.
fn int(value: u32) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}

/// A device, as `ibv_query_device` knows it.
pub(crate) fn device_attr(resp: &wire::QueryDeviceResp, fw_ver: &str) -> ibv_device_attr {
    let mut attr = ibv_device_attr::zeroed();
    // One byte stays for the NUL.
    let room = attr.fw_ver.len() - 1;
    for (to, from) in attr.fw_ver.iter_mut().take(room).zip(fw_ver.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    attr.node_guid = u64::from_ne_bytes(resp.node_guid);
    attr.sys_image_guid = u64::from_ne_bytes(resp.sys_image_guid);
    attr.max_mr_size = resp.max_mr_size;
    attr.page_size_cap = resp.page_size_cap;
    attr.vendor_id = resp.vendor_id;
    attr.vendor_part_id = resp.vendor_part_id;
    attr.hw_ver = resp.hw_ver;
    attr.max_qp = int(resp.max_qp);
    attr.max_qp_wr = int(resp.max_qp_wr);
    attr.device_cap_flags = resp.device_cap_flags;
    attr.max_sge = int(resp.max_sge);
    attr.max_sge_rd = int(resp.max_sge_rd);
    attr.max_cq = int(resp.max_cq);
    attr.max_cqe = int(resp.max_cqe);
    attr.max_mr = int(resp.max_mr);
    attr.max_pd = int(resp.max_pd);
    attr.max_qp_rd_atom = int(resp.max_qp_rd_atom);
    attr.max_ee_rd_atom = int(resp.max_ee_rd_atom);
    attr.max_res_rd_atom = int(resp.max_res_rd_atom);
    attr.max_qp_init_rd_atom = int(resp.max_qp_init_rd_atom);
    attr.max_ee_init_rd_atom = int(resp.max_ee_init_rd_atom);
    attr.atomic_cap = resp.atomic_cap;
    attr.max_ee = int(resp.max_ee);
    attr.max_rdd = int(resp.max_rdd);
    attr.max_mw = int(resp.max_mw);
    attr.max_raw_ipv6_qp = int(resp.max_raw_ipv6_qp);
    attr.max_raw_ethy_qp = int(resp.max_raw_ethy_qp);
    attr.max_mcast_grp = int(resp.max_mcast_grp);
    attr.max_mcast_qp_attach = int(resp.max_mcast_qp_attach);
    attr.max_total_mcast_qp_attach = int(resp.max_total_mcast_qp_attach);
    attr.max_ah = int(resp.max_ah);
    attr.max_fmr = int(resp.max_fmr);
    attr.max_map_per_fmr = int(resp.max_map_per_fmr);
    attr.max_srq = int(resp.max_srq);
    attr.max_srq_wr = int(resp.max_srq_wr);
    attr.max_srq_sge = int(resp.max_srq_sge);
    attr.max_pkeys = resp.max_pkeys;
    attr.local_ca_ack_delay = resp.local_ca_ack_delay;
    attr.phys_port_cnt = resp.phys_port_cnt;
    attr
}

/// The extended part of a device: what `resp` left out is 0 there and so here.
pub(crate) fn device_attr_ex(
    resp: &wire::ExQueryDeviceResp,
    caps: &DriverCaps,
    fw_ver: &str,
) -> ibv_device_attr_ex {
    let mut attr = ibv_device_attr_ex::zeroed();
    attr.orig_attr = device_attr(&resp.base, fw_ver);
    attr.odp_caps.general_caps = resp.odp_caps.general_caps;
    let [rc_odp_caps, uc_odp_caps, ud_odp_caps] = resp.odp_caps.per_transport_caps;
    attr.odp_caps.per_transport_caps = ibv_odp_caps_per_transport { rc_odp_caps, uc_odp_caps, ud_odp_caps };
    attr.completion_timestamp_mask = resp.timestamp_mask;
    attr.hca_core_clock = resp.hca_core_clock;
    attr.device_cap_flags_ex = resp.device_cap_flags_ex;
    attr.rss_caps.supported_qpts = resp.rss_caps.supported_qpts;
    attr.rss_caps.max_rwq_indirection_tables = resp.rss_caps.max_rwq_indirection_tables;
    attr.rss_caps.max_rwq_indirection_table_size = resp.rss_caps.max_rwq_indirection_table_size;
    attr.max_wq_type_rq = resp.max_wq_type_rq;
    attr.raw_packet_caps = resp.raw_packet_caps;
    attr.tm_caps.max_rndv_hdr_size = resp.tm_caps.max_rndv_hdr_size;
    attr.tm_caps.max_num_tags = resp.tm_caps.max_num_tags;
    attr.tm_caps.flags = resp.tm_caps.flags;
    attr.tm_caps.max_ops = resp.tm_caps.max_ops;
    attr.tm_caps.max_sge = resp.tm_caps.max_sge;
    attr.cq_mod_caps.max_cq_count = resp.cq_moderation_caps.max_cq_moderation_count;
    attr.cq_mod_caps.max_cq_period = resp.cq_moderation_caps.max_cq_moderation_period;
    attr.max_dm_size = resp.max_dm_size;
    attr.xrc_odp_caps = resp.xrc_odp_caps;
    attr.tso_caps.max_tso = caps.max_tso;
    attr.tso_caps.supported_qpts = caps.tso_qpts;
    attr.rss_caps.rx_hash_fields_mask = caps.rx_hash_fields_mask;
    attr.rss_caps.rx_hash_function = caps.rx_hash_function;
    if let Some(pacing) = caps.packet_pacing {
        attr.packet_pacing_caps = pacing;
    }
    attr.phys_port_cnt_ex = u32::from(resp.base.phys_port_cnt);
    attr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_mask_names_is_sent() {
        let mut attr = ibv_qp_attr::zeroed();
        attr.qp_state = IBV_QPS_INIT;
        attr.qkey = 0xdead;
        attr.port_num = 1;
        let cmd = modify_command(Handle(7), &attr, IBV_QP_STATE | IBV_QP_PORT);
        assert_eq!((cmd.qp_handle, cmd.attr_mask), (7, IBV_QP_STATE | IBV_QP_PORT));
        assert_eq!((u32::from(cmd.qp_state), cmd.port_num, cmd.qkey), (IBV_QPS_INIT, 1, 0));
    }

    #[test]
    fn an_enumerator_out_of_range_does_not_wrap_to_a_known_one() {
        let mut attr = ibv_qp_attr::zeroed();
        attr.qp_state = 0x100 + IBV_QPS_RTS;
        assert_eq!(modify_command(Handle(1), &attr, IBV_QP_STATE).qp_state, u8::MAX);
    }

    #[test]
    fn an_address_survives_both_ways() {
        let mut attr = ibv_ah_attr::zeroed();
        attr.grh.dgid.raw = [9; 16];
        (attr.grh.flow_label, attr.grh.sgid_index, attr.grh.hop_limit, attr.grh.traffic_class) = (1, 2, 3, 4);
        (attr.dlid, attr.sl, attr.src_path_bits, attr.static_rate, attr.is_global, attr.port_num) =
            (5, 6, 7, 8, 1, 1);
        let back = ah_attr(&dest(&attr));
        assert_eq!(format!("{attr:?}"), format!("{back:?}"));
    }

    #[test]
    fn a_long_firmware_version_is_cut_with_a_nul() {
        let attr = device_attr(&wire::QueryDeviceResp::default(), &"x".repeat(100));
        assert_eq!((attr.fw_ver[62] as u8, attr.fw_ver[63]), (b'x', 0));
    }

    #[test]
    fn a_limit_beyond_int_is_the_greatest_int() {
        let resp = wire::QueryDeviceResp { max_qp: u32::MAX, ..Default::default() };
        assert_eq!(device_attr(&resp, "").max_qp, c_int::MAX);
    }
}
