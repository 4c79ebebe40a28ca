//! Every way of polling says the same of an entry: one alone, which is looked at first, of each kind; many; and the general way, which
//! shares nothing with them.

use std::sync::Arc;

use super::super::cq::Role;
use super::super::dbrec::Pool;
use super::super::recv::RecvQueue;
use super::super::ring::{Key, Outstanding, Owner, Receives};
use super::super::send::{SendQueue, Shape};
use super::super::{Cq, fuzz};
use super::*;
use crate::abi::host::ForkRanges;
use crate::family::Look;
use crate::hw::dma::Entries;
use crate::sync::atomic::Ordering;

const ENTRIES: u32 = 16;

/// What the device writes.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// The queue pair: 0 with receives of its own, 1 and 3 with an SRQ each, 2 with a verdict of sums, and none.
    qp: u32,
    /// In place of the next of the queue.
    counter: Option<u16>,
    /// The last byte, without the lap.
    op_own: u8,
    /// Where a receive came from: `ml_path`, `slid`, `flags_rqpn`.
    source: [u8; 7],
    /// Of the others.
    bytes: [u8; 8],
}

fn written() -> impl Strategy<Value = Written> {
    let good = || (0_u8..5).prop_map(|code| code << 4);
    let op_own = prop_oneof![4 => good(), 4 => Just(0x20), 3 => good().prop_map(|byte| byte | 2), 1 => Just(0x50), 1 => any::<u8>().prop_map(|byte| byte & !1)];
    let source = prop_oneof![
        3 => any::<[u8; 3]>().prop_map(|[a, b, c]| [0, 0, 0, 0, a, b, c]),
        1 => (0_usize..7, any::<u8>()).prop_map(|(at, byte)| {
            let mut source = [0; 7];
            source[at] = byte;
            source
        }),
        1 => any::<[u8; 7]>(),
    ];
    let counter = prop_oneof![9 => Just(None), 1 => (0_u16..40).prop_map(Some)];
    let qp = prop_oneof![9 => 0_u32..4, 1 => 4_u32..6];
    (qp, counter, op_own, source, any::<[u8; 8]>()).prop_map(|(qp, counter, op_own, source, bytes)| Written {
        qp,
        counter,
        op_own,
        source,
        bytes,
    })
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// As [`crate::verbs`] does, with room for so many.
    Usual(usize),
    /// By an interface version of the device that the quick ways do not serve.
    General,
}

struct World {
    cq: Cq,
    owners: Vec<Arc<Owner>>,
    srqs: Vec<Srq>,
}

impl World {
    /// With 15 sends of all kinds, and as many receives, on each queue.
    fn new(entries: Entries, by_uidx: bool, locking: Locking) -> World {
        let pool = Pool::new(64, ForkRanges::default());
        let mut cq = Cq::new(entries, by_uidx, pool.take().unwrap(), None, Arc::default());
        let mut owners = Vec::new();
        let mut srqs = Vec::new();
        for number in 0..4 {
            let key = if by_uidx { Key::user_index(number) } else { Key::qp(number) };
            let owner = fuzz::owner(key, &pool, number % 2 == 1, locking).unwrap();
            owner.csum.store(number == 2, Ordering::Relaxed);
            cq.attach(&owner, Role::all());
            let mut sq = SendQueue::new(
                Shape { max_sge: 1, qpn: number, atomics: true, ..Shape::default() },
                owner.clone(),
                None,
            );
            sq.start();
            for id in 0..15 {
                let op = match id % 4 {
                    0 => SendOp::Send,
                    1 => SendOp::SendImm { imm_data: 5 },
                    2 => SendOp::Write { rkey: 5, remote_addr: 6 },
                    _ => SendOp::CmpSwp { rkey: 5, remote_addr: 8, compare: 1, swap: 2 },
                };
                sq.operation(u64::from(number) << 32 | id, IBV_SEND_SIGNALED, op);
            }
            sq.complete().unwrap();
            let mut wrs: Vec<_> = (100..115).map(|id| recv(u64::from(number) << 32 | id, &mut [])).collect();
            match &owner.receives {
                Receives::Own(ring) => {
                    ring.gate.set(16);
                    RecvQueue::new(1, owner.clone())
                        .post(recv_list(&mut wrs))
                        .map_err(|refused| refused.errno)
                        .unwrap();
                }
                Receives::Shared(inner) => {
                    let srq = Srq { inner: inner.clone(), owner: None, _index: None };
                    srq.post_recv(recv_list(&mut wrs)).map_err(|refused| refused.errno).unwrap();
                    srqs.push(srq);
                }
                Receives::None => unreachable!(),
            }
            owners.push(owner);
        }
        World { cq, owners, srqs }
    }

