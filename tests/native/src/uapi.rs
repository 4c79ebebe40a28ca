//! The uAPI: numbers and structs of `<rdma/ib_user_ioctl_cmds.h>`, `<rdma/ib_user_verbs.h>` and `<rdma/mlx5-abi.h>`.
//!
//! Written down a second time, not taken from the provider under test, so that a number which is wrong there is wrong
//! here only by the same mistake made twice. Stock libmlx5 is the judge of both.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `RDMA_VERBS_IOCTL`.
pub(crate) const RDMA_VERBS_IOCTL: u64 = 0xc018_1b01;

/// `UVERBS_OBJECT_*` and `MLX5_IB_OBJECT_*`.
pub(crate) mod object {
    pub(crate) const DEVICE: u16 = 0;
    pub(crate) const PD: u16 = 1;
    pub(crate) const CQ: u16 = 3;
    pub(crate) const QP: u16 = 4;
    pub(crate) const SRQ: u16 = 5;
    pub(crate) const AH: u16 = 6;
    pub(crate) const MR: u16 = 7;
    pub(crate) const MW: u16 = 8;
    pub(crate) const XRCD: u16 = 10;
    pub(crate) const ASYNC_EVENT: u16 = 16;
    pub(crate) const DEVX: u16 = 0x1000;
    pub(crate) const UAR: u16 = 0x1008;
}

/// `UVERBS_METHOD_*` and `MLX5_IB_METHOD_*`, by object.
pub(crate) mod method {
    pub(crate) const INVOKE_WRITE: u16 = 0;
    pub(crate) const QUERY_PORT: u16 = 2;
    pub(crate) const GET_CONTEXT: u16 = 3;
    pub(crate) const QUERY_CONTEXT: u16 = 4;
    pub(crate) const QUERY_GID_TABLE: u16 = 5;
    pub(crate) const QUERY_GID_ENTRY: u16 = 6;
    /// Of completion queues, queue pairs and shared receive queues.
    pub(crate) const CREATE: u16 = 0;
    pub(crate) const DESTROY: u16 = 1;
    pub(crate) const PD_DESTROY: u16 = 0;
    pub(crate) const PD_QUERY: u16 = 0x1000;
    pub(crate) const MR_DESTROY: u16 = 1;
    pub(crate) const QUERY_MR: u16 = 3;
    pub(crate) const MW_DESTROY: u16 = 0;
    pub(crate) const AH_DESTROY: u16 = 0;
    pub(crate) const XRCD_DESTROY: u16 = 0;
    pub(crate) const ASYNC_EVENT_ALLOC: u16 = 0;
    pub(crate) const UAR_OBJ_ALLOC: u16 = 0x1000;
    pub(crate) const UAR_OBJ_DESTROY: u16 = 0x1001;
    pub(crate) const DEVX_OTHER: u16 = 0x1000;
}

