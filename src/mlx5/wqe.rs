//! What a work queue element is made of: segments of 16 bytes and multiples, as values. Nothing here touches memory.
//!
//! A send WQE is a control segment, what the transport needs (XRC: an SRQ number, UD: an address), what the operation needs
//! (remote address, atomic operands, UMR), and data segments or inline data; it begins at a block of 64 bytes (WQEBB) and
//! wraps around at the ring's end. Each number is big-endian. The layouts are those of `<infiniband/mlx5dv.h>`, which a test
//! compiles.

use crate::abi::public::ibv_sge;

/// 16 bytes, in memory order.
pub(super) type Unit = [u64; 2];

/// PRM: blocks of a send queue, `MLX5_SEND_WQE_BB`.
pub(super) const BB: u32 = 64;
/// Units of a block.
pub(super) const UNITS_PER_BB: u32 = 4;

/// Blocks of a WQE of `ds` units.
#[inline(always)]
pub(super) const fn blocks(ds: u32) -> u32 {
    (ds + 3) >> 2
}

/// Unit `at` of the WQE that begins at block `post`.
#[inline(always)]
pub(super) const fn unit(post: u32, at: u32) -> u32 {
    post.wrapping_mul(UNITS_PER_BB).wrapping_add(at)
}

/// `MLX5_OPCODE_*`.
pub(super) mod opcode {
    pub(crate) const NOP: u8 = 0x00;
    pub(crate) const SEND_INVAL: u8 = 0x01;
    pub(crate) const RDMA_WRITE: u8 = 0x08;
    pub(crate) const RDMA_WRITE_IMM: u8 = 0x09;
    pub(crate) const SEND: u8 = 0x0a;
    pub(crate) const SEND_IMM: u8 = 0x0b;
    pub(crate) const RDMA_READ: u8 = 0x10;
    pub(crate) const ATOMIC_CS: u8 = 0x11;
    pub(crate) const ATOMIC_FA: u8 = 0x12;
    pub(crate) const UMR: u8 = 0x25;
}

/// `MLX5_WQE_CTRL_SOLICITED`.
pub(super) const CTRL_SOLICITED: u8 = 1 << 1;
/// `MLX5_WQE_CTRL_CQ_UPDATE`.
pub(super) const CTRL_CQ_UPDATE: u8 = 2 << 2;
/// `MLX5_WQE_CTRL_INITIATOR_SMALL_FENCE`.
pub(super) const CTRL_INITIATOR_SMALL_FENCE: u8 = 1 << 5;
/// `MLX5_WQE_CTRL_FENCE`.
pub(super) const CTRL_FENCE: u8 = 4 << 5;
/// [`ctrl_flags`] of each combination of `IBV_SEND_FENCE`, `IBV_SEND_SIGNALED` and `IBV_SEND_SOLICITED`, by their numbers.
pub(super) const SEND_FLAGS: [u64; 8] = [
    0,
    ctrl_flags(CTRL_FENCE),
    ctrl_flags(CTRL_CQ_UPDATE),
    ctrl_flags(CTRL_CQ_UPDATE | CTRL_FENCE),
    ctrl_flags(CTRL_SOLICITED),
    ctrl_flags(CTRL_SOLICITED | CTRL_FENCE),
    ctrl_flags(CTRL_SOLICITED | CTRL_CQ_UPDATE),
    ctrl_flags(CTRL_SOLICITED | CTRL_CQ_UPDATE | CTRL_FENCE),
];

/// `MLX5_INVALID_LKEY`.
pub(super) const INVALID_LKEY: u32 = 0x100;
/// `MLX5_INLINE_SEG`.
pub(super) const INLINE_SEG: u32 = 0x8000_0000;
/// `MLX5_EXTENDED_UD_AV`.
const EXTENDED_UD_AV: u32 = 0x8000_0000;
/// Two big-endian 32-bit numbers.
#[inline(always)]
const fn be(first: u32, second: u32) -> u64 {
    ((first as u64) << 32 | second as u64).to_be()
}

/// The first half of a `struct mlx5_wqe_ctrl_seg`. `index` is that of the WQE's first block, `qpn_ds` the QP number and, in the lower
/// 8 bits, the WQE's length in units.
#[inline(always)]
pub(super) const fn ctrl_place(opcode: u8, index: u16, qpn_ds: u32) -> u64 {
    ((index as u64) << 40 | (opcode as u64) << 32 | qpn_ds as u64).to_be()
}

/// The other half: `fm_ce_se`.
#[inline(always)]
pub(super) const fn ctrl_flags(fm_ce_se: u8) -> u64 {
    be(fm_ce_se as u32, 0)
}

/// And in it `imm`, in network order.
#[inline(always)]
pub(super) const fn ctrl_imm(imm: u32) -> u64 {
    half(0, imm)
}

