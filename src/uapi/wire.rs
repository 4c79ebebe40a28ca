//! The structs of `<rdma/ib_user_verbs.h>`, `<rdma/ib_user_ioctl_verbs.h>` and `<rdma/rdma_user_ioctl_cmds.h>`, field for
//! field and under the same names (`_pad*` marks what C pads by itself).
//!
//! A trailing `driver_data[]` is left out: driver data travel in [`Udata`](super::Udata). A `response` address is left 0:
//! the ioctl form of a command ignores it. A union of equal-sized integers is one integer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One field of a uAPI struct: name, offset, size.
#[cfg(test)]
pub(super) type Field = (&'static str, usize, usize);

/// A uAPI struct as we lay it out, for the test that asks the C compiler.
#[cfg(test)]
pub(super) struct Layout {
    /// As C spells the type.
    pub(super) name: &'static str,
    /// The first kernel of those we test on (5.10, 6.1, 6.12, 7.2) that has it so, where that is after 6.1.
    pub(super) since: Option<&'static str>,
    pub(super) size: usize,
    pub(super) fields: &'static [Field],
}

/// Defines uAPI structs: `Rust = "C type" [size] { fields }`, optionally `since "release"` before the size.
macro_rules! wire {
    (@since) => { None };
    (@since $since:literal) => { Some($since) };
    ($table:ident; $($(#[$meta:meta])* $name:ident = $c:literal $(since $since:literal)? [$size:literal]
        { $($field:ident: $ty:ty,)* })*) => {
        $(
            #[doc = concat!("`", $c, "`.")]
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs, reason = "the fields are those of the uAPI header")]
            pub struct $name { $(pub $field: $ty,)* }

            const _: () = assert!(size_of::<$name>() == $size);

            impl Default for $name {
                fn default() -> $name {
                    zerocopy::FromZeros::new_zeroed()
                }
            }
        )*

        /// Every struct above, for the layout test.
        #[cfg(test)]
        pub(in crate::uapi) const $table: &[$crate::uapi::wire::Layout] = &[$($crate::uapi::wire::Layout {
            name: $c,
            since: wire!(@since $($since)?),
            size: size_of::<$name>(),
            fields: &[$((
                stringify!($field),
                core::mem::offset_of!($name, $field),
                $crate::uapi::wire::field_size(|s: &$name| &raw const s.$field),
            ),)*],
        },)*];
    };
}
pub(super) use wire;

/// The size of what `f` points at, without evaluating it.
#[cfg(test)]
pub(super) const fn field_size<S, F>(_f: fn(&S) -> *const F) -> usize {
    size_of::<F>()
}

