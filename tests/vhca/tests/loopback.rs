//! The data path without a guest: a queue pair connected to itself.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test that fails panics")]

use vhca::hostile::{Bed, DATA};
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