/// `UVERBS_ATTR_*` and `MLX5_IB_ATTR_*`, by method.
pub(crate) mod attr {
    pub(crate) const UHW_IN: u16 = 0x1000;
    pub(crate) const UHW_OUT: u16 = 0x1001;
    pub(crate) const CORE_IN: u16 = 0;
    pub(crate) const CORE_OUT: u16 = 1;
    pub(crate) const WRITE_CMD: u16 = 2;
    pub(crate) const QUERY_PORT_PORT_NUM: u16 = 0;
    pub(crate) const QUERY_PORT_RESP: u16 = 1;
    /// Of GET_CONTEXT and QUERY_CONTEXT.
    pub(crate) const CONTEXT_NUM_COMP_VECTORS: u16 = 0;
    pub(crate) const CONTEXT_CORE_SUPPORT: u16 = 1;
    pub(crate) const QUERY_CONTEXT_RESP_UCTX: u16 = 0x1000;
    pub(crate) const QUERY_GID_TABLE_ENTRY_SIZE: u16 = 0;
    pub(crate) const QUERY_GID_TABLE_RESP_ENTRIES: u16 = 2;
    pub(crate) const QUERY_GID_TABLE_RESP_NUM_ENTRIES: u16 = 3;
    pub(crate) const QUERY_GID_ENTRY_PORT: u16 = 0;
    pub(crate) const QUERY_GID_ENTRY_GID_INDEX: u16 = 1;
    pub(crate) const QUERY_GID_ENTRY_RESP_ENTRY: u16 = 3;
    pub(crate) const CREATE_CQ_HANDLE: u16 = 0;
    pub(crate) const CREATE_CQ_CQE: u16 = 1;
    pub(crate) const CREATE_CQ_USER_HANDLE: u16 = 2;
    pub(crate) const CREATE_CQ_COMP_CHANNEL: u16 = 3;
    pub(crate) const CREATE_CQ_COMP_VECTOR: u16 = 4;
    pub(crate) const CREATE_CQ_FLAGS: u16 = 5;
    pub(crate) const CREATE_CQ_RESP_CQE: u16 = 6;
    pub(crate) const CREATE_CQ_EVENT_FD: u16 = 7;
    pub(crate) const CREATE_QP_HANDLE: u16 = 0;
    pub(crate) const CREATE_QP_XRCD_HANDLE: u16 = 1;
    pub(crate) const CREATE_QP_PD_HANDLE: u16 = 2;
    pub(crate) const CREATE_QP_SRQ_HANDLE: u16 = 3;
    pub(crate) const CREATE_QP_SEND_CQ_HANDLE: u16 = 4;
    pub(crate) const CREATE_QP_RECV_CQ_HANDLE: u16 = 5;
    pub(crate) const CREATE_QP_USER_HANDLE: u16 = 7;
    pub(crate) const CREATE_QP_CAP: u16 = 8;
    pub(crate) const CREATE_QP_TYPE: u16 = 9;
    pub(crate) const CREATE_QP_FLAGS: u16 = 10;
    pub(crate) const CREATE_QP_EVENT_FD: u16 = 12;
    pub(crate) const CREATE_QP_RESP_CAP: u16 = 13;
    pub(crate) const CREATE_QP_RESP_QP_NUM: u16 = 14;
    pub(crate) const CREATE_SRQ_HANDLE: u16 = 0;
    pub(crate) const CREATE_SRQ_PD_HANDLE: u16 = 1;
    pub(crate) const CREATE_SRQ_XRCD_HANDLE: u16 = 2;
    pub(crate) const CREATE_SRQ_CQ_HANDLE: u16 = 3;
    pub(crate) const CREATE_SRQ_USER_HANDLE: u16 = 4;
    pub(crate) const CREATE_SRQ_MAX_WR: u16 = 5;
    pub(crate) const CREATE_SRQ_MAX_SGE: u16 = 6;
    pub(crate) const CREATE_SRQ_LIMIT: u16 = 7;
    pub(crate) const CREATE_SRQ_TYPE: u16 = 9;
    pub(crate) const CREATE_SRQ_EVENT_FD: u16 = 10;
    pub(crate) const CREATE_SRQ_RESP_MAX_WR: u16 = 11;
    pub(crate) const CREATE_SRQ_RESP_MAX_SGE: u16 = 12;
    pub(crate) const CREATE_SRQ_RESP_SRQ_NUM: u16 = 13;
    /// Of every destroy method of the core.
    pub(crate) const DESTROY_HANDLE: u16 = 0;
    pub(crate) const DESTROY_RESP: u16 = 1;
    pub(crate) const QUERY_MR_HANDLE: u16 = 0;
    pub(crate) const QUERY_MR_RESP_LKEY: u16 = 1;
    pub(crate) const QUERY_MR_RESP_RKEY: u16 = 2;
    pub(crate) const QUERY_MR_RESP_LENGTH: u16 = 3;
    pub(crate) const QUERY_MR_RESP_IOVA: u16 = 4;
    pub(crate) const QUERY_PD_HANDLE: u16 = 0x1000;
    pub(crate) const QUERY_PD_RESP_PDN: u16 = 0x1001;
    pub(crate) const ASYNC_EVENT_ALLOC_FD_HANDLE: u16 = 0;
    pub(crate) const UAR_OBJ_ALLOC_HANDLE: u16 = 0x1000;
    pub(crate) const UAR_OBJ_ALLOC_TYPE: u16 = 0x1001;
    pub(crate) const UAR_OBJ_ALLOC_MMAP_OFFSET: u16 = 0x1002;
    pub(crate) const UAR_OBJ_ALLOC_MMAP_LENGTH: u16 = 0x1003;
    pub(crate) const UAR_OBJ_ALLOC_PAGE_ID: u16 = 0x1004;
    pub(crate) const UAR_OBJ_DESTROY_HANDLE: u16 = 0x1000;
    pub(crate) const DEVX_OTHER_CMD_OUT: u16 = 0x1001;
}

