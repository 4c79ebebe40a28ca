//! The data path without a guest: a queue pair connected to itself, and two devices.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

use vhca::hostile::{Bed, DATA, QKEY};
use vhca::wqe::opcode;

/// Kinds of completion.
const REQUESTER: u8 = 0x0;
const RECEIVED: u8 = 0x2;
const RECEIVED_IMMEDIATE: u8 = 0x3;
const REQUESTER_ERROR: u8 = 0xd;
const RESPONDER_ERROR: u8 = 0xe;

fn piece(bed: &Bed, address: u64, len: u32) -> Vec<u8> {
    [&len.to_be_bytes()[..], &bed.key.to_be_bytes(), &address.to_be_bytes()].concat()
}

fn remote(address: u64, key: u32) -> Vec<u8> {
    [&address.to_be_bytes()[..], &key.to_be_bytes(), &[0; 4]].concat()
}

fn bytes(bed: &Bed, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bed.read(address, &mut bytes);
    bytes
}

#[test]
fn a_write_moves_its_pieces() {
    let mut bed = Bed::new().unwrap();
    bed.write(DATA, b"one two");
    let rest = [remote(DATA + 0x2000, bed.key), piece(&bed, DATA, 3), piece(&bed, DATA + 4, 3)].concat();
    bed.post(&bed.request(opcode::WRITE, &rest));
    assert_eq!(bed.completions(), [(REQUESTER, 0)]);
    assert_eq!(bytes(&bed, DATA + 0x2000, 7), b"onetwo\0");
}

#[test]
fn a_read_comes_back() {
    let mut bed = Bed::new().unwrap();
    bed.write(DATA, b"over there");
    let rest = [remote(DATA, bed.key), piece(&bed, DATA + 0x3000, 10)].concat();
    bed.post(&bed.request(opcode::READ, &rest));
    assert_eq!(bed.completions(), [(REQUESTER, 0)]);
    assert_eq!(bytes(&bed, DATA + 0x3000, 10), b"over there");
}

#[test]
fn atomics_change_eight_bytes_and_say_what_was_there() {
    let mut bed = Bed::new().unwrap();
    bed.write(DATA, &40u64.to_ne_bytes());
    let atomic = |bed: &Bed, code, first: u64, second: u64| {
        let operands = [first.to_be_bytes(), second.to_be_bytes()].concat();
        bed.request(code, &[remote(DATA, bed.key), operands, piece(bed, DATA + 0x100, 8)].concat())
    };
    bed.post(&atomic(&bed, opcode::FETCH_ADD, 2, 0));
    assert_eq!(bytes(&bed, DATA + 0x100, 8), 40u64.to_ne_bytes());
    bed.post(&atomic(&bed, opcode::COMPARE_SWAP, 7, 42));
    assert_eq!(
        (bytes(&bed, DATA + 0x100, 8), bytes(&bed, DATA, 8)),
        (42u64.to_ne_bytes().into(), 7u64.to_ne_bytes().into())
    );
    bed.post(&atomic(&bed, opcode::COMPARE_SWAP, 9, 42));
    assert_eq!(bytes(&bed, DATA, 8), 7u64.to_ne_bytes());
    assert_eq!(bed.completions(), [(REQUESTER, 0); 3]);
}

#[test]
fn a_send_fills_a_receive() {
    let mut bed = Bed::new().unwrap();
    bed.post_receive(DATA + 0x400, 64);
    let inline = [&0x8000_0005u32.to_be_bytes()[..], b"hello"].concat();
    bed.post(&bed.request(opcode::SEND_IMMEDIATE, &inline));
    assert_eq!(bed.completions(), [(RECEIVED_IMMEDIATE, 0), (REQUESTER, 0)]);
    assert_eq!(bytes(&bed, DATA + 0x400, 6), b"hello\0");
}

