//! How large queues are: from what the application asks for, what it is given, as stock computes it, so that programs see the
//! same numbers.

use crate::abi::public::*;
use crate::error::Errno;

use super::wqe;

/// What the driver said of the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_sq_desc_sz: u32,
    pub(super) max_rq_desc_sz: u32,
    pub(super) max_send_wqebb: u32,
    pub(super) max_recv_wr: u32,
    pub(super) max_srq_recv_wr: u32,
}

/// Counters of blocks and of receives have 16 bits; half of that can always be told from none.
const MAX_COUNT: u32 = 1 << 15;

/// Bytes of segments.
const CTRL: u32 = 16;
const RADDR: u32 = 16;
const ATOMIC: u32 = 16;
const DATA: u32 = 16;
const DATAGRAM: u32 = 48;
const XRC: u32 = 16;
/// UMR control, mkey context and one KLM entry with its padding.
const UMR: u32 = 48 + 64 + 64;
/// The head of an inline segment.
const INLINE: u32 = 4;

/// The queues of a QP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Qp {
    pub(super) sq_blocks: u32,
    /// Sends that fit whatever their length.
    pub(super) max_post: u32,
    pub(super) max_inline: u32,
    pub(super) rq_count: u32,
    pub(super) rq_log_units: u32,
}

impl Qp {
    /// Where the send queue begins: behind the receive queue.
    pub(super) fn sq_offset(&self) -> usize {
        if self.rq_count == 0 { 0 } else { (self.rq_count as usize) << (self.rq_log_units + 4) }
    }

    /// Bytes of both.
    pub(super) fn bytes(&self) -> usize {
        // A QP with no queue of its own still tells the kernel an address.
        (self.sq_offset() + self.sq_blocks as usize * wqe::BB as usize).max(1)
    }

    pub(super) fn rq_shift(&self) -> u32 {
        if self.rq_count == 0 { 0 } else { self.rq_log_units + 4 }
    }

    pub(super) fn max_recv_sge(&self) -> u32 {
        if self.rq_count == 0 { 0 } else { 1 << self.rq_log_units }
    }
}

/// Bytes of the longest WQE of a QP, without its data. `ops`: `IBV_QP_EX_WITH_*`; all where the application did not say.
fn overhead(qp_type: u32, ops: Option<u64>) -> u32 {
    let connected = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_BIND_MW;
    let all = if qp_type == IBV_QPT_UD { IBV_QP_EX_WITH_SEND } else { connected };
    let ops = ops.unwrap_or(u64::from(all));
    let has = |flags: u32| ops & u64::from(flags) != 0;
    let mut size = CTRL;
    if has(IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_RDMA_READ) {
        size = size.max(CTRL + RADDR);
    }
    if has(IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD) {
        size = size.max(CTRL + RADDR + ATOMIC);
    }
    if has(IBV_QP_EX_WITH_BIND_MW | IBV_QP_EX_WITH_LOCAL_INV) {
        size = size.max(CTRL + UMR);
    }
    size + match qp_type {
        IBV_QPT_UD => DATAGRAM,
        IBV_QPT_XRC_SEND => XRC,
        _ => 0,
    }
}

/// The queues of a QP of `qp_type` for `cap`; without `own_receives` they come from elsewhere.
pub(super) fn qp(
    limits: &Limits,
    qp_type: u32,
    ops: Option<u64>,
    cap: &ibv_qp_cap,
    own_receives: bool,
) -> Result<Qp, Errno> {
    let mut shape = Qp { sq_blocks: 0, max_post: 0, max_inline: 0, rq_count: 0, rq_log_units: 0 };
    if cap.max_send_wr != 0 {
        let overhead = overhead(qp_type, ops);
        let room = limits.max_sq_desc_sz.checked_sub(overhead).ok_or(Errno::EINVAL)?;
        if cap.max_send_sge > room / DATA || cap.max_inline_data > limits.max_sq_desc_sz {
            return Err(Errno::EINVAL);
        }
        let with_sges = overhead + cap.max_send_sge * DATA;
        let with_inline = match cap.max_inline_data {
            0 => 0,
            len => overhead + (INLINE + len).next_multiple_of(16),
        };
        let wqe_size = with_sges.max(with_inline);
        let rounded = wqe_size.next_multiple_of(wqe::BB);
        if wqe_size > limits.max_sq_desc_sz || rounded > limits.max_sq_desc_sz {
            return Err(Errno::EINVAL);
        }
        let bytes = u64::from(cap.max_send_wr) * u64::from(rounded);
        let bytes = bytes.checked_next_power_of_two().ok_or(Errno::EINVAL)?;
        let blocks = bytes / u64::from(wqe::BB);
        if blocks > u64::from(limits.max_send_wqebb.min(MAX_COUNT)) {
            return Err(Errno::EINVAL);
        }
        // Within MAX_COUNT.
        shape.sq_blocks = blocks as u32;
        shape.max_post = (bytes / u64::from(rounded)) as u32;
        shape.max_inline = rounded - overhead - INLINE;
    }
    if cap.max_recv_wr != 0 && own_receives {
        if cap.max_recv_wr > limits.max_recv_wr.min(MAX_COUNT) {
            return Err(Errno::EINVAL);
        }
        let sges = cap.max_recv_sge.max(1);
        if sges > limits.max_rq_desc_sz / DATA {
            return Err(Errno::EINVAL);
        }
        shape.rq_log_units = sges.next_power_of_two().trailing_zeros();
        // The queue has at least a block, so that the send queue behind it begins at one.
        let least = (wqe::BB / DATA) >> shape.rq_log_units;
        shape.rq_count = cap.max_recv_wr.next_power_of_two().max(least);
    }
    Ok(shape)
}

