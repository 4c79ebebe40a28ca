//! What the operations of verbs are: to the device, in a WQE, and in the completion.

use super::wqe::opcode;
use crate::abi::public::*;

/// What the completion of a send will say of it, in a byte that the post notes: `ibv_wc_opcode`, and two bits. So a poll asks
/// nobody what the device's opcode means, and believes no other than the one that was posted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Noted(pub(super) u8);

impl Noted {
    /// With immediate data.
    const IMM: u8 = 1 << 6;
    /// It gives 8 bytes, and the completion does not say so.
    const ATOMIC: u8 = 1 << 7;

    /// Of a send that is flushed; of a receive it says nothing.
    pub(super) fn of_flushed(opcode: u32) -> Noted {
        Noted(opcode as u8 & !(Noted::IMM | Noted::ATOMIC))
    }

    /// `ibv_wc.opcode`.
    #[inline(always)]
    pub(super) fn opcode(self) -> u32 {
        u32::from(self.0 & !(Noted::IMM | Noted::ATOMIC))
    }

    /// `ibv_wc.wc_flags`.
    #[inline(always)]
    pub(super) fn wc_flags(self) -> u32 {
        const { assert!(IBV_WC_WITH_IMM == (Noted::IMM >> 5) as u32) };
        u32::from(self.0 >> 5) & IBV_WC_WITH_IMM
    }

    #[inline(always)]
    pub(super) fn is_atomic(self) -> bool {
        self.0 & Noted::ATOMIC != 0
    }
}

bitflags::bitflags! {
    /// What a WQE of an operation has beside its data.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Form: u8 {
        /// A remote address.
        const REMOTE = 1 << 0;
        /// Immediate data.
        const IMM = 1 << 1;
        /// A key to invalidate at the peer.
        const KEY = 1 << 2;
        /// Operands of an atomic.
        const ATOMIC = 1 << 3;
        /// The segments of a bind or an invalidation.
        const UMR = 1 << 4;
        /// The QP type does not have it.
        const NONE = 1 << 5;
    }
}

/// An operation, in one word, as it is loaded: its [`opcode`], its [`Form`], and what is noted of it, where a [`super::ring::Meta`] has
/// that in its upper half: to move it there took three instructions of each post.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op(u32);

impl Default for Op {
    fn default() -> Op {
        Op::NONE
    }
}

impl Op {
    const fn new(code: u8, wc: u32, form: Form) -> Op {
        assert!(wc < Noted::IMM as u32);
        let imm = if form.contains(Form::IMM) { Noted::IMM } else { 0 };
        let atomic = if form.contains(Form::ATOMIC) { Noted::ATOMIC } else { 0 };
        Op(code as u32 | (form.bits() as u32) << 8 | (wc | imm as u32 | atomic as u32) << 16)
    }

