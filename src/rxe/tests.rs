//! The queues against a kernel of our own: what a post leaves in memory, what a poll makes of memory, and what either does when
//! somebody wrote over the mapping.
#![allow(unsafe_code, reason = "plays the kernel's side of a shared mapping")]

use core::mem::MaybeUninit;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::abi::wr::{InlineData, RecvWrs, SendWrs, UserBytes};
use crate::family::{
    CompletionQueue as _, Objects, QueuePair as _, SendBuilder as _, SendOp, SharedReceiveQueue as _,
};
use crate::ha::ledger::Fate;
use crate::ha::life::{Life, Sign};
use crate::uapi::sys::twin::Kernel;
use crate::uapi::wire::Wc;

const FD: CmdFd = CmdFd::new(7, DriverId::RXE);
/// Bytes of a slot in these tests: a send WQE with room for 3 SGEs or 48 inline bytes.
const ELEM: usize = 256;

/// The kernel's side of one ring.
#[derive(Clone, Copy)]
struct Ring {
    base: usize,
    mask: u32,
}

impl Ring {
    fn at<T>(self, offset: usize) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.base + offset)
    }

    fn set(self, offset: usize, value: u32) {
        // SAFETY: within the mapping the test made, which its queue keeps.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    fn get(self, offset: usize) -> u32 {
        // SAFETY: as above.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    fn slot<T: Copy>(self, index: u32) -> *mut T {
        self.at(wire::QUEUE_DATA + (index & self.mask) as usize * ELEM)
    }

    /// What stands in a slot, from `offset` bytes.
    fn read<T: Copy>(self, index: u32, offset: usize) -> T {
        let at = self.slot::<u8>(index).wrapping_add(offset).cast::<T>();
        // SAFETY: within the slot.
        unsafe { at.read_unaligned() }
    }

    fn producer(self) -> u32 {
        self.get(wire::PRODUCER_INDEX)
    }

    fn consumer(self) -> u32 {
        self.get(wire::CONSUMER_INDEX)
    }

    /// The kernel completes something.
    fn complete(self, wc: Wc) {
        let index = self.producer();
        // SAFETY: within the slot.
        unsafe { self.slot::<Wc>(index).write(wc) };
        self.set(wire::PRODUCER_INDEX, (index + 1) & self.mask);
    }
}

/// Expects the mapping of a ring with `slots` slots at `offset`, both indices at `start`.
fn expect_ring(
    kernel: &Kernel,
    offset: u64,
    slots: u32,
    start: u32,
) -> (wire::MmInfo, std::sync::mpsc::Receiver<Ring>) {
    let (tell, told) = std::sync::mpsc::channel();
    kernel.mmap(FD.fd, offset, move |memory| {
        let ring = Ring { base: memory.as_mut_ptr().expose_provenance(), mask: slots - 1 };
        ring.set(wire::LOG2_ELEM_SIZE, ELEM.ilog2());
        ring.set(wire::INDEX_MASK, slots - 1);
        ring.set(wire::PRODUCER_INDEX, start);
        ring.set(wire::CONSUMER_INDEX, start);
        tell.send(ring).unwrap();
        Ok(())
    });
    let size = (wire::QUEUE_DATA + slots as usize * ELEM) as u32;
    (wire::MmInfo { offset, size, pad: 0 }, told)
}

fn cq(kernel: &Kernel, slots: u32, start: u32) -> (Cq, Ring) {
    cq_of(kernel, slots, start, &Arc::default())
}

fn cq_of(kernel: &Kernel, slots: u32, start: u32, life: &Arc<Life>) -> (Cq, Ring) {
    let (info, ring) = expect_ring(kernel, 0x1000, slots, start);
    (Cq::map(FD, info, life.clone()).unwrap(), ring.recv().unwrap())
}

fn poll(cq: &mut Cq, room: usize) -> Result<Vec<ibv_wc>, Errno> {
    let mut out = vec![MaybeUninit::uninit(); room];
    let polled = cq.poll(&mut out)?;
    // SAFETY: poll says that it wrote these.
    Ok(out[..polled as usize].iter().map(|wc| unsafe { wc.assume_init() }).collect())
}

fn wc(wr_id: u64) -> Wc {
    Wc { wr_id, opcode: IBV_WC_RECV, qp_num: 17, byte_len: 5, ..Default::default() }
}

#[test]
fn completions_come_in_order_around_the_end_of_the_ring() {
    let kernel = Kernel::scripted();
    let (mut cq, ring) = cq(&kernel, 8, 6);
    assert!(poll(&mut cq, 4).unwrap().is_empty());
    for id in 1..=5 {
        ring.complete(wc(id));
    }
    let ids = |wcs: Vec<ibv_wc>| wcs.iter().map(|wc| wc.wr_id).collect::<Vec<_>>();
    assert_eq!(ids(poll(&mut cq, 2).unwrap()), [1, 2]);
    assert_eq!(ring.consumer(), 0);
    assert_eq!(ids(poll(&mut cq, 16).unwrap()), [3, 4, 5]);
    assert_eq!(ring.consumer(), 3);
}