/// `IB_USER_VERBS_CMD_*`; those called `EX_` have the flag of extended commands.
pub(crate) mod write {
    pub(crate) const EXTENDED: u32 = 0x8000_0000;
    pub(crate) const GET_CONTEXT: u32 = 0;
    pub(crate) const QUERY_DEVICE: u32 = 1;
    pub(crate) const QUERY_PORT: u32 = 2;
    pub(crate) const ALLOC_PD: u32 = 3;
    pub(crate) const DEALLOC_PD: u32 = 4;
    pub(crate) const CREATE_AH: u32 = 5;
    pub(crate) const DESTROY_AH: u32 = 8;
    pub(crate) const REG_MR: u32 = 9;
    pub(crate) const REREG_MR: u32 = 11;
    pub(crate) const DEREG_MR: u32 = 13;
    pub(crate) const ALLOC_MW: u32 = 14;
    pub(crate) const DEALLOC_MW: u32 = 16;
    pub(crate) const CREATE_COMP_CHANNEL: u32 = 17;
    pub(crate) const RESIZE_CQ: u32 = 19;
    pub(crate) const DESTROY_CQ: u32 = 20;
    pub(crate) const QUERY_QP: u32 = 25;
    pub(crate) const MODIFY_QP: u32 = 26;
    pub(crate) const DESTROY_QP: u32 = 27;
    pub(crate) const ATTACH_MCAST: u32 = 30;
    pub(crate) const DETACH_MCAST: u32 = 31;
    pub(crate) const MODIFY_SRQ: u32 = 33;
    pub(crate) const QUERY_SRQ: u32 = 34;
    pub(crate) const DESTROY_SRQ: u32 = 35;
    pub(crate) const OPEN_XRCD: u32 = 37;
    pub(crate) const CLOSE_XRCD: u32 = 38;
    pub(crate) const OPEN_QP: u32 = 40;
    pub(crate) const EX_QUERY_DEVICE: u32 = EXTENDED | QUERY_DEVICE;
    pub(crate) const EX_MODIFY_QP: u32 = EXTENDED | MODIFY_QP;
    pub(crate) const EX_MODIFY_CQ: u32 = EXTENDED | 57;
}

/// `IB_EVENT_*`.
pub(crate) mod event {
    pub(crate) const CQ_ERR: u32 = 0;
    pub(crate) const QP_FATAL: u32 = 1;
    pub(crate) const QP_REQ_ERR: u32 = 2;
    pub(crate) const QP_ACCESS_ERR: u32 = 3;
    pub(crate) const COMM_EST: u32 = 4;
    pub(crate) const SQ_DRAINED: u32 = 5;
    pub(crate) const DEVICE_FATAL: u32 = 8;
    pub(crate) const PORT_ACTIVE: u32 = 9;
    pub(crate) const PORT_ERR: u32 = 10;
    pub(crate) const LID_CHANGE: u32 = 11;
    pub(crate) const SRQ_ERR: u32 = 14;
    pub(crate) const SRQ_LIMIT_REACHED: u32 = 15;
    pub(crate) const QP_LAST_WQE_REACHED: u32 = 16;
}

/// `IB_ACCESS_*`.
pub(crate) mod access {
    pub(crate) const LOCAL_WRITE: u32 = 1 << 0;
    pub(crate) const REMOTE_WRITE: u32 = 1 << 1;
    pub(crate) const REMOTE_READ: u32 = 1 << 2;
    pub(crate) const REMOTE_ATOMIC: u32 = 1 << 3;
    pub(crate) const ON_DEMAND: u32 = 1 << 6;
    /// The flags that a device may ignore.
    pub(crate) const OPTIONAL: u32 = 0x3ff0_0000;
    /// Those that a kernel knows.
    pub(crate) const KNOWN: u32 = 0xff | OPTIONAL;
}