/// A shared receive queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Srq {
    pub(super) count: u32,
    pub(super) log_units: u32,
}

impl Srq {
    pub(super) fn bytes(&self) -> usize {
        (self.count as usize) << (self.log_units + 4)
    }

    /// One unit of each WQE links it to the next.
    pub(super) fn max_sge(&self) -> u32 {
        (1 << self.log_units) - 1
    }
}

/// An SRQ for `max_wr` receives of `max_sge` entries.
pub(super) fn srq(limits: &Limits, max_wr: u32, max_sge: u32) -> Result<Srq, Errno> {
    if max_wr > limits.max_srq_recv_wr.min(MAX_COUNT - 1) || max_sge > limits.max_rq_desc_sz / DATA {
        return Err(Errno::EINVAL);
    }
    let size = (DATA + max_sge * DATA).max(32).next_power_of_two();
    if size > limits.max_rq_desc_sz {
        return Err(Errno::EINVAL);
    }
    // One WQE is always free: the list of free ones never ends.
    let count = (max_wr + 1).next_power_of_two().max(2);
    Ok(Srq { count, log_units: (size / DATA).trailing_zeros() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const LIMITS: Limits = Limits {
        max_sq_desc_sz: 1024,
        max_rq_desc_sz: 512,
        max_send_wqebb: 32768,
        max_recv_wr: 32768,
        max_srq_recv_wr: 32767,
    };

    fn cap(max_send_wr: u32, max_recv_wr: u32, max_send_sge: u32, max_inline_data: u32) -> ibv_qp_cap {
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge: 1, max_inline_data }
    }

    #[test]
    fn a_plain_rc_queue_has_room_for_binds_as_stock_has() {
        let shape = qp(&LIMITS, IBV_QPT_RC, None, &cap(128, 128, 2, 0), true).unwrap();
        // 192 bytes and two SGEs, rounded to 4 blocks.
        assert_eq!((shape.sq_blocks, shape.max_post, shape.max_inline), (512, 128, 60));
        assert_eq!((shape.rq_count, shape.rq_log_units, shape.sq_offset()), (128, 0, 2048));
        let writes = u64::from(IBV_QP_EX_WITH_RDMA_WRITE);
        let shape = qp(&LIMITS, IBV_QPT_RC, Some(writes), &cap(512, 1, 1, 28), true).unwrap();
        assert_eq!((shape.sq_blocks, shape.max_post, shape.max_inline), (512, 512, 28));
        assert_eq!((shape.rq_count, shape.sq_offset()), (4, 64));
    }

    #[test]
    fn a_datagram_queue_has_room_for_addresses() {
        let shape = qp(&LIMITS, IBV_QPT_UD, None, &cap(3, 0, 1, 0), true).unwrap();
        assert_eq!((shape.sq_blocks, shape.max_post, shape.max_inline), (8, 4, 60));
        assert_eq!((shape.rq_count, shape.max_recv_sge(), shape.rq_shift()), (0, 0, 0));
    }

    #[test]
    fn what_the_device_cannot_have_is_refused() {
        for cap in [
            cap(1, 0, 100, 0),
            cap(1, 0, 1, 2000),
            cap(40_000, 0, 1, 0),
            cap(u32::MAX, 0, 1, 0),
            cap(1, 40_000, 1, 0),
            ibv_qp_cap { max_recv_sge: 33, ..cap(1, 1, 1, 0) },
        ] {
            assert_eq!(qp(&LIMITS, IBV_QPT_RC, None, &cap, true), Err(Errno::EINVAL), "{cap:?}");
        }
        assert_eq!(srq(&LIMITS, 40_000, 1), Err(Errno::EINVAL));
        assert_eq!(srq(&LIMITS, 1, 32), Err(Errno::EINVAL));
        assert_eq!(srq(&LIMITS, 100, 4), Ok(Srq { count: 128, log_units: 3 }));
    }

    proptest! {
        #[test]
        fn what_is_given_holds_what_was_asked_for(
            wr in 0_u32..70_000, recv in 0_u32..70_000, sge in 0_u32..80, inline in 0_u32..1200,
        ) {
            for kind in [IBV_QPT_RC, IBV_QPT_UC, IBV_QPT_UD, IBV_QPT_XRC_SEND] {
                let asked = ibv_qp_cap { max_recv_sge: sge, ..cap(wr, recv, sge, inline) };
                let Ok(shape) = qp(&LIMITS, kind, None, &asked, true) else { continue };
                prop_assert!(shape.max_post >= wr && shape.rq_count >= recv);
                prop_assert!(wr == 0 || shape.max_inline >= inline);
                prop_assert!(recv == 0 || shape.max_recv_sge() >= sge);
                prop_assert!(wr == 0 || shape.sq_blocks.is_power_of_two() && shape.sq_offset() % 64 == 0);
            }
        }
    }
}