#[test]
fn what_verbs_does_not_know_is_a_general_error_that_names_it() {
    let kernel = Kernel::scripted();
    let (mut cq, ring) = cq(&kernel, 8, 0);
    ring.complete(Wc { status: 99, ..wc(1) });
    ring.complete(Wc { opcode: 77, ..wc(2) });
    ring.complete(Wc { status: IBV_WC_WR_FLUSH_ERR, opcode: 77, vendor_err: 3, ..wc(3) });
    let wcs = poll(&mut cq, 8).unwrap();
    let seen: Vec<_> = wcs.iter().map(|wc| (wc.wr_id, wc.status, wc.vendor_err)).collect();
    assert_eq!(seen, [(1, IBV_WC_GENERAL_ERR, 99), (2, IBV_WC_GENERAL_ERR, 77), (3, IBV_WC_WR_FLUSH_ERR, 3)]);
}

#[test]
fn an_index_outside_of_the_ring_is_an_error_and_not_an_address() {
    let kernel = Kernel::scripted();
    let (mut cq, ring) = cq(&kernel, 8, 0);
    ring.complete(wc(1));
    ring.set(wire::PRODUCER_INDEX, 0xdead_beef);
    assert_eq!(poll(&mut cq, 8).unwrap_err(), Errno::EIO);
    assert_eq!(cq.start(), Err(Errno::EIO));
    ring.set(wire::PRODUCER_INDEX, 1);
    // Our own index is not read from the mapping.
    ring.set(wire::CONSUMER_INDEX, 0xdead_beef);
    ring.set(wire::INDEX_MASK, u32::MAX);
    ring.set(wire::LOG2_ELEM_SIZE, 31);
    assert_eq!(poll(&mut cq, 8).unwrap().len(), 1);
}

#[test]
fn the_extended_interface_keeps_the_current_completion_until_it_ends() {
    let kernel = Kernel::scripted();
    let (mut cq, ring) = cq(&kernel, 4, 3);
    assert_eq!(cq.start(), Err(Errno::ENOENT));
    ring.complete(wc(1));
    ring.complete(Wc { ex: 0xabcd, ..wc(2) });
    assert_eq!(cq.start().unwrap().wr_id, 1);
    assert_eq!(ring.consumer(), 3);
    assert_eq!(cq.next().unwrap().wr_id, 2);
    assert_eq!(ring.consumer(), 0);
    assert_eq!(cq.next(), Err(Errno::ENOENT));
    assert_eq!(cq.imm_data(), 0xabcd);
    cq.end();
    assert_eq!(ring.consumer(), 1);
    assert_eq!(cq.start(), Err(Errno::ENOENT));
}

proptest! {
    #[test]
    fn any_order_of_completions_and_polls_gives_each_once(steps in prop::collection::vec((0_u8..3, 1_usize..6), 1..80)) {
        let kernel = Kernel::scripted();
        let (mut cq, ring) = cq(&kernel, 8, 5);
        let (mut next, mut owed) = (0, VecDeque::new());
        for (what, count) in steps {
            match what {
                0 => for _ in 0..count.min(7 - owed.len()) {
                    ring.complete(wc(next));
                    owed.push_back(next);
                    next += 1;
                },
                1 => for wc in poll(&mut cq, count).unwrap() {
                    prop_assert_eq!(Some(wc.wr_id), owed.pop_front());
                },
                _ => if let Ok(mut head) = cq.start() {
                    for _ in 1..count {
                        prop_assert_eq!(Some(head.wr_id), owed.front().copied());
                        let Ok(next) = cq.next() else { break };
                        owed.pop_front();
                        head = next;
                    }
                    prop_assert_eq!(Some(head.wr_id), owed.pop_front());
                    cq.end();
                } else {
                    prop_assert!(owed.is_empty());
                },
            }
        }
    }

    #[test]
    fn a_header_is_believed_only_where_it_fits_the_mapping(log2 in any::<u32>(), mask in any::<u32>(), bits in 0_u32..6) {
        for (log2, mask) in [(log2, mask), (log2 % 40, (1 << bits) - 1), (ELEM.ilog2(), (1_u32 << bits) - 1)] {
            let kernel = Kernel::scripted();
            kernel.mmap(FD.fd, 0, move |memory| {
                let ring = Ring { base: memory.as_mut_ptr().expose_provenance(), mask: 0 };
                ring.set(wire::LOG2_ELEM_SIZE, log2);
                ring.set(wire::INDEX_MASK, mask);
                Ok(())
            });
            let size = wire::QUEUE_DATA + 8 * ELEM;
            let queue = map_queue(FD, wire::MmInfo { offset: 0, size: size as u32, pad: 0 }, 48);
            let fits = log2 < 32 && 1_u64 << log2 >= 48 && mask.wrapping_add(1).is_power_of_two()
                && (u64::from(mask) + 1) << log2 <= 8 * ELEM as u64;
            prop_assert_eq!(queue.is_ok(), fits);
        }
    }
}

#[derive(Clone, Copy)]
struct Known;

