//! The structs of `<rdma/mlx5-abi.h>`, the driver data of mlx5, and its own ioctl methods.
//!
//! What a release added is at the end of a struct: older kernels take fewer bytes and answer fewer. A request's tail that is
//! 0 is taken by all of them, an answer's tail that they do not write is 0.

use super::sys::Command;
use super::wire::wire;
use super::{CmdFd, Handle, Udata, device, ids};
use crate::error::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `MLX5_LIB_CAP_4K_UAR`.
pub const LIB_CAP_4K_UAR: u64 = 1 << 0;
/// `MLX5_LIB_CAP_DYN_UAR`.
pub const LIB_CAP_DYN_UAR: u64 = 1 << 1;

/// `MLX5_IB_ALLOC_UCTX_DEVX`.
pub const ALLOC_UCTX_DEVX: u32 = 1 << 0;

/// `MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_CORE_CLOCK_OFFSET`.
pub const RESP_MASK_CORE_CLOCK_OFFSET: u32 = 1 << 0;
/// `MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_DUMP_FILL_MKEY`.
pub const RESP_MASK_DUMP_FILL_MKEY: u32 = 1 << 1;
/// `MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_ECE`.
pub const RESP_MASK_ECE: u32 = 1 << 2;
/// `MLX5_IB_ALLOC_UCONTEXT_RESP_MASK_REAL_TIME_TS`.
pub const RESP_MASK_REAL_TIME_TS: u32 = 1 << 4;

/// `MLX5_USER_CMDS_SUPP_UHW_QUERY_DEVICE`.
pub const UHW_QUERY_DEVICE: u8 = 1 << 0;
/// `MLX5_USER_CMDS_SUPP_UHW_CREATE_AH`.
pub const UHW_CREATE_AH: u8 = 1 << 1;

/// `MLX5_USER_INLINE_MODE_NONE` of `eth_min_inline`.
pub const INLINE_MODE_NONE: u8 = 1;

/// `MLX5_QP_FLAG_SIGNATURE`.
pub const QP_FLAG_SIGNATURE: u32 = 1 << 0;
/// `MLX5_QP_FLAG_SCATTER_CQE`.
pub const QP_FLAG_SCATTER_CQE: u32 = 1 << 1;
/// `MLX5_QP_FLAG_BFREG_INDEX`.
pub const QP_FLAG_BFREG_INDEX: u32 = 1 << 3;
/// `MLX5_QP_FLAG_UAR_PAGE_INDEX`.
pub const QP_FLAG_UAR_PAGE_INDEX: u32 = 1 << 10;

/// `MLX5_IB_CREATE_CQ_FLAGS_UAR_PAGE_INDEX`.
pub const CREATE_CQ_FLAGS_UAR_PAGE_INDEX: u16 = 1 << 1;
/// `MLX5_IB_CREATE_CQ_FLAGS_REAL_TIME_TS`.
pub const CREATE_CQ_FLAGS_REAL_TIME_TS: u16 = 1 << 2;

/// `MLX5_IB_MMAP_REGULAR_PAGE`.
pub const MMAP_REGULAR_PAGE: u64 = 0;
/// `MLX5_IB_MMAP_NC_PAGE`.
pub const MMAP_NC_PAGE: u64 = 3;
/// `MLX5_IB_MMAP_CORE_CLOCK`.
pub const MMAP_CORE_CLOCK: u64 = 5;
/// `MLX5_IB_MMAP_CLOCK_INFO`.
pub const MMAP_CLOCK_INFO: u64 = 7;
/// `MLX5_IB_MMAP_DEVICE_MEM`.
pub const MMAP_DEVICE_MEM: u64 = 8;

/// `MLX5_IB_CLOCK_INFO_V1`, a bit's number in `clock_info_versions`.
pub const CLOCK_INFO_V1: u32 = 0;
/// `MLX5_IB_CLOCK_INFO_KERNEL_UPDATING` of [`ClockInfo::sign`].
pub const CLOCK_INFO_KERNEL_UPDATING: u32 = 1;

/// `MLX5_IB_UAPI_UAR_ALLOC_TYPE_BF`.
pub const UAR_ALLOC_TYPE_BF: u64 = 0;
/// `MLX5_IB_UAPI_UAR_ALLOC_TYPE_NC`.
pub const UAR_ALLOC_TYPE_NC: u64 = 1;

/// The UAR page that a context gave to a QP with no flag: an index beyond any.
pub const UIDX_NONE: u32 = 0xff_ffff;