/// Two words of 32 bits as they lie in memory.
#[inline(always)]
const fn half(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}

/// Units of a WQE, from the first 8 bytes of its control segment.
pub(super) const fn ds_of(ctrl: u64) -> u32 {
    u64::from_be(ctrl) as u32 & 0x3f
}

/// The first 8 bytes of a control segment, of a WQE of `ds` units in place of what it has.
#[inline(always)]
pub(super) const fn ctrl_with(ctrl: u64, ds: u32) -> u64 {
    (u64::from_be(ctrl) & !0x3f | ds as u64).to_be()
}

/// Opcode of a WQE, from the first 8 bytes of its control segment.
pub(super) const fn opcode_of(ctrl: u64) -> u8 {
    (u64::from_be(ctrl) >> 32) as u8
}

/// `struct mlx5_wqe_raddr_seg`.
#[inline(always)]
pub(super) const fn raddr(remote_addr: u64, rkey: u32) -> Unit {
    [remote_addr.to_be(), be(rkey, 0)]
}

/// `struct mlx5_wqe_atomic_seg`.
#[inline(always)]
pub(super) const fn atomic(swap_add: u64, compare: u64) -> Unit {
    [swap_add.to_be(), compare.to_be()]
}

/// `struct mlx5_wqe_data_seg`.
#[inline(always)]
pub(super) const fn data(byte_count: u32, lkey: u32, addr: u64) -> Unit {
    [be(byte_count, lkey), addr.to_be()]
}

/// The data segment of `sge`, from memory: its length and key are next to each other there, too, and come by one load.
#[inline(always)]
pub(super) const fn entry(sge: &ibv_sge) -> Unit {
    let both = sge.length as u64 | (sge.lkey as u64) << 32;
    [both.rotate_left(32).to_be(), sge.addr.to_be()]
}

/// The data segment that ends a list shorter than the WQE has room for.
pub(super) const DATA_END: Unit = data(0, INVALID_LKEY, 0);

/// `struct mlx5_wqe_inline_seg`, which the data follow at once.
#[inline(always)]
pub(super) const fn inline_head(len: u32) -> u32 {
    (INLINE_SEG | len).to_be()
}

/// Bytes of inline data in one unit, behind the segment's head.
pub(super) const INLINE_IN_UNIT: u32 = 12;

/// Units of an inline segment with `len` bytes of data.
#[inline(always)]
pub(super) const fn inline_units(len: u32) -> u32 {
    // Not div_ceil, which makes five instructions of it for the sake of numbers near the end of 32 bits.
    (len + 4 + 15) >> 4
}

/// `struct mlx5_wqe_xrc_seg`.
#[inline(always)]
pub(super) const fn xrc(srqn: u32) -> Unit {
    [be(srqn, 0), 0]
}

/// `struct mlx5_wqe_srq_next_seg`.
#[inline(always)]
pub(super) const fn srq_next(index: u16) -> Unit {
    [be(index as u32, 0), 0]
}

/// An address vector, `struct mlx5_wqe_av`: all of the datagram segment but the receiver's QP number and Q_Key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Av {
    pub(super) stat_rate_sl: u8,
    pub(super) fl_mlid: u8,
    pub(super) rlid: u16,
    pub(super) rmac: [u8; 6],
    pub(super) tclass: u8,
    pub(super) hop_limit: u8,
    pub(super) grh_gid_fl: u32,
    pub(super) rgid: [u8; 16],
}

impl Av {
    /// Everything behind the key and the QP number, ready to be copied.
    pub(super) fn units(&self) -> [Unit; 3] {
        let [a, b, c, d, e, f] = self.rmac;
        let mac = u32::from_be_bytes([a, b, c, d]);
        let end = u32::from_be_bytes([e, f, self.tclass, self.hop_limit]);
        let lid = u32::from(self.stat_rate_sl) << 24 | u32::from(self.fl_mlid) << 16 | u32::from(self.rlid);
        let gid = u128::from_be_bytes(self.rgid);
        let word = |shift: u32| (gid >> shift) as u32;
        [
            [0, be(0, lid)],
            [be(0, mac), be(end, self.grh_gid_fl)],
            [be(word(96), word(64)), be(word(32), word(0))],
        ]
    }
}

/// `struct mlx5_wqe_datagram_seg` from what [`Av::units`] made.
#[inline(always)]
pub(super) const fn datagram(av: &[Unit; 3], remote_qpn: u32, remote_qkey: u32) -> [Unit; 3] {
    let [[_, lid], rest, gid] = *av;
    // The QP number is the word before the one with the LID.
    [[be(remote_qkey, 0), be(remote_qpn | EXTENDED_UD_AV, 0) | lid], rest, gid]
}