const AH: Ah = Ah {
    ah_num: 9,
    av: wire::Av {
        port_num: 0,
        network_type: 0,
        dmac: [0; 6],
        grh: GRH,
        sgid_addr: [0; 28],
        dgid_addr: [0; 28],
    },
};
const GRH: wire::GlobalRoute = wire::GlobalRoute {
    dgid: [0; 16],
    flow_label: 0,
    sgid_index: 0,
    hop_limit: 0,
    traffic_class: 0,
    _pad: 0,
};
static THE_AH: Ah = AH;

impl<'a> Objects<'a, Ah> for Known {
    fn ah(self, ah: *mut ibv_ah) -> Option<&'a Ah> {
        (!ah.is_null()).then_some(&THE_AH)
    }
    fn mw(self, mw: *mut ibv_mw) -> Option<(u32, u32)> {
        (!mw.is_null()).then_some((0x100, IBV_MW_TYPE_1))
    }
    fn mr_lkey(self, mr: *mut ibv_mr) -> Option<u32> {
        (!mr.is_null()).then_some(0x200)
    }
}

/// A QP in RTS with 3 SGEs, 48 inline bytes, and rings of 8 slots; the send ring, and the receive ring where it has one.
fn qp(kernel: &Kernel, qp_type: u32, srq: Option<Handle>) -> (Qp, Ring, Option<Ring>) {
    qp_of(kernel, qp_type, srq, &Arc::default())
}

fn qp_of(kernel: &Kernel, qp_type: u32, srq: Option<Handle>, life: &Arc<Life>) -> (Qp, Ring, Option<Ring>) {
    let (sq_mi, sq) = expect_ring(kernel, 0x2000, 8, 6);
    let (rq_mi, rq) = match srq {
        None => expect_ring(kernel, 0x3000, 8, 6),
        Some(_) => (wire::MmInfo::default(), std::sync::mpsc::channel().1),
    };
    let cap =
        ibv_qp_cap { max_send_wr: 7, max_recv_wr: 7, max_send_sge: 3, max_recv_sge: 2, max_inline_data: 48 };
    let request = QpRequest {
        qp_type,
        pd: Some(Handle(1)),
        xrcd: None,
        send_cq: Some(Handle(2)),
        recv_cq: Some(Handle(2)),
        srq,
        cap,
        sq_sig_all: false,
        send_ops: None,
        locking: crate::sync::Locking::YES,
        user_handle: 0,
    };
    let resp = wire::CreateQpResp { rq_mi, sq_mi };
    let qp = Qp::map(FD, (Handle(5), 17), &request, &cap, &resp, life).unwrap();
    qp.entered(IBV_QPS_RTS);
    (qp, sq.recv().unwrap(), rq.recv().ok())
}

fn expect_kick(kernel: &Kernel) {
    kernel.write(FD.fd, |command| Ok(command.len()));
}

/// Posts `wrs` as a list; the position of the refused one.
fn post(qp: &Qp, wrs: &mut [ibv_send_wr]) -> Result<(), (usize, Errno)> {
    let (base, count) = (wrs.as_mut_ptr(), wrs.len());
    for (at, wr) in wrs.iter_mut().enumerate() {
        wr.next = if at + 1 < count { base.wrapping_add(at + 1) } else { core::ptr::null_mut() };
    }
    // SAFETY: a valid list that outlives the call.
    let list = unsafe { SendWrs::from_ptr(base) };
    qp.post_send(list, Known).map_err(|refused| {
        // SAFETY: both within `wrs`.
        (unsafe { refused.wr.offset_from(base) } as usize, refused.errno)
    })
}

fn send(wr_id: u64, sges: &mut [ibv_sge]) -> ibv_send_wr {
    ibv_send_wr {
        wr_id,
        sg_list: sges.as_mut_ptr(),
        num_sge: sges.len() as i32,
        opcode: IBV_WR_SEND,
        send_flags: IBV_SEND_SIGNALED,
        ..ibv_send_wr::zeroed()
    }
}

const SGE: ibv_sge = ibv_sge { addr: 0x1000, length: 16, lkey: 3 };

#[test]
fn a_list_is_written_then_published_then_kicked_once() {
    let kernel = Kernel::scripted();
    let (qp, sq, _) = qp(&kernel, IBV_QPT_RC, None);
    let mut sges = [SGE; 2];
    let mut write = send(2, &mut sges);
    write.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
    write.imm_data = 0x0102_0304;
    write.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x9000, rkey: 4 };
    let mut sges = [SGE; 2];
    expect_kick(&kernel);
    assert_eq!(post(&qp, &mut [send(1, &mut sges[..1]), write]), Ok(()));
    assert_eq!(sq.producer(), 0);
    let first: wire::SendWqe = sq.read(6, 0);
    assert_eq!((first.wr.wr_id, first.wr.opcode, first.wr.send_flags), (1, IBV_WR_SEND, IBV_SEND_SIGNALED));
    assert_eq!((first.dma.length, first.dma.resid, first.dma.num_sge, first.state), (16, 16, 1, 0));
    let second: wire::SendWqe = sq.read(7, 0);
    assert_eq!(
        (second.wr.ex, second.iova, second.dma.length, second.dma.num_sge),
        (0x0102_0304, 0x9000, 32, 2)
    );
    assert_eq!(second.wr.member::<wire::Rdma>(), wire::Rdma { remote_addr: 0x9000, rkey: 4, reserved: 0 });
    assert_eq!(sq.read::<[ibv_sge; 2]>(7, size_of::<wire::SendWqe>()), [SGE; 2]);
}

