//! The structs of `<rdma/rdma_user_rxe.h>`: what rxe and user space share through mapped queues, and its driver data.
//!
//! The layout is the same on every kernel from 5.10 to 7.2; what a release added is said at the type. Members of the send
//! work request's union are types of their own, all read from and written to [`SendWr::wr`].

use super::wire::wire;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `RXE_NETWORK_TYPE_IPV4`, of [`Av::network_type`].
pub const NETWORK_TYPE_IPV4: u8 = 1;
/// `RXE_NETWORK_TYPE_IPV6`, of [`Av::network_type`].
pub const NETWORK_TYPE_IPV6: u8 = 2;

/// Bytes of the union in a send work request.
pub const SEND_WR_UNION: usize = 120;

wire! { LAYOUTS;
    GlobalRoute = "struct rxe_global_route" [24] {
        dgid: [u8; 16],
        flow_label: u32,
        sgid_index: u8,
        hop_limit: u8,
        traffic_class: u8,
        _pad: u8,
    }
    /// Each socket address is a `sockaddr_in` or a `sockaddr_in6`, by `network_type`.
    Av = "struct rxe_av" [88] {
        port_num: u8,
        network_type: u8,
        dmac: [u8; 6],
        grh: GlobalRoute,
        sgid_addr: [u8; 28],
        dgid_addr: [u8; 28],
    }
    /// `ex` is `imm_data` (network order) or `invalidate_rkey`. `reserved` was `num_sge` before 6.1, and rxe did not read
    /// it. `wr` is one of [`Flush`], [`Rdma`], [`Atomic`], [`Ud`], [`Mw`].
    SendWr = "struct rxe_send_wr" [144] {
        wr_id: u64,
        reserved: u32,
        opcode: u32,
        send_flags: u32,
        ex: u32,
        wr: [u8; SEND_WR_UNION],
    }
    SgeRaw = "struct rxe_sge" [16] {
        addr: u64,
        length: u32,
        lkey: u32,
    }
    /// Where a queue is mapped: the offset serves one `mmap` of `cmd_fd`, of at most `size` bytes.
    MmInfo = "struct mminfo" [16] {
        offset: u64,
        size: u32,
        pad: u32,
    }
    /// Followed by `num_sge` times [`SgeRaw`], or inline data, or the 8 bytes of an atomic write.
    DmaInfo = "struct rxe_dma_info" [24] {
        length: u32,
        resid: u32,
        cur_sge: u32,
        num_sge: u32,
        sge_offset: u32,
        reserved: u32,
    }
    SendWqe = "struct rxe_send_wqe" [208] {
        wr: SendWr,
        status: u32,
        state: u32,
        iova: u64,
        mask: u32,
        first_psn: u32,
        last_psn: u32,
        ack_length: u32,
        ssn: u32,
        has_rd_atomic: u32,
        dma: DmaInfo,
    }
    /// `reserved` was `num_sge` before 6.1.
    RecvWqe = "struct rxe_recv_wqe" [40] {
        wr_id: u64,
        reserved: u32,
        padding: u32,
        dma: DmaInfo,
    }
    /// Nothing at all on kernels that know no AH numbers: then the buffer stays 0.
    CreateAhResp = "struct rxe_create_ah_resp" [8] {
        ah_num: u32,
        reserved: u32,
    }
    CreateCqResp = "struct rxe_create_cq_resp" [16] {
        mi: MmInfo,
    }
    ResizeCqResp = "struct rxe_resize_cq_resp" [16] {
        mi: MmInfo,
    }
    CreateQpResp = "struct rxe_create_qp_resp" [32] {
        rq_mi: MmInfo,
        sq_mi: MmInfo,
    }
    CreateSrqResp = "struct rxe_create_srq_resp" [24] {
        mi: MmInfo,
        srq_num: u32,
        reserved: u32,
    }
    /// The address of an [`MmInfo`] that the kernel fills when it resizes the queue.
    ModifySrqCmd = "struct rxe_modify_srq_cmd" [8] {
        mmap_info_addr: u64,
    }
    /// The start of a mapped queue; the elements follow. The indices are shared with the kernel: only their offsets are
    /// of use ([`PRODUCER_INDEX`], [`CONSUMER_INDEX`]).
    QueueBuf = "struct rxe_queue_buf" [384] {
        log2_elem_size: u32,
        index_mask: u32,
        pad_1: [u32; 30],
        producer_index: u32,
        pad_2: [u32; 31],
        consumer_index: u32,
        pad_3: [u32; 31],
    }
}

/// Offset of the element size's logarithm in a mapped queue.
pub const LOG2_ELEM_SIZE: usize = core::mem::offset_of!(QueueBuf, log2_elem_size);
/// Offset of the index mask in a mapped queue.
pub const INDEX_MASK: usize = core::mem::offset_of!(QueueBuf, index_mask);
/// Offset of the producer's index in a mapped queue.
pub const PRODUCER_INDEX: usize = core::mem::offset_of!(QueueBuf, producer_index);
/// Offset of the consumer's index in a mapped queue.
pub const CONSUMER_INDEX: usize = core::mem::offset_of!(QueueBuf, consumer_index);
/// Offset of the first element in a mapped queue.
pub const QUEUE_DATA: usize = size_of::<QueueBuf>();

wire! { WR_LAYOUTS;
    /// Newer kernels (6.12 has it, 6.1 not); `level` and `type` as `IB_FLUSH_*`.
    Flush = "wr.flush" since "6.12" [24] {
        remote_addr: u64,
        length: u32,
        rkey: u32,
        r#type: u8,
        level: u8,
        _pad: [u8; 6],
    }
    Rdma = "wr.rdma" [16] {
        remote_addr: u64,
        rkey: u32,
        reserved: u32,
    }
    Atomic = "wr.atomic" [32] {
        remote_addr: u64,
        compare_add: u64,
        swap: u64,
        rkey: u32,
        reserved: u32,
    }
    /// `ah_num` 0: the kernel takes `av`.
    Ud = "wr.ud" [120] {
        remote_qpn: u32,
        remote_qkey: u32,
        pkey_index: u16,
        reserved: u16,
        ah_num: u32,
        pad: [u32; 4],
        av: Av,
    }
    Mw = "wr.mw" [32] {
        addr: u64,
        length: u64,
        mr_lkey: u32,
        mw_rkey: u32,
        rkey: u32,
        access: u32,
    }
}

/// A member of the union in [`SendWr`].
pub trait WrUnion: FromBytes + IntoBytes + Immutable + KnownLayout {}
impl WrUnion for Flush {}
impl WrUnion for Rdma {}
impl WrUnion for Atomic {}
impl WrUnion for Ud {}
impl WrUnion for Mw {}

impl SendWr {
    /// The union's bytes for `member`, the rest 0.
    #[must_use]
    pub fn union_of<T: WrUnion>(member: &T) -> [u8; SEND_WR_UNION] {
        const { assert!(size_of::<T>() <= SEND_WR_UNION) };
        let mut wr = [0; SEND_WR_UNION];
        for (to, from) in wr.iter_mut().zip(member.as_bytes()) {
            *to = *from;
        }
        wr
    }

    /// The union seen as `T`.
    #[must_use]
    pub fn member<T: WrUnion>(&self) -> T {
        const { assert!(size_of::<T>() <= SEND_WR_UNION) };
        match T::read_from_prefix(&self.wr) {
            Ok((member, _)) => member,
            // PANIC: none; the assertion above leaves no other case than the first.
            Err(_) => zerocopy::FromZeros::new_zeroed(),
        }
    }
}
