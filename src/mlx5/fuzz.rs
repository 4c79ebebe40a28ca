//! The queues on entries that hold anything at all, and posts against a decoder of WQEs.

use core::mem::MaybeUninit;
use std::sync::Arc;

use super::dbrec::Pool;
use super::op::transport;
use super::ring::{Key, Owner, Parts, Receives, RecvRing, SendRing, Slot};
use super::send::{self, SendQueue, Shape};
use super::wqe;
use super::{Ah, Cq, srq};
use crate::abi::host::ForkRanges;
use crate::abi::public::*;
use crate::abi::wr::{InlineData, UserBytes};
use crate::family::{CompletionQueue as _, Head, SendBuilder as _, SendOp};
use crate::hw::dma::{Blocks, Entries, Pages, Units};
use crate::hw::table::Table;
use crate::sync::Locking;
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::uapi::sys::twin::Kernel;

const BLOCKS: u32 = 32;

/// A QP with its own receives, one with an SRQ, and nothing of either completed.
pub(super) fn owner(key: Key, pool: &Arc<Pool>, shared: bool, locking: Locking) -> Option<Arc<Owner>> {
    let (memory, beside) =
        Pages::new(ForkRanges::default()).take_beside(8192, Table::<Slot>::bytes(BLOCKS)).ok()?;
    let dbrec = pool.take().ok()?;
    let blocks = Blocks::new(&memory, 4096, BLOCKS).ok()?;
    let slots = Table::zeroed(beside, BLOCKS).ok()?;
    let record = || dbrec.record.clone();
    let send = SendRing::new(slots, send::prefix(transport::RC), blocks, record(), Arc::default());
    send.gate.set(BLOCKS);
    let receives = if shared {
        let shape = super::shape::Srq { count: 16, log_units: 1 };
        let units = Units::new(&memory, 0, 32).ok()?;
        Receives::Shared(Arc::new(srq::Inner::new(shape, units, Arc::new(pool.take().ok()?), locking)))
    } else {
        Receives::Own(RecvRing::new(
            Table::new(16, || AtomicU64::new(0)),
            0,
            Units::new(&memory, 0, 16).ok()?,
            record(),
            Arc::default(),
        ))
    };
    let (qpn, csum) = (key.0 & 0xff, AtomicBool::new(false));
    let sizes = super::shape::Qp {
        sq_blocks: BLOCKS,
        max_post: BLOCKS,
        max_inline: 0,
        rq_count: 16,
        rq_log_units: 0,
    };
    let parts = Some(Parts { sizes, memory, dbrec, index: None });
    Some(Arc::new(Owner { key, send: Some(send), receives, qpn, csum, parts }))
}

/// Polls a CQ whose entries are `data`, through both interfaces, with work requests outstanding on two QPs. Nothing may panic
/// or reach what is not ours; every completion given on has a status that verbs.h knows, and none comes twice.
///
/// # Panics
/// Where that does not hold.
pub fn fuzz_cq(data: &[u8]) {
    let Some((shape, content)) = data.split_first_chunk::<4>() else { return };
    let _kernel = Kernel::real();
    let pool = Pool::new(64, ForkRanges::default());
    let size = if shape[0] & 1 == 0 { 64 } else { 128 };
    let (Ok(entries), Ok(dbrec)) = (Entries::new(16, size, &Arc::default()), pool.take()) else {
        return;
    };
    // No data inside of entries: what they name would be written to, and nothing here is a buffer.
    for (index, bytes) in (0..16).zip(content.chunks(60)) {
        let entry = entries.entry(index);
        let mut bytes = bytes.iter().copied().chain(core::iter::repeat(0));
        let mut byte = move || bytes.next().unwrap_or(0);
        macro_rules! fill {
            ($($at:literal)*) => { $(entry.set::<$at>(byte());)* };
        }
        fill!(17 22 23 24 25 26 27 28 29 30 31 36 37 38 39 44 45 46 47 48 54 55 57 58 59);
        // Small numbers, so that some are right.
        entry.set::<35>(byte() & 3);
        entry.set::<56>(byte() & 0x3f);
        entry.set::<61>(byte() & 0x1f);
        entry.set::<63>(byte() & !0x0c);
    }
    let by_uidx = shape[1] & 1 == 0;
    let mut cq = Cq::new(entries, by_uidx, dbrec, None, Arc::default());
    let mut owners = Vec::new();
    for (key, shared) in [(0, false), (1, true)] {
        let name = if by_uidx { Key::user_index(key) } else { Key::qp(key) };
        let Some(owner) = owner(name, &pool, shared, Locking::YES) else { return };
        cq.attach(&owner, super::cq::Role::all());
        let mut sq = SendQueue::new(Shape { max_sge: 1, qpn: key, ..Shape::default() }, owner.clone(), None);
        sq.start();
        for id in 0..u64::from(shape[2] % 32) {
            sq.operation(u64::from(key) << 32 | id, IBV_SEND_SIGNALED, SendOp::Send);
        }
        assert!(sq.complete().is_ok());
        owners.push((owner, sq));
    }
    let mut seen = std::collections::HashSet::new();
    let mut known = |wr_id: u64, status: u32, is_send: bool| {
        assert!(status <= IBV_WC_GENERAL_ERR, "status {status}");
        assert!(!is_send || seen.insert(wr_id), "twice: {wr_id:#x}");
    };
    let mut out = [MaybeUninit::<ibv_wc>::uninit(); 4];
    for round in 0..24 {
        if round % 2 == usize::from(shape[3] & 1) {
            let polled = cq.poll(&mut out).unwrap_or(0);
            assert!(polled as usize <= out.len());
        } else if let Ok(Head { wr_id, status }) = cq.start() {
            known(wr_id, status, cq.opcode() < IBV_WC_RECV);
            while let Ok(Head { wr_id, status }) = cq.next() {
                known(wr_id, status, cq.opcode() < IBV_WC_RECV);
                let _ = (cq.wc_flags(), cq.byte_len(), cq.imm_data(), cq.completion_wallclock_ns());
                if wr_id % 3 == 0 {
                    break;
                }
            }
            cq.end();
        }
        if round == 12 {
            owners.iter().for_each(|(owner, _)| cq.clean(owner));
        }
    }
    owners.iter().for_each(|(owner, _)| cq.detach(owner));
    assert!(cq.outstanding().is_empty());
}