#[test]
fn the_refused_one_is_named_and_those_before_it_are_posted() {
    let refused = |change: fn(&mut ibv_send_wr), expected: Errno| {
        let kernel = Kernel::scripted();
        let (qp, sq, _) = qp(&kernel, IBV_QPT_RC, None);
        let mut sges = [SGE; 4];
        let mut bad = send(2, &mut sges[..1]);
        bad.sg_list = sges.as_mut_ptr();
        change(&mut bad);
        let mut list = [send(1, &mut []), bad, send(3, &mut [])];
        expect_kick(&kernel);
        assert_eq!(post(&qp, &mut list), Err((1, expected)));
        assert_eq!(sq.producer(), 7, "the first is posted");
    };
    refused(|wr| wr.num_sge = 4, Errno::EINVAL);
    refused(|wr| wr.num_sge = -1, Errno::EINVAL);
    refused(|wr| wr.opcode = 99, Errno::EINVAL);
    refused(|wr| wr.opcode = IBV_WR_TSO, Errno::EINVAL);
    refused(|wr| (wr.num_sge, wr.send_flags) = (4, IBV_SEND_INLINE), Errno::EINVAL);
    refused(
        |wr| {
            wr.opcode = IBV_WR_ATOMIC_FETCH_AND_ADD;
            wr.wr.atomic = ibv_send_wr_atomic { remote_addr: 0x1004, ..ibv_send_wr_atomic::zeroed() };
        },
        Errno::EINVAL,
    );
    refused(|wr| wr.opcode = IBV_WR_BIND_MW, Errno::EINVAL);
    refused(
        |wr| {
            // SAFETY: the test's own array of 4.
            unsafe { (*wr.sg_list).length = u32::MAX };
            wr.num_sge = 2;
        },
        Errno::EINVAL,
    );
}

#[test]
fn inline_data_follow_the_wqe_up_to_the_limit() {
    let kernel = Kernel::scripted();
    let (qp, sq, _) = qp(&kernel, IBV_QPT_RC, None);
    let data: Vec<u8> = (0..49).collect();
    let sge = |from: usize, len: usize| ibv_sge {
        addr: data[from..].as_ptr().expose_provenance() as u64,
        length: len as u32,
        lkey: 0,
    };
    for (pieces, fits) in [(vec![sge(0, 20), sge(20, 28)], true), (vec![sge(0, 49)], false), (vec![], true)] {
        let mut pieces = pieces;
        let mut wr = send(1, &mut pieces);
        wr.send_flags = IBV_SEND_INLINE;
        if fits {
            expect_kick(&kernel);
            let slot = sq.producer();
            assert_eq!(post(&qp, &mut [wr]), Ok(()));
            let len: u32 = pieces.iter().map(|sge| sge.length).sum();
            assert_eq!(sq.read::<wire::SendWqe>(slot, 0).dma.length, len);
            if len == 48 {
                assert_eq!(sq.read::<[u8; 48]>(slot, size_of::<wire::SendWqe>()), data[..48]);
            }
        } else {
            assert_eq!(post(&qp, &mut [wr]), Err((0, Errno::EINVAL)));
        }
    }
}

#[test]
fn a_full_ring_refuses_until_the_kernel_consumes() {
    let kernel = Kernel::scripted();
    let (qp, sq, _) = qp(&kernel, IBV_QPT_RC, None);
    let mut list: Vec<ibv_send_wr> = (0..8).map(|id| send(id, &mut [])).collect();
    expect_kick(&kernel);
    assert_eq!(post(&qp, &mut list), Err((7, Errno::ENOMEM)));
    assert_eq!(sq.producer(), 5);
    // Nothing fits: nothing is published, so nothing is kicked.
    assert_eq!(post(&qp, &mut list[..1]), Err((0, Errno::ENOMEM)));
    sq.set(wire::CONSUMER_INDEX, 7);
    expect_kick(&kernel);
    assert_eq!(post(&qp, &mut list[..1]), Ok(()));
    sq.set(wire::CONSUMER_INDEX, 0xffff);
    assert_eq!(post(&qp, &mut list[..1]), Err((0, Errno::EIO)));
}

#[test]
fn before_rts_nothing_is_posted() {
    let kernel = Kernel::scripted();
    let (qp, sq, rq) = qp(&kernel, IBV_QPT_RC, None);
    for state in [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR] {
        qp.entered(state);
        assert_eq!(post(&qp, &mut [send(1, &mut [])]), Err((0, Errno::EINVAL)));
    }
    assert_eq!(sq.producer(), 6);
    qp.entered(IBV_QPS_RESET);
    assert_eq!(recv(&qp, &mut [recv_wr(1, &mut [])]), Err((0, Errno::EINVAL)));
    assert_eq!(rq.unwrap().producer(), 6);
    qp.entered(IBV_QPS_ERR);
    expect_kick(&kernel);
    assert_eq!(post(&qp, &mut [send(1, &mut [])]), Ok(()), "to be flushed");
}

