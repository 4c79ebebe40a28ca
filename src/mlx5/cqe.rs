//! What a completion queue entry says (`struct mlx5_cqe64`, `struct mlx5_err_cqe` of `<infiniband/mlx5dv.h>`).
//!
//! Only field places and the meaning of numbers; nothing read is trusted to be one of them.

use core::hint::cold_path;

use crate::abi::public::*;
use crate::hw::dma::Entry;

/// Offset of the word that has `ml_path` for its second byte and ends with `slid`.
const ML_PATH_TO_SLID: usize = 16;
/// Offset of `srqn_uidx`.
const SRQN_UIDX: usize = 32;
/// Offset of `imm_inval_pkey`.
const IMM_INVAL_PKEY: usize = 36;
/// Offset of `byte_cnt`.
const BYTE_CNT: usize = 44;
/// Offset of `timestamp`.
const TIMESTAMP: usize = 48;
/// Offset of the word that ends with `vendor_err_synd` and `syndrome`.
const ERR_SYNDROMES: usize = 52;
/// Offset of `sop_drop_qpn`.
const SOP_DROP_QPN: usize = 56;
/// Offset of the word of `wqe_counter`, `signature` and `op_own`.
const LAST: usize = 60;
/// Offset of `op_own`, the byte that the device writes last.
pub(super) const OP_OWN: usize = 63;

/// `MLX5_CQE_*`: bits 7 to 4 of `op_own`.
pub(super) mod opcode {
    pub(crate) const REQ: u32 = 0;
    pub(crate) const RESP_WR_IMM: u32 = 1;
    pub(crate) const RESP_SEND: u32 = 2;
    pub(crate) const RESP_SEND_IMM: u32 = 3;
    pub(crate) const RESP_SEND_INV: u32 = 4;
    pub(crate) const RESIZE_CQ: u32 = 5;
    pub(crate) const REQ_ERR: u32 = 13;
    pub(crate) const RESP_ERR: u32 = 14;
    pub(crate) const INVALID: u32 = 15;
}

/// `MLX5_CQE_OWNER_MASK`.
pub(super) const OWNER_MASK: u32 = 1;
/// `MLX5_INLINE_SCATTER_32`: the message is in the completion's first half.
const INLINE_SCATTER_32: u32 = 0x4;
/// `MLX5_INLINE_SCATTER_64`: the message is in the 64 bytes before the completion.
const INLINE_SCATTER_64: u32 = 0x8;

/// `MLX5_CQE_SYNDROME_REMOTE_ABORTED_ERR` with this vendor syndrome: a page of the receive buffer was missing, and the
/// receive is to be posted again.
const SYNDROME_REMOTE_ABORTED: u32 = 0x22;
const VENDOR_SYNDROME_ODP_PFAULT: u32 = 0x93;

/// What an entry is to a poll of one.
pub(super) enum Usual {
    /// A good completion of a send, of a receive of a plain send, or of another receive, without data inside of the entry.
    Sent,
    Plain,
    Received,
    /// None of these.
    None,
}

/// What an entry is whose last byte is `op_own`, where that of one that is written ends with the bit `lap`.
#[inline(always)]
pub(super) fn usual(op_own: u8, lap: u8) -> Usual {
    const SENT: u8 = (opcode::REQ << 4) as u8;
    const PLAIN: u8 = (opcode::RESP_SEND << 4) as u8;
    const FIRST: u8 = (opcode::RESP_WR_IMM << 4) as u8;
    const LAST: u8 = (opcode::RESP_SEND_INV << 4) as u8;
    const DATA: u8 = (INLINE_SCATTER_32 | INLINE_SCATTER_64) as u8;
    // With the owner's bit as it has to be, it is 0. (A match on all of these became a jump through a table.)
    let bits = (op_own ^ lap) & (0xf0 | DATA | OWNER_MASK as u8);
    if bits == SENT {
        Usual::Sent
    } else if bits == PLAIN {
        Usual::Plain
    } else if (FIRST..=LAST).contains(&bits) && bits & 0xf == 0 {
        Usual::Received
    } else {
        Usual::None
    }
}

/// A completion, with the word read first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cqe<'a> {
    entry: Entry<'a>,
    last: u32,
}