/// `IB_QP_*`: which attributes a modify command has.
pub(crate) mod qp_attr {
    pub(crate) const STATE: u32 = 1 << 0;
    pub(crate) const CUR_STATE: u32 = 1 << 1;
    pub(crate) const EN_SQD_ASYNC_NOTIFY: u32 = 1 << 2;
    pub(crate) const ACCESS_FLAGS: u32 = 1 << 3;
    pub(crate) const PKEY_INDEX: u32 = 1 << 4;
    pub(crate) const PORT: u32 = 1 << 5;
    pub(crate) const QKEY: u32 = 1 << 6;
    pub(crate) const AV: u32 = 1 << 7;
    pub(crate) const PATH_MTU: u32 = 1 << 8;
    pub(crate) const TIMEOUT: u32 = 1 << 9;
    pub(crate) const RETRY_CNT: u32 = 1 << 10;
    pub(crate) const RNR_RETRY: u32 = 1 << 11;
    pub(crate) const RQ_PSN: u32 = 1 << 12;
    pub(crate) const MAX_QP_RD_ATOMIC: u32 = 1 << 13;
    pub(crate) const ALT_PATH: u32 = 1 << 14;
    pub(crate) const MIN_RNR_TIMER: u32 = 1 << 15;
    pub(crate) const SQ_PSN: u32 = 1 << 16;
    pub(crate) const MAX_DEST_RD_ATOMIC: u32 = 1 << 17;
    pub(crate) const PATH_MIG_STATE: u32 = 1 << 18;
    pub(crate) const DEST_QPN: u32 = 1 << 20;
}

