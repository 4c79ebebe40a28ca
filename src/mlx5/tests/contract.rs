//! The contract of a device's death, against a model that knows no rings: each work request that is owed ends once, those of a
//! queue in posting order, what the device completed first, and the device hears of nothing once the gates are closed.

use std::collections::HashSet;

use super::*;

const QPS: usize = 2;
const LIMIT: usize = 8;
const BATCH: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    Send {
        qp: usize,
        count: usize,
        builder: bool,
        large: bool,
        signalled: bool,
    },
    Recv {
        qp: usize,
        count: usize,
    },
    /// The device has done some of what it was told of.
    Complete {
        qp: usize,
        receives: bool,
        count: usize,
        fails: bool,
    },
    Poll {
        extended: bool,
        room: usize,
    },
    Sign {
        is_final: bool,
    },
    Reset {
        qp: usize,
    },
    Destroy {
        qp: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let qp = || 0..QPS;
    let count = || 1..=BATCH;
    prop_oneof![
        6 => (qp(), count(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.7)).prop_map(
            |(qp, count, builder, large, signalled)| Step::Send { qp, count, builder, large, signalled }
        ),
        4 => (qp(), count()).prop_map(|(qp, count)| Step::Recv { qp, count }),
        6 => (qp(), any::<bool>(), count(), prop::bool::weighted(0.1))
            .prop_map(|(qp, receives, count, fails)| Step::Complete { qp, receives, count, fails }),
        6 => (any::<bool>(), 0..=BATCH).prop_map(|(extended, room)| Step::Poll { extended, room }),
        1 => any::<bool>().prop_map(|is_final| Step::Sign { is_final }),
        1 => qp().prop_map(|qp| Step::Reset { qp }),
        1 => qp().prop_map(|qp| Step::Destroy { qp }),
    ]
}

/// A work request of the model.
#[derive(Debug, Clone, Copy)]
struct Wr {
    id: u64,
    /// The block or the place of its WQE.
    counter: u16,
    signalled: bool,
    /// The device was told of it.
    told: bool,
    /// It is done with it.
    done: bool,
    /// A good completion of it, or of a later one, is in the CQ.
    succeeded: bool,
}

/// One queue of the model.
#[derive(Debug, Default)]
struct Queue {
    /// What is owed, in posting order.
    owed: VecDeque<Wr>,
    next: u16,
    /// It was emptied behind a closed gate: what the device was told of is not known any more.
    forgot: bool,
}

/// A completion that the device wrote.
#[derive(Debug, Clone, Copy)]
struct Written {
    qp: usize,
    receives: bool,
    id: u64,
    status: u32,
}

struct Bed {
    world: World,
    cq: TestCq,
    qps: [Option<TestQp>; QPS],
    /// Sends and receives of each QP.
    queues: [[Queue; 2]; QPS],
    written: VecDeque<Written>,
    /// `(qp, receives)` of each work request posted so far, whose number is its `wr_id`.
    posted: Vec<(usize, bool)>,
    ended: HashSet<u64>,
    phase: u8,
    /// What the device could see of doorbells when the gates closed.
    seen: Option<Vec<u8>>,
    page: Memory,
}

impl Bed {
    fn new() -> Bed {
        let mut world = World::plain();
        let cq = world.cq(63, 0);
        let cap = ibv_qp_cap { max_send_wr: LIMIT as u32, ..CAP };
        let first = world.qp(&cq, IBV_QPT_RC, cap, None);
        let page = world.bf.recv().unwrap();
        let second = world.qp_with(&cq, IBV_QPT_RC, cap, None, &Pd::default(), false);
        let limits = [&first, &second].map(|qp| (qp.cap.max_send_wr as usize, qp.cap.max_recv_wr as usize));
        assert_eq!(limits, [(LIMIT, 4); 2]);
        Bed {
            world,
            cq,
            qps: [Some(first), Some(second)],
            queues: Default::default(),
            written: VecDeque::new(),
            posted: Vec::new(),
            ended: HashSet::new(),
            phase: 0,
            seen: None,
            page,
        }
    }

    fn is_gone(&self) -> bool {
        self.phase == 2
    }

    /// All doorbells: the records of the QPs that there are, and the page.
    fn doorbells(&self) -> Vec<u8> {
        let records = self.qps.iter().flatten().flat_map(|qp| qp.db.bytes(0, 8));
        records.chain(self.page.bytes(0, 4096)).collect()
    }

    fn note(&mut self, at: usize, receives: bool, signalled: bool, blocks: u16) {
        let queue = &mut self.queues[at][usize::from(receives)];
        queue.owed.push_back(Wr {
            id: self.posted.len() as u64,
            counter: queue.next,
            signalled,
            told: self.phase == 0,
            done: false,
            succeeded: false,
        });
        queue.next = queue.next.wrapping_add(blocks);
        self.posted.push((at, receives));
    }