    /// One call of `ibv_poll_cq`, and whether it was done by what is made for one completion.
    fn poll(&mut self, way: Way, out: &mut [MaybeUninit<ibv_wc>]) -> (Result<u32, Errno>, bool) {
        if way == Way::General {
            return (self.cq.poll(out), false);
        }
        let cq = &mut self.cq;
        let shared = cq.shared.clone();
        let alone = match (shared.look(out.len() == 1), &mut *out) {
            (Look::Nothing, _) => return (Ok(0), false),
            (Look::Sent(at, seen), [to]) => cq.poll_sent(at, seen, to),
            (Look::Plain(at, seen), [to]) => cq.poll_plain(at, seen, to),
            (Look::Shared(at, seen), [to]) => cq.poll_shared(at, seen, to),
            (Look::Received(at, seen), [to]) => cq.poll_received(at, seen, to),
            (Look::Other, _) => None,
            (other, _) => panic!("{other:?} of many"),
        };
        if alone.is_some() {
            return (Ok(1), true);
        }
        let mut polled = 0;
        for most in [false, true] {
            let rest = &mut out[polled as usize..];
            match if most { cq.poll_most(rest) } else { cq.poll_usual(rest) } {
                Ok(more) => return (Ok(polled + more), false),
                Err(more) => polled += more,
            }
        }
        let more = cq.poll(&mut out[polled as usize..]);
        (
            more.map(|more| polled + more).or_else(|errno| if polled == 0 { Err(errno) } else { Ok(polled) }),
            false,
        )
    }
}

/// All fields.
fn fields(wc: &ibv_wc) -> String {
    format!("{wc:?}")
}

/// What a poll of `entries` says, entry by entry; what is outstanding then, and how many were polled alone.
fn told(
    written: &[Written],
    size: u32,
    way: Way,
    locking: Locking,
) -> (Vec<String>, Vec<Outstanding>, usize) {
    let entries = Entries::new(ENTRIES, size, &Arc::default()).unwrap();
    Cq::prepare(&entries);
    let mut next = [[0_u16; 2]; 6];
    for (index, written) in (0..).zip(written) {
        let Written { qp, counter, op_own, source, bytes } = *written;
        let entry = entries.entry(index);
        let next = &mut next[qp as usize][usize::from(op_own >> 4 != 0)];
        let counter = counter.unwrap_or(*next);
        *next = counter.wrapping_add(1);
        macro_rules! put {
            ($($at:literal $byte:expr;)*) => { $(entry.set::<$at>($byte);)* };
        }
        put! {
            17 source[0]; 22 source[1]; 23 source[2];
            24 source[3]; 25 source[4]; 26 source[5]; 27 source[6];
            28 bytes[0]; 29 bytes[1];
            35 qp as u8; 36 bytes[2]; 37 bytes[3]; 38 bytes[4]; 39 bytes[5];
            // Longer than an entry's own data can be: nothing is given to a buffer.
            46 bytes[6]; 47 200;
            56 bytes[7] & 0x1f; 59 qp as u8;
            60 (counter >> 8) as u8; 61 counter as u8; 63 op_own;
        }
    }
    let mut world = World::new(entries, way != Way::General, locking);
    let room = if let Way::Usual(room) = way { room } else { 1 };
    let (mut told, mut alone) = (Vec::new(), 0);
    // Each call takes an entry, or finds none.
    for _ in 0..=ENTRIES {
        let mut out = vec![MaybeUninit::new(ibv_wc { vendor_err: 77, ..ibv_wc::zeroed() }); room];
        let (polled, by_one) = world.poll(way, &mut out);
        alone += usize::from(by_one);
        // SAFETY: all of them were written above.
        told.extend(
            out[..polled.unwrap_or(0) as usize].iter().map(|wc| fields(unsafe { wc.assume_init_ref() })),
        );
    }
    let mut outstanding = world.cq.outstanding();
    for srq in &world.srqs {
        outstanding.extend(srq.outstanding());
        // Those that completed have room for others.
        while srq.post_recv(recv_list(&mut [recv(200, &mut [])])).is_ok() {}
        outstanding.extend(srq.outstanding());
    }
    world.owners.iter().for_each(|owner| world.cq.detach(owner));
    (told, outstanding, alone)
}