#[test]
fn a_send_waits_for_a_receive_and_not_for_ever() {
    let mut bed = Bed::new().unwrap();
    let inline = [&0x8000_0001u32.to_be_bytes()[..], b"x"].concat();
    bed.post(&bed.request(opcode::SEND, &inline));
    // One retry, at 10 us: the bed's time has passed it.
    assert_eq!(bed.completions(), [(REQUESTER_ERROR, 0x16)]);
    assert!(!bed.sends());
    bed.connect().unwrap();
    bed.post_receive(DATA, 64);
    bed.post(&bed.request(opcode::SEND, &inline));
    assert_eq!(bed.completions(), [(RECEIVED, 0), (REQUESTER, 0)]);
}

#[test]
fn errors_have_their_syndromes_and_flush_what_was_posted() {
    let cases = [
        // A remote key that nobody has.
        (remote(DATA, 0x5500), DATA, 0x13),
        // Beyond the key's range.
        (remote(DATA - 8, 0), DATA, 0x13),
        // A local address beyond the key's range.
        (remote(DATA, 0), DATA - 8, 0x04),
    ];
    for (mut remote, local, syndrome) in cases {
        let mut bed = Bed::new().unwrap();
        if remote[8..12] == [0; 4] {
            remote[8..12].copy_from_slice(&bed.key.to_be_bytes());
        }
        bed.post_receive(DATA, 64);
        bed.post(&bed.request(opcode::WRITE, &[remote, piece(&bed, local, 4)].concat()));
        let first = bed.completions();
        assert_eq!(
            first.iter().filter(|(kind, _)| *kind == REQUESTER_ERROR).collect::<Vec<_>>(),
            [&(REQUESTER_ERROR, syndrome)]
        );
        assert!(first.contains(&(RESPONDER_ERROR, 0x05)), "the posted receive is flushed: {first:?}");
        bed.post(&bed.request(opcode::SEND, &[]));
        assert_eq!(bed.completions(), [(REQUESTER_ERROR, 0x05)], "and what is posted later");
    }
}

#[test]
fn a_silent_device_does_nothing_until_it_is_cured() {
    let mut bed = Bed::new().unwrap();
    bed.control("silence").unwrap();
    let inline = [&0x8000_0001u32.to_be_bytes()[..], b"x"].concat();
    bed.post_receive(DATA, 64);
    bed.post(&bed.request(opcode::SEND, &inline));
    assert_eq!(bed.completions(), []);
    bed.control("clear").unwrap();
    bed.work();
    assert_eq!(bed.completions(), [(RECEIVED, 0), (REQUESTER, 0)]);
}

#[test]
fn a_dead_device_touches_nothing() {
    let mut bed = Bed::new().unwrap();
    bed.control("die").unwrap();
    bed.write(DATA, b"x");
    bed.post(&bed.request(opcode::WRITE, &[remote(DATA + 0x2000, bed.key), piece(&bed, DATA, 1)].concat()));
    assert_eq!((bed.completions(), bytes(&bed, DATA + 0x2000, 1)), (vec![], vec![0]));
}

/// Adds one to what is at the peer's data, and brings back what was there.
fn add_one(bed: &mut Bed) {
    let operands = [1u64.to_be_bytes(), [0; 8]].concat();
    let rest = [remote(DATA, bed.key), operands, piece(bed, DATA + 0x100, 8)].concat();
    bed.post(&bed.request(opcode::FETCH_ADD, &rest));
}

/// What is at the peer's data.
fn count(bed: &mut Bed) -> u64 {
    bed.on(1);
    let count = u64::from_ne_bytes(bytes(bed, DATA, 8).try_into().unwrap());
    bed.on(0);
    count
}

#[test]
fn a_lost_message_is_sent_again() {
    let mut bed = Bed::pair().unwrap();
    bed.control("wire drop 1").unwrap();
    add_one(&mut bed);
    assert_eq!((bed.completions(), count(&mut bed)), (vec![(REQUESTER, 0)], 1));
}

#[test]
fn a_lost_answer_does_not_do_the_work_twice() {
    let mut bed = Bed::pair().unwrap();
    bed.control("wire drop 1 answers").unwrap();
    add_one(&mut bed);
    assert_eq!((bed.completions(), count(&mut bed)), (vec![(REQUESTER, 0)], 1));
    assert_eq!(bytes(&bed, DATA + 0x100, 8), 0u64.to_ne_bytes(), "the first answer, kept");
}