#[test]
fn the_kernels_refusal_of_the_kick_is_the_posts() {
    let kernel = Kernel::scripted();
    let (qp, _, _) = qp(&kernel, IBV_QPT_RC, None);
    kernel.write(FD.fd, |_| Err(Errno::EINVAL));
    assert_eq!(post(&qp, &mut [send(1, &mut []), send(2, &mut [])]), Err((0, Errno::EINVAL)));
}

#[test]
fn only_what_a_qp_type_can_do_is_taken() {
    let kernel = Kernel::scripted();
    let (ud, sq, _) = qp(&kernel, IBV_QPT_UD, None);
    let mut wr = send(1, &mut []);
    wr.wr.ud = ibv_send_wr_ud { ah: core::ptr::null_mut(), remote_qpn: 11, remote_qkey: 12 };
    assert_eq!(post(&ud, &mut [wr]), Err((0, Errno::EINVAL)), "no address");
    wr.wr.ud.ah = core::ptr::dangling_mut();
    expect_kick(&kernel);
    assert_eq!(post(&ud, &mut [wr]), Ok(()));
    let seen = sq.read::<wire::SendWqe>(6, 0).wr.member::<wire::Ud>();
    assert_eq!((seen.remote_qpn, seen.remote_qkey, seen.ah_num), (11, 12, 9));
    wr.opcode = IBV_WR_RDMA_WRITE;
    assert_eq!(post(&ud, &mut [wr]), Err((0, Errno::EINVAL)));
    drop((ud, kernel));
    let kernel = Kernel::scripted();
    let (uc, _, _) = qp(&kernel, IBV_QPT_UC, None);
    for opcode in [IBV_WR_RDMA_READ, IBV_WR_ATOMIC_CMP_AND_SWP] {
        wr.opcode = opcode;
        assert_eq!(post(&uc, &mut [wr]), Err((0, Errno::EINVAL)));
    }
}

#[test]
fn builders_post_all_or_nothing() {
    let kernel = Kernel::scripted();
    let (qp, sq, _) = qp(&kernel, IBV_QPT_RC, None);
    let mut queue = qp.send_queue().lock();
    queue.start();
    queue.operation(1, IBV_SEND_SIGNALED, SendOp::Send);
    queue.set_inline_data(&InlineData::one(UserBytes::from_slice(b"holdfast")));
    queue.operation(2, 0, SendOp::CmpSwp { rkey: 1, remote_addr: 8, compare: 2, swap: 3 });
    queue.set_sge(SGE);
    assert_eq!(queue.complete(), Ok(true), "the kernel is to be told");
    qp.will_kick();
    drop(queue);
    assert!(!qp.is_quiet(), "the kernel is not yet told");
    expect_kick(&kernel);
    assert_eq!(qp.kick(), Ok(()));
    assert!(qp.is_quiet());
    let mut queue = qp.send_queue().lock();
    assert_eq!(sq.producer(), 0);
    let first: wire::SendWqe = sq.read(6, 0);
    assert_eq!((first.wr.send_flags, first.dma.length), (IBV_SEND_SIGNALED | IBV_SEND_INLINE, 8));
    assert_eq!(&sq.read::<[u8; 8]>(6, size_of::<wire::SendWqe>()), b"holdfast");
    let second: wire::SendWqe = sq.read(7, 0);
    let atomic = second.wr.member::<wire::Atomic>();
    assert_eq!((atomic.compare_add, atomic.swap, second.dma.num_sge), (2, 3, 1));

    queue.start();
    queue.operation(3, 0, SendOp::Send);
    queue.set_sge_list(&[SGE; 4]);
    queue.set_sge(SGE);
    assert_eq!(queue.complete(), Err(Errno::ENOSPC), "the first error is kept");
    queue.start();
    queue.operation(4, 0, SendOp::Send);
    queue.abort();
    assert_eq!(sq.producer(), 0);

    queue.start();
    for id in 0..8 {
        queue.operation(id, 0, SendOp::Send);
    }
    assert_eq!(queue.complete(), Err(Errno::ENOSPC));
    assert_eq!(sq.producer(), 0);
    queue.start();
    assert_eq!(queue.complete(), Ok(false), "nothing built, nothing kicked");
}

#[test]
fn an_inline_message_beyond_the_limit_is_not_copied() {
    let kernel = Kernel::scripted();
    let (qp, _, _) = qp(&kernel, IBV_QPT_RC, None);
    let mut queue = qp.send_queue().lock();
    queue.start();
    queue.operation(1, 0, SendOp::Send);
    queue.set_inline_data(&InlineData::one(UserBytes::from_slice(&[0; 49])));
    assert_eq!(queue.complete(), Err(Errno::ENOSPC));
}

fn recv_wr(wr_id: u64, sges: &mut [ibv_sge]) -> ibv_recv_wr {
    ibv_recv_wr { wr_id, sg_list: sges.as_mut_ptr(), num_sge: sges.len() as i32, next: core::ptr::null_mut() }
}