    fn send(&mut self, at: usize, count: usize, builder: bool, large: bool, signalled: bool) {
        let Some(qp) = &self.qps[at] else { return };
        let room = LIMIT - self.queues[at][0].owed.len();
        let first = self.posted.len() as u64;
        let ids = first..first + count as u64;
        let taken = if builder {
            let flags = if signalled { IBV_SEND_SIGNALED } else { 0 };
            let mut sq = qp.qp.send_queue().lock();
            sq.start();
            for id in ids {
                let op = if large {
                    SendOp::CmpSwp { rkey: 1, remote_addr: 8, compare: 1, swap: 2 }
                } else {
                    SendOp::Send
                };
                sq.operation(id, flags, op);
                sq.set_sge_list(&[SGE; 2]);
            }
            let result = sq.complete();
            assert_eq!(result, if count <= room { Ok(false) } else { Err(Errno::ENOMEM) });
            if count <= room { count } else { 0 }
        } else {
            let opcode = if large { IBV_WR_ATOMIC_CMP_AND_SWP } else { IBV_WR_SEND };
            let mut sges = [SGE; 2];
            let mut list: Vec<_> = ids
                .map(|id| {
                    let mut wr = send(id, opcode, &mut sges);
                    wr.send_flags = if signalled { IBV_SEND_SIGNALED } else { 0 };
                    wr
                })
                .collect();
            let result = post(&qp.qp, &mut list);
            assert_eq!(result, if count <= room { Ok(()) } else { Err((room, Errno::ENOMEM)) });
            count.min(room)
        };
        for _ in 0..taken {
            self.note(at, false, signalled, if large { 2 } else { 1 });
        }
    }

    fn recv(&mut self, at: usize, count: usize) {
        let Some(qp) = &self.qps[at] else { return };
        let room = qp.cap.max_recv_wr as usize - self.queues[at][1].owed.len();
        let first = self.posted.len() as u64;
        let mut list: Vec<_> = (first..first + count as u64).map(|id| recv(id, &mut [])).collect();
        let result = qp.qp.post_recv(recv_list(&mut list));
        assert_eq!(
            result.map_err(|refused| refused.errno),
            if count <= room { Ok(()) } else { Err(Errno::ENOMEM) }
        );
        for _ in 0..count.min(room) {
            self.note(at, true, true, 1);
        }
    }

    fn complete(&mut self, at: usize, receives: bool, count: usize, fails: bool) {
        let Some(qp) = self.qps[at].as_ref().filter(|_| !self.is_gone()) else { return };
        let uidx = qp.command.uidx;
        let queue = &mut self.queues[at][usize::from(receives)];
        for _ in 0..count {
            let Some(done) = queue.owed.iter().position(|wr| wr.told && !wr.done) else { return };
            let wr = &mut queue.owed[done];
            wr.done = true;
            if !wr.signalled && !fails {
                continue;
            }
            let (id, counter) = (wr.id, wr.counter);
            let entry = match (receives, fails) {
                (false, false) => Entry::sent(uidx, counter, opcode_send()),
                (false, true) => Entry::new(cqe::opcode::REQ_ERR, uidx, counter).put(55, &[0x13]),
                (true, false) => Entry::new(cqe::opcode::RESP_SEND, uidx, counter),
                (true, true) => Entry::new(cqe::opcode::RESP_ERR, uidx, counter).put(55, &[0x13]),
            };
            self.cq.complete(entry);
            if !fails {
                queue.owed.iter_mut().take(done + 1).for_each(|wr| wr.succeeded |= !receives);
            }
            let status = if fails { IBV_WC_REM_ACCESS_ERR } else { IBV_WC_SUCCESS };
            self.written.push_back(Written { qp: at, receives, id, status });
        }
    }

    /// What a poll gave, compared with what is owed.
    fn gave(&mut self, id: u64, status: u32) {
        assert!(self.ended.insert(id), "work request {id} ended twice");
        if let Some(expected) = self.written.pop_front() {
            assert_eq!((id, status), (expected.id, expected.status), "what the device completed comes first");
            let owed = &mut self.queues[expected.qp][usize::from(expected.receives)].owed;
            while let Some(wr) = owed.pop_front() {
                if wr.id == id {
                    return;
                }
                assert!(!expected.receives && wr.done && !wr.signalled, "{wr:?} was left out");
            }
            panic!("{expected:?} was not owed");
        }
        assert!(self.is_gone(), "work request {id} ends, and nothing says so");
        assert_eq!(status, FLUSHED);
        let (qp, receives) = self.posted[id as usize];
        let first = self.queues[qp][usize::from(receives)].owed.pop_front();
        assert_eq!(first.map(|wr| wr.id), Some(id), "out of order");
    }

    /// Completions that a poll of enough room finds now.
    fn expected(&self) -> usize {
        // A poll that found entries ends there.
        if self.written.is_empty() && self.is_gone() { self.owed() } else { self.written.len() }
    }

    fn owed(&self) -> usize {
        self.queues.iter().flatten().map(|queue| queue.owed.len()).sum()
    }