impl<'a> Cqe<'a> {
    /// What stands in `entry`; whether it is ours to read is [`Cqe::owned`].
    #[inline(always)]
    pub(super) fn read(entry: Entry<'a>) -> Cqe<'a> {
        Cqe { entry, last: entry.be32::<LAST>() }
    }

    /// The device wrote it for the lap around the ring that `index` is in. `count` entries are in the ring.
    #[inline(always)]
    pub(super) fn owned(self, index: u32, count: u32) -> bool {
        let lap = u32::from(index & count != 0);
        self.last & OWNER_MASK == lap && self.opcode() != opcode::INVALID
    }

    #[inline(always)]
    pub(super) fn opcode(self) -> u32 {
        self.last >> 4 & 0xf
    }

    /// Written for the lap around the ring that `index` is in, and one of the completions that nearly all are: a success
    /// without data inside of the entry, of a send or of a receive. `count` is that of [`Cqe::owned`].
    #[inline(always)]
    pub(super) fn is_good(self, of_a_send: bool, index: u32, count: u32) -> bool {
        const {
            assert!(
                opcode::REQ == 0
                    && opcode::RESP_WR_IMM == 1
                    && opcode::RESP_SEND == 2
                    && opcode::RESP_SEND_INV == 4
            )
        };
        // With the owner's bit as it has to be, it is 0 in `bits`.
        let bits = self.last ^ u32::from(index & count != 0);
        if of_a_send {
            bits & (0xf0 | INLINE_SCATTER_32 | INLINE_SCATTER_64 | OWNER_MASK) == 0
        } else {
            let rest = bits & (INLINE_SCATTER_32 | INLINE_SCATTER_64 | OWNER_MASK);
            rest == 0 && (opcode::RESP_WR_IMM..=opcode::RESP_SEND_INV).contains(&self.opcode())
        }
    }

    #[inline(always)]
    pub(super) fn op_own(self) -> u8 {
        self.last as u8
    }

    #[inline(always)]
    pub(super) fn wqe_counter(self) -> u16 {
        (self.last >> 16) as u16
    }

    /// The user index, or the SRQ number of CQE version 0.
    #[inline(always)]
    pub(super) fn srqn_uidx(self) -> u32 {
        self.entry.be32::<SRQN_UIDX>() & 0xff_ffff
    }

    #[inline(always)]
    pub(super) fn qpn(self) -> u32 {
        self.entry.be32::<SOP_DROP_QPN>() & 0xff_ffff
    }

    /// The flow tag of a received packet, where others have the QP number.
    #[inline]
    pub(super) fn flow_tag(self) -> u32 {
        self.qpn()
    }

    /// The send opcode, [`super::wqe::opcode`].
    #[inline(always)]
    pub(super) fn send_opcode(self) -> u8 {
        (self.entry.be32::<SOP_DROP_QPN>() >> 24) as u8
    }

    #[inline(always)]
    pub(super) fn byte_cnt(self) -> u32 {
        self.entry.be32::<BYTE_CNT>()
    }

    #[inline(always)]
    pub(super) fn invalidated_rkey(self) -> u32 {
        self.entry.be32::<IMM_INVAL_PKEY>()
    }

    #[inline]
    pub(super) fn timestamp(self) -> u64 {
        self.entry.be64::<TIMESTAMP>()
    }

    #[inline(always)]
    pub(super) fn flags_rqpn(self) -> u32 {
        self.entry.be32::<24>()
    }

    #[inline(always)]
    pub(super) fn src_qp(self) -> u32 {
        self.source().0
    }

    #[inline(always)]
    pub(super) fn sl(self) -> u8 {
        self.source().1
    }

    /// The sender's QP number, `ibv_wc.sl` and `IBV_WC_GRH` of a receive, or 0: one load for all.
    #[inline(always)]
    pub(super) fn source(self) -> (u32, u8, u32) {
        const { assert!(IBV_WC_GRH == 1) };
        let word = self.flags_rqpn();
        (word & 0xff_ffff, (word >> 24) as u8 & 0xf, u32::from(word >> 28 & 3 != 0))
    }

    /// The sender's LID, and the path bits of the LID that it sent to.
    #[inline(always)]
    pub(super) fn path(self) -> (u16, u8) {
        let word = self.entry.be64::<ML_PATH_TO_SLID>();
        (word as u16, (word >> 48) as u8 & 0x7f)
    }

    /// `IBV_WC_GRH` of a receive, or 0.
    #[inline(always)]
    pub(super) fn grh(self) -> u32 {
        self.source().2
    }

    /// The sender's QP number, if a receive says nothing else of where it came from.
    #[inline(always)]
    pub(super) fn plain_source(self) -> Option<u32> {
        // What follows these is not the rarer, but each has a jump of its own by it: 3 instructions less.
        if self.entry.be64::<ML_PATH_TO_SLID>() != 0 {
            cold_path();
            return None;
        }
        let source = self.flags_rqpn();
        if source > 0xff_ffff {
            cold_path();
            return None;
        }
        Some(source)
    }

    /// What a receive was of: `ibv_wc.opcode`, its part of `ibv_wc.wc_flags`, and from `word`, the invalidated key in host order,
    /// what `ibv_wc.imm_data` is. A plain send has none of these, which one comparison tells.
    #[inline(always)]
    pub(super) fn operation_received(self, word: u32) -> (u32, u32, u32) {
        const { assert!(IBV_WC_RECV_RDMA_WITH_IMM == IBV_WC_RECV + 1) };
        let code = self.opcode();
        if code == opcode::RESP_SEND {
            return (IBV_WC_RECV, 0, 0);
        }
        let has_imm = code == opcode::RESP_WR_IMM || code == opcode::RESP_SEND_IMM;
        let has_key = code == opcode::RESP_SEND_INV;
        let imm_data = if has_imm {
            word.to_be()
        } else if has_key {
            word
        } else {
            0
        };
        let flags = if has_imm {
            IBV_WC_WITH_IMM
        } else if has_key {
            IBV_WC_WITH_INV
        } else {
            0
        };
        (IBV_WC_RECV + u32::from(code == opcode::RESP_WR_IMM), flags, imm_data)
    }

    #[inline]
    pub(super) fn vlan_info(self) -> u16 {
        self.entry.be32::<28>() as u16
    }

    /// The checksums of an IPv4 packet were good: `MLX5_CQE_L3_OK`, `MLX5_CQE_L4_OK`, `MLX5_CQE_L3_HDR_TYPE_IPV4`.
    #[inline]
    pub(super) fn csum_ok(self) -> bool {
        let word = self.entry.be32::<28>();
        word >> 24 & 0x6 == 0x6 && word >> 18 & 0x3 == 0x2
    }

    #[inline]
    pub(super) fn vendor_err(self) -> u32 {
        self.entry.be32::<ERR_SYNDROMES>() >> 8 & 0xff
    }

    #[inline]
    pub(super) fn syndrome(self) -> u32 {
        self.entry.be32::<ERR_SYNDROMES>() & 0xff
    }

    pub(super) fn is_odp_fault(self) -> bool {
        self.syndrome() == SYNDROME_REMOTE_ABORTED && self.vendor_err() == VENDOR_SYNDROME_ODP_PFAULT
    }

    /// The message is in the completion, not in its buffers yet.
    #[inline(always)]
    pub(super) fn has_data(self) -> bool {
        self.last & (INLINE_SCATTER_32 | INLINE_SCATTER_64) != 0
    }

    /// The bytes of that message: at most 32, or 64 before a completion of 128 bytes.
    pub(super) fn data(self) -> Option<[u8; 64]> {
        if self.last & INLINE_SCATTER_32 != 0 {
            let mut bytes = self.entry.bytes();
            bytes.iter_mut().skip(32).for_each(|byte| *byte = 0);
            Some(bytes)
        } else {
            self.entry.front()
        }
    }

    /// How many bytes [`Cqe::data`] can hold.
    pub(super) fn data_room(self) -> usize {
        if self.last & INLINE_SCATTER_32 != 0 { 32 } else { 64 }
    }

    /// The 64 bytes, for a log.
    pub(super) fn dump(self) -> [u8; 64] {
        self.entry.bytes()
    }
}

/// The vendor syndrome of a flushed work request, as ConnectX gives it.
pub(super) const FLUSHED_VENDOR_ERR: u32 = 0xf9;

/// Writes the completion of a flushed work request of QP `qpn`, for readers of single fields. It does not look like one that
/// the device wrote for the first lap around a ring.
pub(super) fn put_flushed(entry: Entry<'_>, qpn: u32, received: bool) {
    let [_, high, middle, low] = qpn.to_be_bytes();
    entry.set::<{ SOP_DROP_QPN + 1 }>(high);
    entry.set::<{ SOP_DROP_QPN + 2 }>(middle);
    entry.set::<{ SOP_DROP_QPN + 3 }>(low);
    entry.set::<{ ERR_SYNDROMES + 2 }>(FLUSHED_VENDOR_ERR as u8);
    entry.set::<{ ERR_SYNDROMES + 3 }>(SYNDROME_FLUSHED);
    let code = if received { opcode::RESP_ERR } else { opcode::REQ_ERR };
    entry.set::<OP_OWN>((code << 4 | OWNER_MASK) as u8);
}

/// `MLX5_CQE_SYNDROME_WR_FLUSH_ERR`.
const SYNDROME_FLUSHED: u8 = 0x05;

/// `ibv_wc_status` of an error completion's syndrome.
pub(super) fn status(syndrome: u32) -> u32 {
    match syndrome {
        0x01 => IBV_WC_LOC_LEN_ERR,
        0x02 => IBV_WC_LOC_QP_OP_ERR,
        0x04 => IBV_WC_LOC_PROT_ERR,
        0x05 => IBV_WC_WR_FLUSH_ERR,
        0x06 => IBV_WC_MW_BIND_ERR,
        0x10 => IBV_WC_BAD_RESP_ERR,
        0x11 => IBV_WC_LOC_ACCESS_ERR,
        0x12 => IBV_WC_REM_INV_REQ_ERR,
        0x13 => IBV_WC_REM_ACCESS_ERR,
        0x14 => IBV_WC_REM_OP_ERR,
        0x15 => IBV_WC_RETRY_EXC_ERR,
        0x16 => IBV_WC_RNR_RETRY_EXC_ERR,
        SYNDROME_REMOTE_ABORTED => IBV_WC_REM_ABORT_ERR,
        _ => IBV_WC_GENERAL_ERR,
    }
}