fn recv(qp: &Qp, wrs: &mut [ibv_recv_wr]) -> Result<(), (usize, Errno)> {
    let (base, count) = (wrs.as_mut_ptr(), wrs.len());
    for (at, wr) in wrs.iter_mut().enumerate() {
        wr.next = if at + 1 < count { base.wrapping_add(at + 1) } else { core::ptr::null_mut() };
    }
    // SAFETY: a valid list that outlives the call.
    let list = unsafe { RecvWrs::from_ptr(base) };
    qp.post_recv(list).map_err(|refused| {
        // SAFETY: both within `wrs`.
        (unsafe { refused.wr.offset_from(base) } as usize, refused.errno)
    })
}

#[test]
fn receives_are_published_once_and_the_refused_one_is_named() {
    let kernel = Kernel::scripted();
    let (qp, _, rq) = qp(&kernel, IBV_QPT_RC, None);
    let rq = rq.unwrap();
    let mut sges = [SGE; 3];
    let mut list = [recv_wr(1, &mut [SGE]), recv_wr(2, &mut []), recv_wr(3, &mut [])];
    list[0].sg_list = sges.as_mut_ptr();
    (list[2].sg_list, list[2].num_sge) = (sges.as_mut_ptr(), 3);
    assert_eq!(recv(&qp, &mut list), Err((2, Errno::EINVAL)));
    assert_eq!(rq.producer(), 0);
    let wqe: wire::RecvWqe = rq.read(6, 0);
    assert_eq!((wqe.wr_id, wqe.dma.length, wqe.dma.num_sge), (1, 16, 1));
    assert_eq!(rq.read::<ibv_sge>(6, size_of::<wire::RecvWqe>()), SGE);
    let mut list: Vec<ibv_recv_wr> = (0..6).map(|id| recv_wr(id, &mut [])).collect();
    assert_eq!(recv(&qp, &mut list), Err((5, Errno::ENOMEM)));
    rq.set(wire::CONSUMER_INDEX, 1 << 20);
    assert_eq!(recv(&qp, &mut list[..1]), Err((0, Errno::EIO)));
}

#[test]
fn a_qp_with_an_srq_takes_no_receives() {
    let kernel = Kernel::scripted();
    let (qp, _, _) = qp(&kernel, IBV_QPT_RC, Some(Handle(3)));
    assert_eq!(recv(&qp, &mut [recv_wr(1, &mut [])]), Err((0, Errno::EINVAL)));
}

proptest! {
    #[test]
    fn a_cq_of_any_bytes_is_polled_to_an_end(data in prop::collection::vec(any::<u8>(), 3..2048)) {
        fuzz::fuzz_cq(&data);
    }
}

/// A CQ and a QP that completes there.
struct Dying {
    life: Arc<Life>,
    cq: Cq,
    done: Ring,
    qp: Qp,
    sq: Ring,
    rq: Ring,
}

impl Dying {
    fn new(kernel: &Kernel) -> Dying {
        let life: Arc<Life> = Arc::default();
        let (mut cq, done) = cq_of(kernel, 32, 30, &life);
        let (qp, sq, rq) = qp_of(kernel, IBV_QPT_RC, None, &life);
        cq.add(&qp.sends);
        cq.add(&qp.receives);
        Dying { life, cq, done, qp, sq, rq: rq.unwrap() }
    }

    /// Closes the gates.
    fn close(&self) {
        self.life.note(Sign::NodeGone);
        self.qp.close();
        assert!(self.qp.is_quiet());
    }

    fn freeze(&mut self) {
        self.cq.freeze();
        self.qp.freeze().unwrap();
    }

    /// The kernel completes the WQE at the head of `ring`, which it takes off, whatever its `wr_id`.
    fn complete(&self, ring: Ring, opcode: u32) {
        let index = ring.consumer();
        let wr_id: u64 = ring.read(index, 0);
        ring.set(wire::CONSUMER_INDEX, (index + 1) & ring.mask);
        self.done.complete(Wc { wr_id, opcode, qp_num: 17, ..Default::default() });
    }

    /// The kernel destroys the QP, and takes off what is left.
    fn stop(&mut self) {
        for ring in [self.sq, self.rq] {
            ring.set(wire::CONSUMER_INDEX, ring.producer());
        }
        self.cq.let_go().unwrap();
        self.qp.let_go();
        self.life.note(Sign::Stopped);
        assert!(self.life.is_gone());
    }

    /// What polls give, through either interface: `wr_id`, status and opcode.
    fn polled(&mut self, extended: bool) -> Vec<(u64, u32, u32)> {
        let mut found = Vec::new();
        if extended {
            let Ok(mut head) = self.cq.start() else { return found };
            loop {
                assert_eq!((self.cq.qp_num(), self.cq.vendor_err(), self.cq.wc_flags()), (17, 0, 0));
                found.push((head.wr_id, head.status, self.cq.opcode()));
                match self.cq.next() {
                    Ok(next) => head = next,
                    Err(errno) => break assert_eq!(errno, Errno::ENOENT),
                }
            }
            self.cq.end();
            return found;
        }
        loop {
            let wcs = poll(&mut self.cq, 2).unwrap();
            if wcs.is_empty() {
                return found;
            }
            for wc in wcs {
                assert_eq!((wc.qp_num, wc.vendor_err), (17, 0));
                found.push((wc.wr_id, wc.status, wc.opcode));
            }
        }
    }
}