/// What was seen without the lock is believed only while it is the same, and the next.
#[test]
fn what_was_seen_is_looked_at_again() {
    let mut world = super::World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    post(&qp.qp, &mut [send(1, IBV_WR_SEND, &mut []), send(2, IBV_WR_SEND, &mut [])]).unwrap();
    cq.complete(Entry::sent(0, 0, 0));
    cq.complete(Entry::sent(0, 1, 0));
    let seen = || match cq.arm.look(true) {
        Look::Sent(at, seen) => (at, seen),
        other => panic!("{other:?}"),
    };
    let mut to = MaybeUninit::uninit();
    let (at, byte) = seen();
    cq.buf.write(63, &[0x02]);
    assert_eq!(cq.cq.lock().poll_sent(at, byte, &mut to), None, "another byte");
    cq.buf.write(63, &[0x00]);
    assert_eq!(cq.ids(1), [1]);
    assert_eq!(cq.cq.lock().poll_sent(at, byte, &mut to), None, "polled by another thread");
    let (at, byte) = seen();
    assert_eq!(cq.cq.lock().poll_sent(at, byte, &mut to), Some(()));
    // SAFETY: it was written.
    assert_eq!(unsafe { to.assume_init() }.wr_id, 2);
    assert!(matches!(cq.arm.look(true), Look::Nothing));
}

#[test]
fn an_atomic_gives_eight_bytes() {
    let mut world = super::World::plain();
    let mut cq = world.cq(63, 0);
    let qp = world.qp(&cq, IBV_QPT_RC, CAP, None);
    post(&qp.qp, &mut [send(1, IBV_WR_ATOMIC_FETCH_AND_ADD, &mut []), send(2, IBV_WR_RDMA_READ, &mut [])])
        .unwrap();
    for counter in 0..2 {
        cq.complete(Entry::sent(0, counter, 0).put(44, &5_u32.to_be_bytes()));
    }
    assert_eq!(cq.poll(4).unwrap().iter().map(|wc| wc.byte_len).collect::<Vec<_>>(), [8, 5]);
}

#[test]
fn a_receive_that_an_srq_has_no_place_for_is_not_believed() {
    let mut world = super::World::plain();
    let mut cq = world.cq(63, 0);
    let (srq, _, _) = world.srq(3, 1);
    let _qp = world.qp(&cq, IBV_QPT_RC, CAP, Some(&srq));
    srq.post_recv(recv_list(&mut [recv(1, &mut [])])).map_err(|refused| refused.errno).unwrap();
    for counter in [4, 0x8000] {
        cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, counter));
        assert_eq!(cq.poll(1).unwrap_err(), Errno::EIO, "place 0 by another name");
    }
    cq.complete(Entry::new(cqe::opcode::RESP_SEND, 0, 0));
    assert_eq!(cq.ids(1), [1]);
}

proptest! {
    #[test]
    fn all_ways_of_polling_say_the_same(
        written in prop::collection::vec(written(), 0..=ENTRIES as usize),
        large in any::<bool>(),
        locks in any::<bool>(),
    ) {
        let _kernel = Kernel::real();
        let size = if large { 128 } else { 64 };
        // SAFETY: one thread uses it.
        let locking = if locks { Locking::YES } else { unsafe { Locking::no() } };
        let (general, outstanding, _) = told(&written, size, Way::General, locking);
        for room in [1, 2, 16] {
            let (usual, left, _) = told(&written, size, Way::Usual(room), locking);
            prop_assert_eq!(&usual, &general, "room for {}", room);
            prop_assert_eq!(&left, &outstanding, "room for {}", room);
        }
    }
}

/// The ways that are made for them are those that they go.
#[test]
fn the_usual_completions_are_polled_alone() {
    let _kernel = Kernel::real();
    // SAFETY: one thread uses it.
    let locking = unsafe { Locking::no() };
    let entry = |qp, op_own, source| Written { qp, counter: None, op_own, source, bytes: [0; 8] };
    let (plain, routed) = ([0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 0x10, 1, 2, 3]);
    for (qp, op_own, source, others) in [
        (0, 0x00, plain, 0),
        (1, 0x00, plain, 0),
        (0, 0x20, plain, 0),
        // The first one says what the next will be.
        (1, 0x20, plain, 1),
        (2, 0x20, plain, 1),
        (0, 0x20, routed, 1),
        (1, 0x20, routed, 1),
        (0, 0x10, plain, 0),
        (1, 0x30, routed, 0),
        (0, 0x40, routed, 0),
        (0, 0x24, plain, 8),
    ] {
        let written = vec![entry(qp, op_own, source); 8];
        let (told, _, alone) = told(&written, 64, Way::Usual(1), locking);
        assert_eq!((told.len(), alone), (8, 8 - others), "{:?}", written[0]);
    }
}
