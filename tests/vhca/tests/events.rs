//! Events without a guest: what a driver is told of its queues and of its port.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

use vhca::hostile::{Bed, DATA};
use vhca::wqe::opcode;

// Types of event.
const SQ_DRAINED: u8 = 0x03;
const CQ_ERROR: u8 = 0x04;
const WQ_CATASTROPHE: u8 = 0x05;
const PORT_CHANGE: u8 = 0x09;
const ACCESS_VIOLATION: u8 = 0x11;
const SRQ_CATASTROPHE: u8 = 0x12;
const SRQ_LIMIT: u8 = 0x14;

fn nop(bed: &mut Bed) {
    bed.post(&bed.request(opcode::NOP, &[]));
}

#[test]
fn the_port_says_what_changed() {
    let mut bed = Bed::new().unwrap();
    let changes = [("port down", 1), ("port up", 4), ("lid 77", 6), ("guid 0002c90300abcdef", 8)];
    for (command, subtype) in changes {
        bed.control(command).unwrap();
        assert_eq!(bed.events(), [(PORT_CHANGE, subtype, 0)], "{command}");
    }
    let status = bed.control("status").unwrap();
    assert!(status.contains("guid=0x0002c90300abcdef lid=77 port=up"), "{status}");
}

#[test]
fn a_completion_queue_that_nobody_empties_overruns_and_takes_its_queue_pair_along() {
    let mut bed = Bed::new().unwrap();
    (0..64).for_each(|_| nop(&mut bed));
    assert_eq!((bed.events(), bed.sends()), (vec![], true), "full is not too full");
    nop(&mut bed);
    assert_eq!(bed.events(), [(CQ_ERROR, 0, bed.cqn), (WQ_CATASTROPHE, 0, bed.qpn)]);
    assert!(!bed.sends());
}

#[test]
fn a_drained_send_queue_says_so_and_sends_no_more() {
    let mut bed = Bed::new().unwrap();
    nop(&mut bed);
    assert_eq!(bed.completions().len(), 1);
    bed.control(&format!("qp {} drain", bed.qpn)).unwrap();
    bed.work();
    assert_eq!(bed.events(), [(SQ_DRAINED, 0, bed.qpn)]);
    nop(&mut bed);
    assert_eq!((bed.completions(), bed.events()), (vec![], vec![]), "once");
}

#[test]
fn a_shared_receive_queue_says_that_it_runs_low_once_and_that_it_fails() {
    let mut bed = Bed::new().unwrap();
    bed.arm(1).unwrap();
    assert_eq!(bed.events(), [(SRQ_LIMIT, 0, bed.srqn)]);
    bed.work();
    assert_eq!(bed.events(), [], "until it is armed again");
    bed.control(&format!("srq {} error", bed.srqn)).unwrap();
    assert_eq!(bed.events(), [(SRQ_CATASTROPHE, 0, bed.srqn)]);
}

#[test]
fn a_queue_pair_that_is_told_to_fail_or_is_abused_has_an_event() {
    let mut bed = Bed::new().unwrap();
    bed.control(&format!("qp {} error", bed.qpn)).unwrap();
    assert_eq!((bed.events(), bed.sends()), (vec![(WQ_CATASTROPHE, 0, bed.qpn)], false));

    // A key that nobody has: the responder, which is the same queue pair, hears of it.
    let mut bed = Bed::new().unwrap();
    let remote = [&DATA.to_be_bytes()[..], &0x5500u32.to_be_bytes(), &[0; 4]].concat();
    let piece = [&4u32.to_be_bytes()[..], &bed.key.to_be_bytes(), &DATA.to_be_bytes()].concat();
    bed.post(&bed.request(opcode::WRITE, &[remote, piece].concat()));
    assert_eq!(bed.events(), [(ACCESS_VIOLATION, 0, bed.qpn)]);
}
