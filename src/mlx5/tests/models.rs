//! Real queues in every order of the steps of their threads that loom finds; memory that the device shares is plain memory,
//! whose order loom does not vary. See `crate::ha::models`.

use std::rc::Rc;

use loom::thread;

use super::*;
use crate::ha::models::check;
use crate::sync::atomic::fence;

fn post_one(qp: &TestQp, wr_id: u64) {
    post(&qp.qp, &mut [send(wr_id, IBV_WR_SEND, &mut [])]).unwrap();
}

fn nothing_rings_behind_a_closed_gate(name: &str, locking: Locking) {
    check(name, move || {
        let mut world = World::plain();
        world.locking = locking;
        let cq = world.cq(7, 0);
        let qp = Rc::new(world.qp(&cq, IBV_QPT_RC, CAP, None));
        let poster = {
            let qp = qp.clone();
            thread::spawn(move || {
                post_one(&qp, 1);
                post_one(&qp, 2);
            })
        };
        qp.qp.close();
        fence(Ordering::SeqCst);
        while !qp.qp.is_quiet() {
            thread::yield_now();
        }
        let told = qp.db.be32(4);
        poster.join().unwrap();
        assert_eq!(qp.db.be32(4), told, "the device was told of more after the gate was closed");
        let fates: Vec<_> = qp.qp.outstanding().iter().map(|wr| (wr.wr_id, wr.fate)).collect();
        let fate = |number| if told >= number { Fate::Unknown } else { Fate::NotExecuted };
        assert_eq!(fates, [(1, fate(1)), (2, fate(2))]);
        world.gone();
        assert_eq!(cq.ids(4), [1, 2]);
    });
}

#[test]
fn nothing_rings_behind_a_closed_gate_with_locks() {
    nothing_rings_behind_a_closed_gate("mlx5 send queue with a lock", Locking::YES);
}

#[test]
fn nothing_rings_behind_a_closed_gate_without_locks() {
    // SAFETY: one thread posts, and nobody else until it has ended.
    nothing_rings_behind_a_closed_gate("mlx5 send queue without a lock", unsafe { Locking::no() });
}

#[test]
fn posts_and_polls_of_a_dead_queue_give_each_once_and_in_order() {
    check("mlx5 kept posts and polls", || {
        let mut world = World::plain();
        let cq = world.cq(7, 0);
        let qp = Rc::new(world.qp(&cq, IBV_QPT_RC, CAP, None));
        qp.qp.close();
        world.gone();
        let poster = {
            let qp = qp.clone();
            thread::spawn(move || {
                post_one(&qp, 1);
                post_one(&qp, 2);
            })
        };
        let mut polled = cq.ids(1);
        polled.extend(cq.ids(4));
        poster.join().unwrap();
        polled.extend(cq.ids(4));
        assert_eq!(polled, [1, 2]);
    });
}