    fn poll(&mut self, extended: bool, room: usize) -> usize {
        let pending = self.expected() != 0;
        assert_eq!(self.cq.cq.lock().is_pending(), pending);
        let mut found = Vec::new();
        if extended {
            let mut queue = self.cq.cq.lock();
            let mut head = if room == 0 { Err(Errno::ENOENT) } else { queue.start() };
            while let Ok(Head { wr_id, status }) = head {
                found.push((wr_id, status, queue.opcode(), queue.qp_num()));
                if found.len() == room {
                    break;
                }
                head = queue.next();
            }
            assert!(head.is_ok() || head == Err(Errno::ENOENT));
            if !found.is_empty() {
                queue.end();
            }
        } else {
            let expected = self.expected().min(room);
            let wcs = self.cq.poll(room).unwrap();
            found.extend(wcs.iter().map(|wc| (wc.wr_id, wc.status, wc.opcode, wc.qp_num)));
            assert_eq!(found.len(), expected);
        }
        assert!(found.len() <= room);
        for &(id, status, opcode, qpn) in &found {
            let receives = self.posted[id as usize].1;
            assert_eq!((opcode & IBV_WC_RECV != 0, qpn), (receives, QPN));
            self.gave(id, status);
        }
        found.len()
    }

    /// As `verbs::death` acts on a sign.
    fn sign(&mut self, is_final: bool) {
        let sign = if is_final { Sign::Final } else { Sign::Early };
        self.world.device.life.note(sign);
        if self.phase == 0 {
            for qp in self.qps.iter().flatten() {
                qp.qp.close();
                assert!(qp.qp.is_quiet());
            }
            self.seen = Some(self.doorbells());
            self.world.device.life.note(sign);
            self.phase = 1;
        }
        if is_final {
            self.phase = 2;
        }
    }

    /// The queues of a QP are emptied, and what was written of them is taken back.
    fn forget(&mut self, at: usize) {
        self.written.retain(|written| written.qp != at);
        for queue in &mut self.queues[at] {
            *queue = Queue { forgot: self.phase != 0, ..Queue::default() };
        }
    }

    fn reset(&mut self, at: usize) {
        let Some(qp) = &self.qps[at] else { return };
        let cq = Some(&self.cq.cq);
        let attached = Attached::<Mlx5> { pd: None, send_cq: cq, recv_cq: cq, srq: None };
        for state in [IBV_QPS_RESET, IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS] {
            self.world.family.qp_entered(&qp.qp, state, &attached);
        }
        self.forget(at);
    }

    fn destroy(&mut self, at: usize) {
        let Some(qp) = self.qps[at].take() else { return };
        let cq = Some(&self.cq.cq);
        let attached = Attached::<Mlx5> { pd: None, send_cq: cq, recv_cq: cq, srq: None };
        self.world.family.qp_destroyed(&qp.qp, &attached);
        drop(qp);
        self.forget(at);
        // Its record is gone with it.
        self.seen = self.seen.take().map(|_| self.doorbells());
    }

    fn check(&self) {
        if let Some(seen) = &self.seen {
            assert!(*seen == self.doorbells(), "the device was told of something behind closed gates");
        }
        let cq = Some(&self.cq.cq);
        let attached = Attached::<Mlx5> { pd: None, send_cq: cq, recv_cq: cq, srq: None };
        for (qp, queues) in self.qps.iter().zip(&self.queues) {
            let Some(qp) = qp else { continue };
            let listed = self.world.family.outstanding(&qp.qp, &attached);
            let owed: Vec<&Wr> = queues.iter().flat_map(|queue| &queue.owed).collect();
            let ids = |wrs: &[Outstanding]| wrs.iter().map(|wr| wr.wr_id).collect::<Vec<_>>();
            assert_eq!(ids(&listed), owed.iter().map(|wr| wr.id).collect::<Vec<_>>());
            for (listed, wr) in listed.iter().zip(owed) {
                let known = match (wr.told, wr.succeeded) {
                    (false, _) => Fate::NotExecuted,
                    (true, true) => Fate::Executed,
                    (true, false) => Fate::Unknown,
                };
                let forgot = queues.iter().any(|queue| queue.forgot);
                assert!(listed.fate == known || forgot && listed.fate == Fate::Unknown, "{listed:?} {wr:?}");
            }
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Send { qp, count, builder, large, signalled } => {
                self.send(qp, count, builder, large, signalled)
            }
            Step::Recv { qp, count } => self.recv(qp, count),
            Step::Complete { qp, receives, count, fails } => self.complete(qp, receives, count, fails),
            Step::Poll { extended, room } => drop(self.poll(extended, room)),
            Step::Sign { is_final } => self.sign(is_final),
            Step::Reset { qp } => self.reset(qp),
            Step::Destroy { qp } => self.destroy(qp),
        }
        self.check();
    }
}

proptest! {
    #[test]
    fn each_that_is_owed_ends_once_whatever_happens(
        steps in prop::collection::vec(step(), 1..80),
        extended in any::<bool>(),
    ) {
        let mut bed = Bed::new();
        for step in &steps {
            bed.run(step);
        }
        bed.sign(true);
        while bed.poll(extended, BATCH) != 0 {}
        bed.check();
        prop_assert_eq!((bed.owed(), bed.poll(!extended, BATCH)), (0, 0));
    }
}