#[test]
fn a_cut_wire_ends_in_exhausted_retries() {
    let mut bed = Bed::pair().unwrap();
    bed.control("wire cut").unwrap();
    add_one(&mut bed);
    assert_eq!((bed.completions(), count(&mut bed)), (vec![(REQUESTER_ERROR, 0x15)], 0));
    assert!(!bed.sends());
    bed.control("wire heal").unwrap();
    bed.connect().unwrap();
    add_one(&mut bed);
    assert_eq!((bed.completions(), count(&mut bed)), (vec![(REQUESTER, 0)], 1));
}

#[test]
fn a_refused_write_breaks_both_ends() {
    let mut bed = Bed::pair().unwrap();
    bed.on(1);
    bed.post_receive(DATA, 64);
    bed.on(0);
    let rest = [remote(DATA, 0x5500), piece(&bed, DATA, 4)].concat();
    bed.post(&bed.request(opcode::WRITE, &rest));
    assert_eq!(bed.completions(), [(REQUESTER_ERROR, 0x13)]);
    bed.on(1);
    assert_eq!((bed.sends(), bed.completions()), (false, vec![(RESPONDER_ERROR, 0x05)]));
}

#[test]
fn a_trigger_kills_at_the_second_doorbell() {
    let mut bed = Bed::pair().unwrap();
    bed.control(&format!("at doorbell 2 of qp {} on d0: die", bed.qpn)).unwrap();
    (0..3).for_each(|_| add_one(&mut bed));
    assert_eq!((bed.completions(), count(&mut bed)), (vec![(REQUESTER, 0)], 1));
}

/// A long address vector: LID, queue pair, Q_Key and a global route to `gid`.
fn address(lid: u16, qpn: u32, qkey: u32, gid: [u8; 16]) -> Vec<u8> {
    let head =
        [&qkey.to_be_bytes()[..], &[0; 4], &(1 << 31 | qpn).to_be_bytes(), &[0, 0], &lid.to_be_bytes()]
            .concat();
    [&head[..], &[0; 12], &(1u32 << 30).to_be_bytes(), &gid].concat()
}

const GROUP: [u8; 16] = [0xff, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

#[test]
fn a_datagram_has_room_for_its_route_and_says_where_it_came_from() {
    let mut bed = Bed::datagrams().unwrap();
    bed.post_receive(DATA + 0x400, 256);
    let inline = [&0x8000_0005u32.to_be_bytes()[..], b"hello"].concat();
    let to = address(1, bed.qpn, QKEY, [9; 16]);
    bed.post(&bed.request(opcode::SEND, &[to, inline].concat()));
    assert_eq!(bed.completions(), [(RECEIVED, 0), (REQUESTER, 0)]);
    assert_eq!(bytes(&bed, DATA + 0x400 + 24, 16), [9; 16], "the destination of its route");
    assert_eq!(bytes(&bed, DATA + 0x400 + 40, 5), b"hello");
}

#[test]
fn datagrams_for_others_are_lost() {
    let mut bed = Bed::datagrams().unwrap();
    bed.post_receive(DATA, 256);
    for (lid, qpn, qkey) in [(1, bed.qpn, QKEY + 1), (1, bed.qpn + 1, QKEY), (9, bed.qpn, QKEY)] {
        let to = address(lid, qpn, qkey, [9; 16]);
        bed.post(&bed.request(opcode::SEND, &to));
        assert_eq!(bed.completions(), [(REQUESTER, 0)], "lid {lid} qp {qpn} qkey {qkey:#x}");
    }
}

#[test]
fn a_group_gets_what_is_sent_to_it() {
    let mut bed = Bed::datagrams().unwrap();
    bed.post_receive(DATA, 256);
    let to = address(0xc001, 0xff_ffff, QKEY, GROUP);
    bed.post(&bed.request(opcode::SEND, &to));
    assert_eq!(bed.completions(), [(REQUESTER, 0)], "not a member yet");
    bed.join(GROUP).unwrap();
    bed.post(&bed.request(opcode::SEND, &to));
    assert_eq!(bed.completions(), [(RECEIVED, 0), (REQUESTER, 0)]);
}