wire! { LAYOUTS;
    // rdma_user_ioctl_cmds.h
    /// `data` is also `data_s64`; `attr_data` holds an enum's element id in its first byte.
    Attr = "struct ib_uverbs_attr" [16] {
        attr_id: u16,
        len: u16,
        flags: u16,
        attr_data: u16,
        data: u64,
    }
    IoctlHdr = "struct ib_uverbs_ioctl_hdr" [24] {
        length: u16,
        object_id: u16,
        method_id: u16,
        num_attrs: u16,
        reserved1: u64,
        driver_id: u32,
        reserved2: u32,
    }

    // ib_user_verbs.h: headers of the write form
    CmdHdr = "struct ib_uverbs_cmd_hdr" [8] {
        command: u32,
        in_words: u16,
        out_words: u16,
    }

    // Events, as read() returns them.
    AsyncEventDesc = "struct ib_uverbs_async_event_desc" [16] {
        element: u64,
        event_type: u32,
        reserved: u32,
    }
    CompEventDesc = "struct ib_uverbs_comp_event_desc" [8] {
        cq_handle: u64,
    }

    // Device.
    QueryDevice = "struct ib_uverbs_query_device" [8] {
        response: u64,
    }
    /// GUIDs are big-endian.
    QueryDeviceResp = "struct ib_uverbs_query_device_resp" [176] {
        fw_ver: u64,
        node_guid: [u8; 8],
        sys_image_guid: [u8; 8],
        max_mr_size: u64,
        page_size_cap: u64,
        vendor_id: u32,
        vendor_part_id: u32,
        hw_ver: u32,
        max_qp: u32,
        max_qp_wr: u32,
        device_cap_flags: u32,
        max_sge: u32,
        max_sge_rd: u32,
        max_cq: u32,
        max_cqe: u32,
        max_mr: u32,
        max_pd: u32,
        max_qp_rd_atom: u32,
        max_ee_rd_atom: u32,
        max_res_rd_atom: u32,
        max_qp_init_rd_atom: u32,
        max_ee_init_rd_atom: u32,
        atomic_cap: u32,
        max_ee: u32,
        max_rdd: u32,
        max_mw: u32,
        max_raw_ipv6_qp: u32,
        max_raw_ethy_qp: u32,
        max_mcast_grp: u32,
        max_mcast_qp_attach: u32,
        max_total_mcast_qp_attach: u32,
        max_ah: u32,
        max_fmr: u32,
        max_map_per_fmr: u32,
        max_srq: u32,
        max_srq_wr: u32,
        max_srq_sge: u32,
        max_pkeys: u16,
        local_ca_ack_delay: u8,
        phys_port_cnt: u8,
        reserved: [u8; 4],
    }
    ExQueryDevice = "struct ib_uverbs_ex_query_device" [8] {
        comp_mask: u32,
        reserved: u32,
    }
    /// `rc_odp_caps` to `ud_odp_caps` are the header's `per_transport_caps`.
    OdpCaps = "struct ib_uverbs_odp_caps" [24] {
        general_caps: u64,
        per_transport_caps: [u32; 3],
        reserved: u32,
    }
    RssCaps = "struct ib_uverbs_rss_caps" [16] {
        supported_qpts: u32,
        max_rwq_indirection_tables: u32,
        max_rwq_indirection_table_size: u32,
        reserved: u32,
    }
    TmCaps = "struct ib_uverbs_tm_caps" [24] {
        max_rndv_hdr_size: u32,
        max_num_tags: u32,
        flags: u32,
        max_ops: u32,
        max_sge: u32,
        reserved: u32,
    }
    CqModerationCaps = "struct ib_uverbs_cq_moderation_caps" [8] {
        max_cq_moderation_count: u16,
        max_cq_moderation_period: u16,
        reserved: u32,
    }
    ExQueryDeviceResp = "struct ib_uverbs_ex_query_device_resp" [304] {
        base: QueryDeviceResp,
        comp_mask: u32,
        response_length: u32,
        odp_caps: OdpCaps,
        timestamp_mask: u64,
        hca_core_clock: u64,
        device_cap_flags_ex: u64,
        rss_caps: RssCaps,
        max_wq_type_rq: u32,
        raw_packet_caps: u32,
        tm_caps: TmCaps,
        cq_moderation_caps: CqModerationCaps,
        max_dm_size: u64,
        xrc_odp_caps: u32,
        reserved: u32,
    }
    QueryPortResp = "struct ib_uverbs_query_port_resp" [40] {
        port_cap_flags: u32,
        max_msg_sz: u32,
        bad_pkey_cntr: u32,
        qkey_viol_cntr: u32,
        gid_tbl_len: u32,
        pkey_tbl_len: u16,
        lid: u16,
        sm_lid: u16,
        state: u8,
        max_mtu: u8,
        active_mtu: u8,
        lmc: u8,
        max_vl_num: u8,
        sm_sl: u8,
        subnet_timeout: u8,
        init_type_reply: u8,
        active_width: u8,
        active_speed: u8,
        phys_state: u8,
        link_layer: u8,
        flags: u8,
        reserved: u8,
    }
    /// `active_speed_ex` was reserved, and 0, before.
    QueryPortRespEx = "struct ib_uverbs_query_port_resp_ex" since "6.12" [48] {
        legacy_resp: QueryPortResp,
        port_cap_flags2: u16,
        reserved: [u8; 2],
        active_speed_ex: u32,
    }
    /// `gid` is 16 bytes in network order.
    GidEntry = "struct ib_uverbs_gid_entry" [32] {
        gid: [u8; 16],
        gid_index: u32,
        port_num: u32,
        gid_type: u32,
        netdev_ifindex: u32,
    }

    // Protection domains, XRC domains.
    AllocPd = "struct ib_uverbs_alloc_pd" [8] {
        response: u64,
    }
    AllocPdResp = "struct ib_uverbs_alloc_pd_resp" [4] {
        pd_handle: u32,
    }
    DeallocPd = "struct ib_uverbs_dealloc_pd" [4] {
        pd_handle: u32,
    }
    OpenXrcd = "struct ib_uverbs_open_xrcd" [16] {
        response: u64,
        fd: u32,
        oflags: u32,
    }
    OpenXrcdResp = "struct ib_uverbs_open_xrcd_resp" [4] {
        xrcd_handle: u32,
    }

    // Memory.
    RegMr = "struct ib_uverbs_reg_mr" [40] {
        response: u64,
        start: u64,
        length: u64,
        hca_va: u64,
        pd_handle: u32,
        access_flags: u32,
    }
    RegMrResp = "struct ib_uverbs_reg_mr_resp" [12] {
        mr_handle: u32,
        lkey: u32,
        rkey: u32,
    }
    ReregMr = "struct ib_uverbs_rereg_mr" [48] {
        response: u64,
        mr_handle: u32,
        flags: u32,
        start: u64,
        length: u64,
        hca_va: u64,
        pd_handle: u32,
        access_flags: u32,
    }
    ReregMrResp = "struct ib_uverbs_rereg_mr_resp" [8] {
        lkey: u32,
        rkey: u32,
    }
    AllocMw = "struct ib_uverbs_alloc_mw" [16] {
        response: u64,
        pd_handle: u32,
        mw_type: u8,
        reserved: [u8; 3],
    }
    AllocMwResp = "struct ib_uverbs_alloc_mw_resp" [8] {
        mw_handle: u32,
        rkey: u32,
    }
    Sge = "struct ib_uverbs_sge" [16] {
        addr: u64,
        length: u32,
        lkey: u32,
    }

    // Completion.
    CreateCompChannel = "struct ib_uverbs_create_comp_channel" [8] {
        response: u64,
    }
    CreateCompChannelResp = "struct ib_uverbs_create_comp_channel_resp" [4] {
        fd: u32,
    }
    ResizeCq = "struct ib_uverbs_resize_cq" [16] {
        response: u64,
        cq_handle: u32,
        cqe: u32,
    }
    ResizeCqResp = "struct ib_uverbs_resize_cq_resp" [8] {
        cqe: u32,
        reserved: u32,
    }
    /// A completion, in the answer of `POLL_CQ` and in rxe's mapped CQ. `ex` is `imm_data` (network order) or
    /// `invalidate_rkey`.
    Wc = "struct ib_uverbs_wc" [48] {
        wr_id: u64,
        status: u32,
        opcode: u32,
        vendor_err: u32,
        byte_len: u32,
        ex: u32,
        qp_num: u32,
        src_qp: u32,
        wc_flags: u32,
        pkey_index: u16,
        slid: u16,
        sl: u8,
        dlid_path_bits: u8,
        port_num: u8,
        reserved: u8,
    }
    ReqNotifyCq = "struct ib_uverbs_req_notify_cq" [8] {
        cq_handle: u32,
        solicited_only: u32,
    }
    DestroyCqResp = "struct ib_uverbs_destroy_cq_resp" [8] {
        comp_events_reported: u32,
        async_events_reported: u32,
    }
    CqModeration = "struct ib_uverbs_cq_moderation" [4] {
        cq_count: u16,
        cq_period: u16,
    }
    ExModifyCq = "struct ib_uverbs_ex_modify_cq" [16] {
        cq_handle: u32,
        attr_mask: u32,
        attr: CqModeration,
        reserved: u32,
    }

    // Addressing.
    GlobalRoute = "struct ib_uverbs_global_route" [24] {
        dgid: [u8; 16],
        flow_label: u32,
        sgid_index: u8,
        hop_limit: u8,
        traffic_class: u8,
        reserved: u8,
    }
    AhAttr = "struct ib_uverbs_ah_attr" [32] {
        grh: GlobalRoute,
        dlid: u16,
        sl: u8,
        src_path_bits: u8,
        static_rate: u8,
        is_global: u8,
        port_num: u8,
        reserved: u8,
    }
    CreateAh = "struct ib_uverbs_create_ah" [56] {
        response: u64,
        user_handle: u64,
        pd_handle: u32,
        reserved: u32,
        attr: AhAttr,
    }
    CreateAhResp = "struct ib_uverbs_create_ah_resp" [4] {
        ah_handle: u32,
    }
    AttachMcast = "struct ib_uverbs_attach_mcast" [24] {
        gid: [u8; 16],
        qp_handle: u32,
        mlid: u16,
        reserved: u16,
    }

    // Queue pairs.
    QpCap = "struct ib_uverbs_qp_cap" [20] {
        max_send_wr: u32,
        max_recv_wr: u32,
        max_send_sge: u32,
        max_recv_sge: u32,
        max_inline_data: u32,
    }
    OpenQp = "struct ib_uverbs_open_qp" [32] {
        response: u64,
        user_handle: u64,
        pd_handle: u32,
        qpn: u32,
        qp_type: u8,
        reserved: [u8; 7],
    }
    CreateQpResp = "struct ib_uverbs_create_qp_resp" [32] {
        qp_handle: u32,
        qpn: u32,
        max_send_wr: u32,
        max_recv_wr: u32,
        max_send_sge: u32,
        max_recv_sge: u32,
        max_inline_data: u32,
        reserved: u32,
    }
    QpDest = "struct ib_uverbs_qp_dest" [32] {
        dgid: [u8; 16],
        flow_label: u32,
        dlid: u16,
        reserved: u16,
        sgid_index: u8,
        hop_limit: u8,
        traffic_class: u8,
        sl: u8,
        src_path_bits: u8,
        static_rate: u8,
        is_global: u8,
        port_num: u8,
    }
    QueryQp = "struct ib_uverbs_query_qp" [16] {
        response: u64,
        qp_handle: u32,
        attr_mask: u32,
    }
    QueryQpResp = "struct ib_uverbs_query_qp_resp" [128] {
        dest: QpDest,
        alt_dest: QpDest,
        max_send_wr: u32,
        max_recv_wr: u32,
        max_send_sge: u32,
        max_recv_sge: u32,
        max_inline_data: u32,
        qkey: u32,
        rq_psn: u32,
        sq_psn: u32,
        dest_qp_num: u32,
        qp_access_flags: u32,
        pkey_index: u16,
        alt_pkey_index: u16,
        qp_state: u8,
        cur_qp_state: u8,
        path_mtu: u8,
        path_mig_state: u8,
        sq_draining: u8,
        max_rd_atomic: u8,
        max_dest_rd_atomic: u8,
        min_rnr_timer: u8,
        port_num: u8,
        timeout: u8,
        retry_cnt: u8,
        rnr_retry: u8,
        alt_port_num: u8,
        alt_timeout: u8,
        sq_sig_all: u8,
        reserved: [u8; 5],
    }
    ModifyQp = "struct ib_uverbs_modify_qp" [112] {
        dest: QpDest,
        alt_dest: QpDest,
        qp_handle: u32,
        attr_mask: u32,
        qkey: u32,
        rq_psn: u32,
        sq_psn: u32,
        dest_qp_num: u32,
        qp_access_flags: u32,
        pkey_index: u16,
        alt_pkey_index: u16,
        qp_state: u8,
        cur_qp_state: u8,
        path_mtu: u8,
        path_mig_state: u8,
        en_sqd_async_notify: u8,
        max_rd_atomic: u8,
        max_dest_rd_atomic: u8,
        min_rnr_timer: u8,
        port_num: u8,
        timeout: u8,
        retry_cnt: u8,
        rnr_retry: u8,
        alt_port_num: u8,
        alt_timeout: u8,
        reserved: [u8; 2],
    }
    ExModifyQp = "struct ib_uverbs_ex_modify_qp" [120] {
        base: ModifyQp,
        rate_limit: u32,
        reserved: u32,
    }
    ExModifyQpResp = "struct ib_uverbs_ex_modify_qp_resp" [8] {
        comp_mask: u32,
        response_length: u32,
    }
    DestroyQpResp = "struct ib_uverbs_destroy_qp_resp" [4] {
        events_reported: u32,
    }
    /// Only its size is of use here: `wqe_size` of [`PostSend`].
    SendWr = "struct ib_uverbs_send_wr" [56] {
        wr_id: u64,
        num_sge: u32,
        opcode: u32,
        send_flags: u32,
        ex: u32,
        wr: [u64; 4],
    }
    PostSend = "struct ib_uverbs_post_send" [24] {
        response: u64,
        qp_handle: u32,
        wr_count: u32,
        sge_count: u32,
        wqe_size: u32,
    }
    PostSendResp = "struct ib_uverbs_post_send_resp" [4] {
        bad_wr: u32,
    }

    // Shared receive queues.
    ModifySrq = "struct ib_uverbs_modify_srq" [16] {
        srq_handle: u32,
        attr_mask: u32,
        max_wr: u32,
        srq_limit: u32,
    }
    QuerySrq = "struct ib_uverbs_query_srq" [16] {
        response: u64,
        srq_handle: u32,
        reserved: u32,
    }
    QuerySrqResp = "struct ib_uverbs_query_srq_resp" [16] {
        max_wr: u32,
        max_sge: u32,
        srq_limit: u32,
        reserved: u32,
    }
    DestroySrqResp = "struct ib_uverbs_destroy_srq_resp" [4] {
        events_reported: u32,
    }

    // Work queues and indirection tables.
    ExDestroyWqResp = "struct ib_uverbs_ex_destroy_wq_resp" [16] {
        comp_mask: u32,
        response_length: u32,
        events_reported: u32,
        reserved: u32,
    }
    ExModifyWq = "struct ib_uverbs_ex_modify_wq" [24] {
        attr_mask: u32,
        wq_handle: u32,
        wq_state: u32,
        curr_wq_state: u32,
        flags: u32,
        flags_mask: u32,
    }
    ExCreateRwqIndTable = "struct ib_uverbs_ex_create_rwq_ind_table" [8] {
        comp_mask: u32,
        log_ind_tbl_size: u32,
    }
    ExCreateRwqIndTableResp = "struct ib_uverbs_ex_create_rwq_ind_table_resp" [16] {
        comp_mask: u32,
        response_length: u32,
        ind_tbl_handle: u32,
        ind_tbl_num: u32,
    }

    // Flow steering.
    FlowAttr = "struct ib_uverbs_flow_attr" [16] {
        r#type: u32,
        size: u16,
        priority: u16,
        num_of_specs: u8,
        reserved: [u8; 2],
        port: u8,
        flags: u32,
    }
    CreateFlow = "struct ib_uverbs_create_flow" [24] {
        comp_mask: u32,
        qp_handle: u32,
        flow_attr: FlowAttr,
    }
    CreateFlowResp = "struct ib_uverbs_create_flow_resp" [8] {
        comp_mask: u32,
        flow_handle: u32,
    }
}