/// `IB_QPT_*`.
pub(crate) mod qp_type {
    pub(crate) const RC: u64 = 2;
    pub(crate) const UC: u64 = 3;
    pub(crate) const UD: u64 = 4;
    pub(crate) const XRC_INI: u64 = 9;
    pub(crate) const XRC_TGT: u64 = 10;
}

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident [$size:literal] { $($field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

structs! {
    /// `struct ib_uverbs_query_device_resp`.
    QueryDeviceResp [176] {
        fw_ver: u64,
        node_guid: u64,
        sys_image_guid: u64,
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
    /// `struct ib_uverbs_ex_query_device_resp`.
    ExQueryDeviceResp [304] {
        base: QueryDeviceResp,
        comp_mask: u32,
        response_length: u32,
        odp_general_caps: u64,
        odp_transport_caps: [u32; 3],
        odp_reserved: u32,
        timestamp_mask: u64,
        hca_core_clock: u64,
        device_cap_flags_ex: u64,
        rss_supported_qpts: u32,
        rss_max_rwq_indirection_tables: u32,
        rss_max_rwq_indirection_table_size: u32,
        rss_reserved: u32,
        max_wq_type_rq: u32,
        raw_packet_caps: u32,
        tm_caps: [u32; 6],
        cq_moderation_caps: [u32; 2],
        max_dm_size: u64,
        xrc_odp_caps: u32,
        reserved: u32,
    }
    /// `struct ib_uverbs_query_port`.
    QueryPort [16] {
        response: u64,
        port_num: u8,
        reserved: [u8; 7],
    }
    /// `struct ib_uverbs_query_port_resp`, and `struct ib_uverbs_query_port_resp_ex` with the last fields.
    QueryPortResp [48] {
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
        port_cap_flags2: u16,
        reserved2: [u8; 2],
        active_speed_ex: u32,
    }
    /// `struct mlx5_ib_alloc_ucontext_req_v2`.
    AllocUcontextReq [32] {
        total_num_bfregs: u32,
        num_low_latency_bfregs: u32,
        flags: u32,
        comp_mask: u32,
        max_cqe_version: u8,
        reserved: [u8; 7],
        lib_caps: u64,
    }
    /// `struct mlx5_ib_alloc_ucontext_resp`.
    AllocUcontextResp [72] {
        qp_tab_size: u32,
        bf_reg_size: u32,
        tot_bfregs: u32,
        cache_line_size: u32,
        max_sq_desc_sz: u16,
        max_rq_desc_sz: u16,
        max_send_wqebb: u32,
        max_recv_wr: u32,
        max_srq_recv_wr: u32,
        num_ports: u16,
        flow_action_flags: u16,
        comp_mask: u32,
        response_length: u32,
        cqe_version: u8,
        cmds_supp_uhw: u8,
        eth_min_inline: u8,
        clock_info_versions: u8,
        hca_core_clock_offset: u64,
        log_uar_size: u32,
        num_uars_per_page: u32,
        num_dyn_bfregs: u32,
        dump_fill_mkey: u32,
    }
    /// `struct ib_uverbs_alloc_pd_resp`.
    AllocPdResp [4] { pd_handle: u32, }
    /// `struct mlx5_ib_alloc_pd_resp`.
    Mlx5AllocPdResp [4] { pdn: u32, }
    /// `struct ib_uverbs_reg_mr`.
    RegMr [40] {
        response: u64,
        start: u64,
        length: u64,
        hca_va: u64,
        pd_handle: u32,
        access_flags: u32,
    }
    /// `struct ib_uverbs_reg_mr_resp`.
    RegMrResp [12] {
        mr_handle: u32,
        lkey: u32,
        rkey: u32,
    }
    /// `struct ib_uverbs_rereg_mr`.
    ReregMr [48] {
        response: u64,
        mr_handle: u32,
        flags: u32,
        start: u64,
        length: u64,
        hca_va: u64,
        pd_handle: u32,
        access_flags: u32,
    }
    /// `struct ib_uverbs_rereg_mr_resp`.
    ReregMrResp [8] { lkey: u32, rkey: u32, }
    /// `struct ib_uverbs_alloc_mw`.
    AllocMw [16] {
        response: u64,
        pd_handle: u32,
        mw_type: u8,
        reserved: [u8; 3],
    }
    /// `struct ib_uverbs_alloc_mw_resp`.
    AllocMwResp [8] { mw_handle: u32, rkey: u32, }
    /// `struct mlx5_ib_alloc_mw`.
    Mlx5AllocMw [8] {
        comp_mask: u32,
        num_klms: u8,
        reserved1: u8,
        reserved2: u16,
    }
    /// `struct ib_uverbs_create_comp_channel_resp`.
    CreateCompChannelResp [4] { fd: u32, }
    /// `struct ib_uverbs_get_context_resp`.
    GetContextResp [8] { async_fd: u32, num_comp_vectors: u32, }
    /// `struct ib_uverbs_create_ah`.
    CreateAh [56] {
        response: u64,
        user_handle: u64,
        pd_handle: u32,
        reserved: u32,
        grh: [u8; 24],
        dlid: u16,
        sl: u8,
        src_path_bits: u8,
        static_rate: u8,
        is_global: u8,
        port_num: u8,
        reserved2: u8,
    }
    /// `struct ib_uverbs_create_ah_resp`.
    CreateAhResp [4] { ah_handle: u32, }
    /// The commands of the write form that destroy an object: response (where there is an answer), handle, reserved.
    Destroy [16] { response: u64, handle: u32, reserved: u32, }
    /// `struct ib_uverbs_resize_cq`.
    ResizeCq [16] { response: u64, cq_handle: u32, cqe: u32, }
    /// `struct ib_uverbs_resize_cq_resp`.
    ResizeCqResp [8] { cqe: u32, reserved: u32, }
    /// `struct mlx5_ib_resize_cq`.
    Mlx5ResizeCq [16] {
        buf_addr: u64,
        cqe_size: u16,
        reserved0: u16,
        reserved1: u32,
    }
    /// `struct ib_uverbs_ex_modify_cq`.
    ExModifyCq [16] {
        cq_handle: u32,
        attr_mask: u32,
        cq_count: u16,
        cq_period: u16,
        reserved: u32,
    }
    /// `struct ib_uverbs_query_qp` and `struct ib_uverbs_query_srq`.
    Query [16] { response: u64, handle: u32, attr_mask: u32, }
    /// `struct ib_uverbs_query_qp_resp`.
    QueryQpResp [128] {
        dest: QpDest,
        alt_dest: QpDest,
        cap: QpCap,
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
    /// `struct ib_uverbs_attach_mcast` and `struct ib_uverbs_detach_mcast`.
    Multicast [24] {
        gid: [u8; 16],
        qp_handle: u32,
        mlid: u16,
        reserved: u16,
    }
    /// `struct ib_uverbs_modify_srq`.
    ModifySrq [16] {
        srq_handle: u32,
        attr_mask: u32,
        max_wr: u32,
        srq_limit: u32,
    }
    /// `struct ib_uverbs_query_srq_resp`.
    QuerySrqResp [16] {
        max_wr: u32,
        max_sge: u32,
        srq_limit: u32,
        reserved: u32,
    }
    /// `struct mlx5_ib_create_srq`.
    Mlx5CreateSrq [32] {
        buf_addr: u64,
        db_addr: u64,
        flags: u32,
        reserved0: u32,
        uidx: u32,
        reserved1: u32,
    }
    /// `struct mlx5_ib_create_srq_resp`.
    Mlx5CreateSrqResp [8] { srqn: u32, reserved: u32, }
    /// `struct ib_uverbs_open_xrcd`.
    OpenXrcd [16] { response: u64, fd: i32, oflags: u32, }
    /// `struct ib_uverbs_open_xrcd_resp`.
    OpenXrcdResp [4] { xrcd_handle: u32, }
    /// `struct ib_uverbs_open_qp`; its `pd_handle` names an XRC domain.
    OpenQp [32] {
        response: u64,
        user_handle: u64,
        pd_handle: u32,
        qpn: u32,
        qp_type: u8,
        reserved: [u8; 7],
    }
    /// `struct ib_uverbs_create_qp_resp`.
    CreateQpResp [32] {
        qp_handle: u32,
        qpn: u32,
        cap: QpCap,
        reserved: u32,
    }
    /// `struct ib_uverbs_gid_entry`.
    GidEntry [32] {
        gid: [u8; 16],
        gid_index: u32,
        port_num: u32,
        gid_type: u32,
        netdev_ifindex: u32,
    }
    /// `struct mlx5_ib_clock_info`.
    ClockInfo [56] {
        sign: u32,
        resv: u32,
        nsec: u64,
        cycles: u64,
        frac: u64,
        mult: u32,
        shift: u32,
        mask: u64,
        overflow_period: u64,
    }
    /// `struct mlx5_ib_create_cq`.
    Mlx5CreateCq [32] {
        buf_addr: u64,
        db_addr: u64,
        cqe_size: u32,
        cqe_comp_en: u8,
        cqe_comp_res_format: u8,
        flags: u16,
        uar_page_index: u16,
        reserved0: u16,
        reserved1: u32,
    }
    /// `struct mlx5_ib_create_cq_resp`.
    Mlx5CreateCqResp [8] { cqn: u32, reserved: u32, }
    /// `struct ib_uverbs_qp_cap`.
    QpCap [20] {
        max_send_wr: u32,
        max_recv_wr: u32,
        max_send_sge: u32,
        max_recv_sge: u32,
        max_inline_data: u32,
    }
    /// `struct mlx5_ib_create_qp`.
    Mlx5CreateQp [56] {
        buf_addr: u64,
        db_addr: u64,
        sq_wqe_count: u32,
        rq_wqe_count: u32,
        rq_wqe_shift: u32,
        flags: u32,
        uidx: u32,
        bfreg_index: u32,
        sq_buf_addr: u64,
        ece_options: u32,
        dci_streams: u32,
    }
    /// `struct mlx5_ib_create_qp_resp`.
    Mlx5CreateQpResp [40] {
        bfreg_index: u32,
        ece_options: u32,
        comp_mask: u32,
        tirn: u32,
        tisn: u32,
        rqn: u32,
        sqn: u32,
        reserved1: u32,
        tir_icm_addr: u64,
    }
    /// `struct ib_uverbs_qp_dest`.
    QpDest [32] {
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
    /// `struct ib_uverbs_modify_qp`.
    ModifyQp [112] {
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
    /// `struct ib_uverbs_ex_modify_qp_resp`.
    ExModifyQpResp [8] { comp_mask: u32, response_length: u32, }
    /// `struct mlx5_ib_modify_qp_resp`.
    Mlx5ModifyQpResp [16] {
        response_length: u32,
        dctn: u32,
        ece_options: u32,
        reserved: u32,
    }
    /// `struct ib_uverbs_destroy_cq_resp`.
    DestroyCqResp [8] {
        comp_events_reported: u32,
        async_events_reported: u32,
    }
    /// `struct ib_uverbs_destroy_qp_resp`, and those of shared receive queues.
    DestroyResp [4] { events_reported: u32, }
}