/// What a bind or an invalidation does to a memory window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bind {
    /// A window of type 2, which belongs to the QP.
    pub(super) type_2: bool,
    /// The key that the window gets.
    pub(super) rkey: u32,
    /// The window's QP.
    pub(super) qpn: u32,
    pub(super) addr: u64,
    /// 0: the window is unbound.
    pub(super) length: u64,
    pub(super) lkey: u32,
    /// `IBV_ACCESS_*`.
    pub(super) access: u32,
}

/// The longest a window can be: its one KLM entry counts 31 bits.
pub(super) const BIND_MAX: u64 = 1 << 31;

mod umr {
    pub(super) const FLAG_INLINE: u8 = 1 << 7;
    pub(super) const FLAG_CHECK_FREE: u8 = 1 << 5;
    pub(super) const FLAG_TRANSLATION_OFFSET: u8 = 1 << 4;
    pub(super) const FLAG_CHECK_QPN: u8 = 1 << 3;
    pub(super) const MASK_LEN: u64 = 1 << 0;
    pub(super) const MASK_START_ADDR: u64 = 1 << 6;
    pub(super) const MASK_MKEY: u64 = 1 << 13;
    pub(super) const MASK_QPN: u64 = 1 << 14;
    pub(super) const MASK_ACCESS: u64 = 1 << 18 | 1 << 19 | 1 << 20 | 1 << 21;
    pub(super) const MASK_FREE: u64 = 1 << 29;
    pub(super) const CONTEXT_FREE: u8 = 1 << 6;
    pub(super) const ACCESS_ATOMIC: u8 = 1 << 6;
    pub(super) const ACCESS_REMOTE_WRITE: u8 = 1 << 5;
    pub(super) const ACCESS_REMOTE_READ: u8 = 1 << 4;
    pub(super) const ACCESS_LOCAL_WRITE: u8 = 1 << 3;
}

impl Bind {
    /// The invalidation of a window or region.
    pub(super) const INVALIDATE: Bind =
        Bind { type_2: true, rkey: 0, qpn: 0, addr: 0, length: 0, lkey: 0, access: 0 };

    /// The segments of the WQE: `struct mlx5_wqe_umr_ctrl_seg`, `struct mlx5_wqe_mkey_context_seg`, and for a binding a
    /// KLM entry padded to 64 bytes.
    pub(super) fn units(&self) -> ([Unit; 11], u32) {
        use crate::abi::public::{
            IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_ATOMIC, IBV_ACCESS_REMOTE_READ,
            IBV_ACCESS_REMOTE_WRITE, IBV_ACCESS_ZERO_BASED,
        };
        let binds = self.length != 0;
        let mut flags = umr::FLAG_TRANSLATION_OFFSET | umr::FLAG_INLINE;
        let mut mask = umr::MASK_FREE | umr::MASK_MKEY;
        if self.type_2 {
            mask |= umr::MASK_QPN;
            flags |= if binds { umr::FLAG_CHECK_FREE } else { umr::FLAG_CHECK_QPN };
        }
        // A list of KLM entries is counted in octowords, rounded to 4 of them.
        let klm_octowords = if binds { 4 } else { 0 };
        if binds {
            mask |= umr::MASK_LEN | umr::MASK_START_ADDR | umr::MASK_ACCESS;
        }
        let owner = if self.type_2 && binds { self.qpn << 8 } else { 0xffff_ff00 };
        let qpn_mkey = owner | self.rkey & 0xff;
        let mut access = 0;
        for (verb, bit) in [
            (IBV_ACCESS_LOCAL_WRITE, umr::ACCESS_LOCAL_WRITE),
            (IBV_ACCESS_REMOTE_WRITE, umr::ACCESS_REMOTE_WRITE),
            (IBV_ACCESS_REMOTE_READ, umr::ACCESS_REMOTE_READ),
            (IBV_ACCESS_REMOTE_ATOMIC, umr::ACCESS_ATOMIC),
        ] {
            if binds && self.access & verb != 0 {
                access |= bit;
            }
        }
        let free = if binds { 0 } else { umr::CONTEXT_FREE };
        let start = if self.access & IBV_ACCESS_ZERO_BASED != 0 { 0 } else { self.addr };
        let mut units = [[0; 2]; 11];
        let [u0, _, _, m0, m1, _, _, k0, ..] = &mut units;
        *u0 = [be(u32::from(flags) << 24, klm_octowords << 16), mask.to_be()];
        *m0 = [be(u32::from(free) << 24 | u32::from(access) << 8, qpn_mkey), 0];
        if !binds {
            return (units, 7);
        }
        *m1 = [start.to_be(), self.length.to_be()];
        *k0 = data(self.length as u32, self.lkey, self.addr);
        (units, 11)
    }
}

#[cfg(test)]
pub(super) fn bytes(units: &[Unit]) -> Vec<u8> {
    units.iter().flatten().flat_map(|word| word.to_ne_bytes()).collect()
}