const OK: u32 = IBV_WC_SUCCESS;
const FLUSHED: u32 = IBV_WC_WR_FLUSH_ERR;

#[test]
fn what_the_kernel_completed_comes_first_and_the_rest_is_flushed_once() {
    for extended in [false, true] {
        let kernel = Kernel::scripted();
        let mut it = Dying::new(&kernel);
        let mut list: Vec<ibv_send_wr> = (10..14).map(|id| send(id, &mut [])).collect();
        list[1].send_flags = 0;
        (list[3].opcode, list[3].send_flags) = (IBV_WR_RDMA_READ, 0);
        expect_kick(&kernel);
        assert_eq!(post(&it.qp, &mut list), Ok(()));
        let mut list: Vec<ibv_recv_wr> = (20..23).map(|id| recv_wr(id, &mut [])).collect();
        assert_eq!(recv(&it.qp, &mut list), Ok(()));
        it.complete(it.sq, IBV_WC_SEND);
        it.complete(it.rq, IBV_WC_RECV);
        it.close();
        // Kept: neither published nor kicked.
        assert_eq!(post(&it.qp, &mut [send(14, &mut [])]), Ok(()));
        assert_eq!(recv(&it.qp, &mut [recv_wr(23, &mut [])]), Ok(()));
        assert_eq!((it.sq.producer(), it.rq.producer()), (2, 1));
        let fates = |qp: &Qp| qp.outstanding().iter().map(|wr| (wr.wr_id, wr.fate)).collect::<Vec<_>>();
        let told = |id| (id, Fate::Unknown);
        let kept = |id| (id, Fate::NotExecuted);
        let expected = [told(11), told(12), told(13), kept(14), told(21), told(22), kept(23)];
        assert_eq!(fates(&it.qp), expected);
        it.freeze();
        assert_eq!(fates(&it.qp), expected);
        assert!(it.polled(extended).is_empty(), "not while the kernel is at it");
        // The kernel goes on for a while: it says nothing of 11, which was not signalled.
        it.sq.set(wire::CONSUMER_INDEX, 0);
        it.complete(it.sq, IBV_WC_SEND);
        assert_eq!(post(&it.qp, &mut [send(15, &mut [])]), Ok(()));
        it.stop();
        assert_eq!(kernel.unmapped().len(), 3);
        assert!(it.cq.is_pending());
        let real = [(10, OK, IBV_WC_SEND), (20, OK, IBV_WC_RECV), (12, OK, IBV_WC_SEND)];
        let flushed = [
            (13, FLUSHED, IBV_WC_RDMA_READ),
            (14, FLUSHED, IBV_WC_SEND),
            (15, FLUSHED, IBV_WC_SEND),
            (21, FLUSHED, IBV_WC_RECV),
            (22, FLUSHED, IBV_WC_RECV),
            (23, FLUSHED, IBV_WC_RECV),
        ];
        assert_eq!(it.polled(extended), [&real[..], &flushed[..]].concat());
        assert!(it.polled(extended).is_empty() && !it.cq.is_pending());
        // And so is what is posted now.
        assert_eq!(post(&it.qp, &mut [send(16, &mut [])]), Ok(()));
        let mut queue = it.qp.send_queue().lock();
        queue.start();
        queue.operation(17, 0, SendOp::Send);
        assert_eq!(queue.complete(), Ok(false), "kept, not kicked");
        drop(queue);
        assert!(it.cq.is_pending());
        assert_eq!(it.polled(extended), [(16, FLUSHED, IBV_WC_SEND), (17, FLUSHED, IBV_WC_SEND)]);
        // A QP that is destroyed owes nothing.
        assert_eq!(post(&it.qp, &mut [send(18, &mut [])]), Ok(()));
        it.cq.remove(&it.qp.sends);
        assert!(it.polled(extended).is_empty());
    }
}

#[test]
fn what_is_kept_needs_room_until_it_is_flushed() {
    let kernel = Kernel::scripted();
    let mut it = Dying::new(&kernel);
    expect_kick(&kernel);
    assert_eq!(post(&it.qp, &mut [send(0, &mut []), send(1, &mut [])]), Ok(()));
    it.close();
    it.freeze();
    it.stop();
    let mut list: Vec<ibv_send_wr> = (2..9).map(|id| send(id, &mut [])).collect();
    assert_eq!(post(&it.qp, &mut list), Err((5, Errno::ENOMEM)), "the kernel's index says that all are done");
    let ids = |found: Vec<(u64, u32, u32)>| found.iter().map(|(id, ..)| *id).collect::<Vec<_>>();
    assert_eq!(ids(it.polled(false)), (0..7).collect::<Vec<_>>());
    assert_eq!(post(&it.qp, &mut list), Ok(()));
    assert_eq!(ids(it.polled(false)), (2..9).collect::<Vec<_>>());
}

#[test]
fn a_thread_that_stays_in_a_send_keeps_no_receive_from_its_end() {
    let kernel = Kernel::scripted();
    let mut it = Dying::new(&kernel);
    assert_eq!(recv(&it.qp, &mut [recv_wr(1, &mut [])]), Ok(()));
    it.close();
    it.cq.freeze();
    let held = it.qp.send_queue().lock();
    assert_eq!(it.qp.freeze(), Err(Errno::EBUSY));
    drop(held);
    it.stop();
    assert_eq!(it.polled(false), [(1, FLUSHED, IBV_WC_RECV)]);
}