/// Posts through the builders what `data` says, and reads the ring back with a decoder: operations, lengths, keys and bytes
/// have to be those posted.
///
/// # Panics
/// Where they are not.
pub fn fuzz_wqe(data: &[u8]) {
    let _kernel = Kernel::real();
    let pool = Pool::new(64, ForkRanges::default());
    let Some(owner) = owner(Key::user_index(0), &pool, false, Locking::YES) else { return };
    let Some(ring) = &owner.send else { return };
    let kinds = [transport::RC, transport::UC, transport::UD, transport::XRC];
    let kind = kinds.get(usize::from(data.first().copied().unwrap_or(0)) % 4).copied().unwrap_or_default();
    let shape =
        Shape { transport: kind, atomics: true, qpn: 0x77, max_sge: 3, max_inline: 60, ..Shape::default() };
    let mut sq = SendQueue::new(shape, owner.clone(), None);
    let ah = Ah { units: [[0; 2]; 3], kernel: false };
    let mut block = 0_u32;
    let mut rest = data.get(1..).unwrap_or_default();
    while let Some((&[what, flags, count, len, ..], later)) = rest.split_first_chunk::<6>() {
        rest = later;
        let payload = rest.get(..usize::from(len) % 70).unwrap_or(rest);
        let op = match (what % 4, kind) {
            (1, transport::RC | transport::UC | transport::XRC) => {
                SendOp::Write { rkey: 5, remote_addr: 0x1000 }
            }
            (2, transport::RC | transport::XRC) => {
                SendOp::CmpSwp { rkey: 5, remote_addr: 0x1000, compare: 1, swap: 2 }
            }
            (3, _) => SendOp::SendImm { imm_data: 0x0102_0304_u32.to_be() },
            _ => SendOp::Send,
        };
        sq.start();
        sq.operation(7, u32::from(flags) & (IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_FENCE), op);
        match kind {
            transport::UD => sq.set_ud_addr(&ah, 1, 2),
            transport::XRC => sq.set_xrc_srqn(3),
            _ => {}
        }
        let inline = count & 4 != 0;
        let sges: Vec<ibv_sge> =
            (0..u32::from(count) % 5).map(|at| ibv_sge { addr: 64, length: at, lkey: 9 }).collect();
        if inline {
            sq.set_inline_data(&InlineData::one(UserBytes::from_slice(payload)));
        } else {
            sq.set_sge_list(&sges);
        }
        let fits = if inline { payload.len() <= 60 } else { sges.len() <= 3 };
        let done = sq.complete();
        assert!(fits || done.is_err());
        if done.is_err() {
            // Full, or too much: nothing moved. What is posted completes, so that more fits.
            let last = (0..block as u16).rev().find(|counter| ring.complete(*counter).is_some());
            assert!(!fits || last.is_some());
            continue;
        }
        let first = block * wqe::UNITS_PER_BB;
        let [ctrl, flags_and_imm] = ring.blocks.units().get(first);
        let ds = wqe::ds_of(ctrl);
        assert_eq!(u64::from_be(ctrl) >> 40 & 0xffff, u64::from(block & 0xffff));
        assert_eq!(u64::from_be(ctrl) >> 8 & 0xff_ffff, 0x77);
        let mut at = first + 1;
        at += match kind {
            transport::UD => 3,
            transport::XRC => 1,
            _ => 0,
        };
        match op {
            SendOp::Write { rkey, remote_addr } => {
                assert_eq!(ring.blocks.units().get(at), wqe::raddr(remote_addr, rkey));
                at += 1;
            }
            SendOp::CmpSwp { compare, swap, .. } => {
                assert_eq!(ring.blocks.units().get(at + 1), wqe::atomic(swap, compare));
                at += 2;
            }
            SendOp::SendImm { imm_data } => {
                assert_eq!(u64::from_be(flags_and_imm) as u32, u32::from_be(imm_data));
            }
            _ => {}
        }
        if inline && !payload.is_empty() {
            let mut bytes = Vec::new();
            for unit in at..first + ds {
                ring.blocks.units().get(unit).iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
            }
            let head = (wqe::INLINE_SEG | payload.len() as u32).to_be_bytes();
            assert_eq!(bytes.get(..4), Some(&head[..]));
            assert_eq!(bytes.get(4..4 + payload.len()), Some(payload));
        } else if !inline {
            for sge in sges.iter().filter(|sge| sge.length != 0) {
                assert_eq!(ring.blocks.units().get(at), wqe::data(sge.length, sge.lkey, sge.addr));
                at += 1;
            }
            assert_eq!(at, first + ds);
        }
        block += ds.div_ceil(wqe::UNITS_PER_BB);
    }
}