wire! { LAYOUTS;
    /// 8 bytes of it are version 0, up to `max_cqe_version` and its padding version 2 without `lib_caps`.
    AllocUcontextReq = "struct mlx5_ib_alloc_ucontext_req_v2" [32] {
        total_num_bfregs: u32,
        num_low_latency_bfregs: u32,
        flags: u32,
        comp_mask: u32,
        max_cqe_version: u8,
        reserved0: u8,
        reserved1: u16,
        reserved2: u32,
        lib_caps: u64,
    }
    AllocUcontextResp = "struct mlx5_ib_alloc_ucontext_resp" [72] {
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
    AllocPdResp = "struct mlx5_ib_alloc_pd_resp" [4] {
        pdn: u32,
    }
    TsoCaps = "struct mlx5_ib_tso_caps" [8] {
        max_tso: u32,
        supported_qpts: u32,
    }
    RssCaps = "struct mlx5_ib_rss_caps" [16] {
        rx_hash_fields_mask: u64,
        rx_hash_function: u8,
        reserved: [u8; 7],
    }
    CqeCompCaps = "struct mlx5_ib_cqe_comp_caps" [8] {
        max_num: u32,
        supported_format: u32,
    }
    PacketPacingCaps = "struct mlx5_packet_pacing_caps" [16] {
        qp_rate_limit_min: u32,
        qp_rate_limit_max: u32,
        supported_qpts: u32,
        cap_flags: u8,
        reserved: [u8; 3],
    }
    SwParsingCaps = "struct mlx5_ib_sw_parsing_caps" [8] {
        sw_parsing_offloads: u32,
        supported_qpts: u32,
    }
    StridingRqCaps = "struct mlx5_ib_striding_rq_caps" [24] {
        min_single_stride_log_num_of_bytes: u32,
        max_single_stride_log_num_of_bytes: u32,
        min_single_wqe_log_num_of_strides: u32,
        max_single_wqe_log_num_of_strides: u32,
        supported_qpts: u32,
        reserved: u32,
    }
    DciStreamsCaps = "struct mlx5_ib_dci_streams_caps" [2] {
        max_log_num_concurent: u8,
        max_log_num_errored: u8,
    }
    UapiReg = "struct mlx5_ib_uapi_reg" [8] {
        value: u32,
        mask: u32,
    }
    /// Older kernels do not know `reg_c0`, and write less.
    QueryDeviceResp = "struct mlx5_ib_query_device_resp" since "7.2" [112] {
        comp_mask: u32,
        response_length: u32,
        tso_caps: TsoCaps,
        rss_caps: RssCaps,
        cqe_comp_caps: CqeCompCaps,
        packet_pacing_caps: PacketPacingCaps,
        mlx5_ib_support_multi_pkt_send_wqes: u32,
        flags: u32,
        sw_parsing_caps: SwParsingCaps,
        striding_rq_caps: StridingRqCaps,
        tunnel_offloads_caps: u32,
        dci_streams_caps: DciStreamsCaps,
        reserved: u16,
        reg_c0: UapiReg,
    }
    CreateCq = "struct mlx5_ib_create_cq" [32] {
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
    CreateCqResp = "struct mlx5_ib_create_cq_resp" [8] {
        cqn: u32,
        reserved: u32,
    }
    ResizeCq = "struct mlx5_ib_resize_cq" [16] {
        buf_addr: u64,
        cqe_size: u16,
        reserved0: u16,
        reserved1: u32,
    }
    CreateSrq = "struct mlx5_ib_create_srq" [32] {
        buf_addr: u64,
        db_addr: u64,
        flags: u32,
        reserved0: u32,
        uidx: u32,
        reserved1: u32,
    }
    CreateSrqResp = "struct mlx5_ib_create_srq_resp" [8] {
        srqn: u32,
        reserved: u32,
    }
    CreateQpDciStreams = "struct mlx5_ib_create_qp_dci_streams" [2] {
        log_num_concurent: u8,
        log_num_errored: u8,
    }
    /// `sq_buf_addr` is a union with `access_key`.
    CreateQp = "struct mlx5_ib_create_qp" [56] {
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
        dci_streams: CreateQpDciStreams,
        reserved: u16,
    }
    CreateQpResp = "struct mlx5_ib_create_qp_resp" [40] {
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
    AllocMw = "struct mlx5_ib_alloc_mw" [8] {
        comp_mask: u32,
        num_klms: u8,
        reserved1: u8,
        reserved2: u16,
    }
    CreateAhResp = "struct mlx5_ib_create_ah_resp" [16] {
        response_length: u32,
        dmac: [u8; 6],
        reserved: [u8; 6],
    }
    BurstInfo = "struct mlx5_ib_burst_info" [8] {
        max_burst_sz: u32,
        typical_pkt_sz: u16,
        reserved: u16,
    }
    ModifyQp = "struct mlx5_ib_modify_qp" [16] {
        comp_mask: u32,
        burst_info: BurstInfo,
        ece_options: u32,
    }
    ModifyQpResp = "struct mlx5_ib_modify_qp_resp" [16] {
        response_length: u32,
        dctn: u32,
        ece_options: u32,
        reserved: u32,
    }
    /// What the kernel keeps on the clock page.
    ClockInfo = "struct mlx5_ib_clock_info" [56] {
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
}

/// Where the answer of alloc_ucontext has to reach to mean anything: everything up to `num_ports` is as old as the driver.
const LEAST_RESP: u32 = core::mem::offset_of!(AllocUcontextResp, num_ports) as u32;

/// A context, and what the driver said of it.
pub type Ucontext = (device::Context, AllocUcontextResp);

/// alloc_ucontext. Kernels that do not know `lib_caps`, or all of version 2, refuse the longer request: the shorter ones
/// follow.
///
/// # Errors
/// The kernel's; `EPROTO` where the answer is too short, longer than known, or its numbers cannot be.
pub fn alloc_ucontext(cmd: CmdFd, req: &AllocUcontextReq) -> Result<Ucontext, Errno> {
    let bytes = req.as_bytes();
    let lens = [
        bytes.len(),
        core::mem::offset_of!(AllocUcontextReq, lib_caps),
        core::mem::offset_of!(AllocUcontextReq, max_cqe_version),
    ];
    let mut refused = Errno::EPROTO;
    for len in lens {
        let mut resp = AllocUcontextResp::default();
        let input = bytes.get(..len).unwrap_or(bytes);
        match device::get_context(cmd, Udata { input, output: resp.as_mut_bytes() }) {
            Ok(context) => return check_ucontext(&resp).map(|()| (context, resp)),
            Err(errno) => refused = errno,
        }
        // A longer request than the kernel knows; anything else a shorter one will not mend.
        if !matches!(refused, Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSPC) {
            break;
        }
    }
    Err(refused)
}

/// The driver's answer for an imported context.
///
/// # Errors
/// As for [`alloc_ucontext`].
pub fn query_ucontext(cmd: CmdFd) -> Result<Ucontext, Errno> {
    let mut resp = AllocUcontextResp::default();
    let context = device::query_context(cmd, resp.as_mut_bytes())?;
    check_ucontext(&resp).map(|()| (context, resp))
}

/// What everything else is computed from has to be possible.
fn check_ucontext(resp: &AllocUcontextResp) -> Result<(), Errno> {
    let length = resp.response_length;
    let known = length == 0 || (LEAST_RESP..=size_of::<AllocUcontextResp>() as u32).contains(&length);
    let uar = resp.log_uar_size == 0 || (12..=24).contains(&resp.log_uar_size);
    let bf = resp.bf_reg_size == 0
        || ((128..=4096).contains(&resp.bf_reg_size) && resp.bf_reg_size.is_power_of_two());
    let queues = resp.max_send_wqebb > 0
        && resp.max_send_wqebb <= 1 << 20
        && resp.max_recv_wr <= 1 << 24
        && resp.max_srq_recv_wr <= 1 << 24
        && resp.max_sq_desc_sz >= 64
        && resp.max_rq_desc_sz >= 16;
    let rest = resp.cqe_version <= 1 && resp.num_uars_per_page <= 64 && resp.tot_bfregs <= 1 << 16;
    if known && uar && bf && queues && rest { Ok(()) } else { Err(Errno::EPROTO) }
}

/// A UAR page of a context with dynamic UARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uar {
    /// For [`free_uar`].
    pub handle: Handle,
    /// For mmap, as it is.
    pub mmap_offset: u64,
    /// Bytes to map.
    pub length: u32,
    /// The device's number, which QPs and CQs are created with.
    pub page_id: u32,
}

/// `MLX5_IB_METHOD_UAR_OBJ_ALLOC`: a page of the type.
///
/// # Errors
/// The kernel's (`EOPNOTSUPP`: the machine has no write combining); `EPROTO`.
pub fn alloc_uar(cmd: CmdFd, alloc_type: u64) -> Result<Uar, Errno> {
    let (mut mmap_offset, mut length, mut page_id) = (0_u64, 0_u32, 0_u32);
    let answer = Command::new(ids::UAR_OBJ_ALLOC)
        .new_handle(ids::UAR_OBJ_ALLOC_HANDLE)
        .constant(ids::UAR_OBJ_ALLOC_TYPE, alloc_type)
        .expect_output(ids::UAR_OBJ_ALLOC_MMAP_OFFSET, &mut mmap_offset)
        .expect_output(ids::UAR_OBJ_ALLOC_MMAP_LENGTH, &mut length)
        .expect_output(ids::UAR_OBJ_ALLOC_PAGE_ID, &mut page_id)
        .call(cmd)?;
    let handle = answer.handle(ids::UAR_OBJ_ALLOC_HANDLE)?;
    Ok(Uar { handle, mmap_offset, length, page_id })
}

/// `MLX5_IB_METHOD_UAR_OBJ_DESTROY`.
///
/// # Errors
/// The kernel's.
pub fn free_uar(cmd: CmdFd, uar: Handle) -> Result<(), Errno> {
    Command::new(ids::UAR_OBJ_DESTROY).handle(ids::UAR_OBJ_DESTROY_HANDLE, uar).call(cmd).map(drop)
}

/// Memory of the device (MEMIC), as the driver gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memic {
    /// For `uapi::dm::free`.
    pub handle: Handle,
    /// Where it begins; of that, what is within a page.
    pub start_offset: u64,
    /// Which pages to map: an index of [`MMAP_DEVICE_MEM`].
    pub page_index: u16,
    /// Bytes.
    pub length: u64,
}

/// `ibv_alloc_dm`.
///
/// # Errors
/// The kernel's (`EOPNOTSUPP`: the device has none); `EPROTO`.
pub fn alloc_memic(cmd: CmdFd, length: u64, log_align_req: u32) -> Result<Memic, Errno> {
    let (mut start_offset, mut page_index) = (0_u64, 0_u16);
    let answer = Command::new(ids::DM_ALLOC)
        .new_handle(ids::ALLOC_DM_HANDLE)
        .input_u64(ids::ALLOC_DM_LENGTH, length)
        .input_u32(ids::ALLOC_DM_ALIGNMENT, log_align_req)
        .expect_output(ids::ALLOC_DM_RESP_START_OFFSET, &mut start_offset)
        .expect_output(ids::ALLOC_DM_RESP_PAGE_INDEX, &mut page_index)
        .call(cmd)?;
    Ok(Memic { handle: answer.handle(ids::ALLOC_DM_HANDLE)?, start_offset, page_index, length })
}

/// `MLX5_IB_METHOD_DM_QUERY`: device memory of a shared context (`ibv_import_dm`).
///
/// # Errors
/// The kernel's; `EPROTO`.
pub fn query_memic(cmd: CmdFd, handle: Handle) -> Result<Memic, Errno> {
    let (mut start_offset, mut page_index, mut length) = (0_u64, 0_u16, 0_u64);
    Command::new(ids::DM_QUERY)
        .handle(ids::QUERY_DM_REQ_HANDLE, handle)
        .expect_output(ids::QUERY_DM_RESP_START_OFFSET, &mut start_offset)
        .expect_output(ids::QUERY_DM_RESP_PAGE_INDEX, &mut page_index)
        .expect_output(ids::QUERY_DM_RESP_LENGTH, &mut length)
        .call(cmd)?;
    Ok(Memic { handle, start_offset, page_index, length })
}

/// `MLX5_IB_METHOD_PD_QUERY`: the number of a PD of a shared context (`ibv_import_pd`).
///
/// # Errors
/// The kernel's (`ENOENT`: there is no such PD); `EPROTO`.
pub fn query_pd(cmd: CmdFd, pd: Handle) -> Result<u32, Errno> {
    let mut pdn = 0_u32;
    Command::new(ids::PD_QUERY)
        .handle(ids::QUERY_PD_HANDLE, pd)
        .expect_output(ids::QUERY_PD_RESP_PDN, &mut pdn)
        .call(cmd)?;
    Ok(pdn)
}

/// The file offset of mmap command `command`, whose pages are `page` bytes, for `index`.
#[must_use]
pub fn mmap_offset(command: u64, index: u64, page: u64) -> u64 {
    let extended = if index > 0xff { (index >> 8) << 16 } else { 0 };
    (command << 8 | (index & 0xff) | extended) * page
}