#[test]
fn a_kick_that_meets_the_end_is_no_refusal() {
    let kernel = Kernel::scripted();
    let mut it = Dying::new(&kernel);
    let qp = &raw const it.qp as usize;
    kernel.write(FD.fd, move |_| {
        // SAFETY: the test's own QP, alive while it is posted to.
        unsafe { &*core::ptr::with_exposed_provenance::<Qp>(qp) }.close();
        Err(Errno::EINVAL)
    });
    assert_eq!(post(&it.qp, &mut [send(1, &mut [])]), Ok(()));
    it.close();
    it.freeze();
    it.stop();
    assert_eq!(it.polled(false), [(1, FLUSHED, IBV_WC_SEND)]);
}

#[test]
fn a_queue_in_the_hands_of_the_application_is_not_taken() {
    let kernel = Kernel::scripted();
    let it = Dying::new(&kernel);
    it.close();
    let _kicking = it.qp.send_queue().lock();
    assert!(!it.qp.is_quiet());
}

#[test]
fn a_reset_forgets_what_is_owed() {
    let kernel = Kernel::scripted();
    let mut it = Dying::new(&kernel);
    expect_kick(&kernel);
    assert_eq!(post(&it.qp, &mut [send(0, &mut [])]), Ok(()));
    it.close();
    it.freeze();
    it.stop();
    it.qp.entered(IBV_QPS_RESET);
    it.qp.sends.forget();
    assert!(!it.cq.is_pending() && it.polled(false).is_empty());
    assert_eq!(post(&it.qp, &mut [send(1, &mut [])]), Err((0, Errno::EINVAL)));
}

#[test]
fn receives_of_an_srq_stay_where_they_are() {
    let kernel = Kernel::scripted();
    let (info, ring) = expect_ring(&kernel, 0x4000, 8, 0);
    let srq = Srq::new(recv::RecvQueue::map(FD, info, 1).unwrap(), Arc::default());
    let ring = ring.recv().unwrap();
    let post = |id| {
        let mut wr = recv_wr(id, &mut []);
        // SAFETY: a valid list of one.
        srq.post_recv(unsafe { RecvWrs::from_ptr(&raw mut wr) }).map_err(|refused| refused.errno)
    };
    assert_eq!(post(1), Ok(()));
    assert_eq!(ring.producer(), 1);
    srq.close();
    assert!(srq.is_quiet());
    assert_eq!(post(2), Ok(()));
    assert_eq!(ring.producer(), 1);
    srq.let_go().unwrap();
    srq.let_go().unwrap();
    assert_eq!(kernel.unmapped().len(), 1);
    for id in 3..8 {
        assert_eq!(post(id), Ok(()));
    }
    assert_eq!(post(8), Err(Errno::ENOMEM));
}

proptest! {
    /// The kernel completes some before the freeze, some before the last look and some after it; the application polls in between.
    #[test]
    fn wherever_the_end_comes_each_is_given_once_and_in_order(
        signalled in prop::collection::vec(any::<bool>(), 1..7),
        steps in prop::collection::vec(0_usize..3, 3),
        polls in any::<bool>(),
        extended in any::<bool>(),
        same in any::<bool>(),
    ) {
        let kernel = Kernel::scripted();
        let mut it = Dying::new(&kernel);
        // Programs give the same `wr_id` to many: what counts is how many come.
        let id = |at: usize| if same { 7 } else { at as u64 };
        let mut list: Vec<ibv_send_wr> = signalled.iter().enumerate().map(|(at, signalled)| {
            ibv_send_wr { send_flags: if *signalled { IBV_SEND_SIGNALED } else { 0 }, ..send(id(at), &mut []) }
        }).collect();
        expect_kick(&kernel);
        prop_assert_eq!(post(&it.qp, &mut list), Ok(()));
        let (mut done, mut known, mut found) = (0, 0, Vec::new());
        for (phase, count) in steps.iter().enumerate() {
            for _ in 0..*count {
                if done == signalled.len() {
                    break;
                }
                if signalled[done] {
                    it.complete(it.sq, IBV_WC_SEND);
                    known = done + 1;
                } else {
                    it.sq.set(wire::CONSUMER_INDEX, (it.sq.consumer() + 1) & it.sq.mask);
                }
                done += 1;
            }
            match phase {
                0 => {
                    if polls {
                        found.extend(it.polled(extended));
                    }
                    it.close();
                    it.freeze();
                    known = done;
                }
                1 => {
                    it.qp.freeze().unwrap();
                    known = done;
                }
                _ => {}
            }
        }
        it.stop();
        found.extend(it.polled(extended));
        let expected: Vec<_> = (0..signalled.len()).filter_map(|at| match at {
            at if at >= known => Some((id(at), FLUSHED, IBV_WC_SEND)),
            at => signalled[at].then_some((id(at), OK, IBV_WC_SEND)),
        }).collect();
        prop_assert_eq!(found, expected);
    }
}