    /// [`opcode`].
    #[inline(always)]
    pub(super) const fn code(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    pub(super) const fn noted(self) -> Noted {
        Noted((self.0 >> 16) as u8)
    }

    /// Whether it has any of `form`.
    #[inline(always)]
    pub(super) const fn has(self, form: Form) -> bool {
        self.0 & (form.bits() as u32) << 8 != 0
    }

    /// Units in front of the data, on a connected queue.
    #[inline(always)]
    pub(super) const fn units(self) -> u32 {
        1 + self.has(Form::REMOTE) as u32 + self.has(Form::ATOMIC) as u32
    }

    pub(super) const NONE: Op = Op::new(opcode::NOP, 0, Form::NONE);
    pub(super) const SEND: Op = Op::new(opcode::SEND, IBV_WC_SEND, Form::empty());
    pub(super) const SEND_IMM: Op = Op::new(opcode::SEND_IMM, IBV_WC_SEND, Form::IMM);
    pub(super) const SEND_INV: Op = Op::new(opcode::SEND_INVAL, IBV_WC_SEND, Form::KEY);
    pub(super) const WRITE: Op = Op::new(opcode::RDMA_WRITE, IBV_WC_RDMA_WRITE, Form::REMOTE);
    pub(super) const WRITE_IMM: Op =
        Op::new(opcode::RDMA_WRITE_IMM, IBV_WC_RDMA_WRITE, Form::REMOTE.union(Form::IMM));
    pub(super) const READ: Op = Op::new(opcode::RDMA_READ, IBV_WC_RDMA_READ, Form::REMOTE);
    pub(super) const CMP_SWP: Op =
        Op::new(opcode::ATOMIC_CS, IBV_WC_COMP_SWAP, Form::REMOTE.union(Form::ATOMIC));
    pub(super) const FETCH_ADD: Op =
        Op::new(opcode::ATOMIC_FA, IBV_WC_FETCH_ADD, Form::REMOTE.union(Form::ATOMIC));
    pub(super) const BIND_MW: Op = Op::new(opcode::UMR, IBV_WC_BIND_MW, Form::UMR);
    pub(super) const LOCAL_INV: Op = Op::new(opcode::UMR, IBV_WC_LOCAL_INV, Form::UMR);
}

/// The operations of a QP type, by `IBV_WR_*`: one load, where a match would be a jump through a table, mispredicted when
/// operations alternate.
pub(super) type Ops = [Op; 16];

#[allow(clippy::indexing_slicing, reason = "at compile time")]
const fn ops(known: &[(u32, Op)]) -> Ops {
    let mut ops = [Op::NONE; 16];
    let mut at = 0;
    while at < known.len() {
        ops[known[at].0 as usize] = known[at].1;
        at += 1;
    }
    ops
}

/// The operations of `ops`, by a bit for each `IBV_WR_*`, without those that have any of `form`.
pub(super) fn set_of(ops: &Ops, form: Form) -> u16 {
    let without = form.union(Form::NONE);
    (0..).zip(ops).fold(0, |set, (opcode, op)| if op.has(without) { set } else { set | 1 << opcode })
}

/// The operation of `IBV_WR_*` `opcode`, on a connected queue, of those without a bind.
pub(super) const fn of(opcode: u32) -> Op {
    match opcode {
        IBV_WR_RDMA_WRITE => Op::WRITE,
        IBV_WR_RDMA_WRITE_WITH_IMM => Op::WRITE_IMM,
        IBV_WR_SEND => Op::SEND,
        IBV_WR_SEND_WITH_IMM => Op::SEND_IMM,
        IBV_WR_SEND_WITH_INV => Op::SEND_INV,
        IBV_WR_RDMA_READ => Op::READ,
        IBV_WR_ATOMIC_CMP_AND_SWP => Op::CMP_SWP,
        IBV_WR_ATOMIC_FETCH_AND_ADD => Op::FETCH_ADD,
        _ => Op::NONE,
    }
}

/// For a queue that takes none.
pub(super) static NO_OPS: Ops = ops(&[]);

static UD: Ops = ops(&[(IBV_WR_SEND, Op::SEND), (IBV_WR_SEND_WITH_IMM, Op::SEND_IMM)]);

static UC: Ops = ops(&[
    (IBV_WR_SEND, Op::SEND),
    (IBV_WR_SEND_WITH_IMM, Op::SEND_IMM),
    (IBV_WR_SEND_WITH_INV, Op::SEND_INV),
    (IBV_WR_RDMA_WRITE, Op::WRITE),
    (IBV_WR_RDMA_WRITE_WITH_IMM, Op::WRITE_IMM),
    (IBV_WR_BIND_MW, Op::BIND_MW),
    (IBV_WR_LOCAL_INV, Op::LOCAL_INV),
]);

static RC: Ops = ops(&[
    (IBV_WR_SEND, Op::SEND),
    (IBV_WR_SEND_WITH_IMM, Op::SEND_IMM),
    (IBV_WR_SEND_WITH_INV, Op::SEND_INV),
    (IBV_WR_RDMA_WRITE, Op::WRITE),
    (IBV_WR_RDMA_WRITE_WITH_IMM, Op::WRITE_IMM),
    (IBV_WR_RDMA_READ, Op::READ),
    (IBV_WR_ATOMIC_CMP_AND_SWP, Op::CMP_SWP),
    (IBV_WR_ATOMIC_FETCH_AND_ADD, Op::FETCH_ADD),
    (IBV_WR_BIND_MW, Op::BIND_MW),
    (IBV_WR_LOCAL_INV, Op::LOCAL_INV),
]);

/// Transports, as `post` is compiled for; UC, the next after RC, differs from that in its operations only.
pub(super) mod transport {
    pub(crate) const RC: u8 = 0;
    pub(crate) const UC: u8 = 1;
    pub(crate) const UD: u8 = 2;
    pub(crate) const XRC: u8 = 3;
}

/// The transport of a QP type that sends.
pub(super) fn transport_of(qp_type: u32) -> u8 {
    match qp_type {
        IBV_QPT_RC => transport::RC,
        IBV_QPT_UC => transport::UC,
        IBV_QPT_UD => transport::UD,
        _ => transport::XRC,
    }
}

/// The operations of a transport.
pub(super) fn ops_of(transport: u8) -> &'static Ops {
    match transport {
        transport::UD => &UD,
        transport::UC => &UC,
        _ => &RC,
    }
}

/// `IBV_QP_EX_WITH_*` of a QP type, without atomics where the device has none.
pub(super) fn builders(qp_type: u32, atomics: bool) -> u64 {
    const UD: u32 = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    const UC: u32 = UD
        | IBV_QP_EX_WITH_SEND_WITH_INV
        | IBV_QP_EX_WITH_RDMA_WRITE
        | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
        | IBV_QP_EX_WITH_LOCAL_INV
        | IBV_QP_EX_WITH_BIND_MW;
    const ATOMIC: u32 = IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    const RC: u32 = UC | IBV_QP_EX_WITH_RDMA_READ;
    u64::from(match qp_type {
        IBV_QPT_RC | IBV_QPT_XRC_SEND if atomics => RC | ATOMIC,
        IBV_QPT_RC | IBV_QPT_XRC_SEND => RC,
        IBV_QPT_UC => UC,
        IBV_QPT_UD => UD,
        _ => 0,
    })
}
