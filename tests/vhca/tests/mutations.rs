//! Commands and work requests with anything in them: the device answers or fails a queue pair, and lives.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;
use vhca::hostile::Bed;
use vhca::wqe::{self, Service};

const SERVICES: [Service; 7] = [
    Service::Rc,
    Service::Uc,
    Service::Ud,
    Service::XrcInitiator,
    Service::XrcTarget,
    Service::Registration,
    Service::SendQueue,
];

/// Changes to a sound command or request: bytes put somewhere, and a length to cut it to.
fn edits() -> impl Strategy<Value = (Index, Vec<(Index, u8)>, Option<Index>)> {
    let edit = (any::<Index>(), prop_oneof![any::<u8>(), Just(0xff), Just(0), Just(0x80)]);
    (any::<Index>(), prop::collection::vec(edit, 0..12), prop::option::weighted(0.1, any::<Index>()))
}

fn mutate(sound: &[Vec<u8>], (which, edits, cut): &(Index, Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
    let mut bytes = which.get(sound).clone();
    for (at, value) in edits {
        *at.get_mut(&mut bytes) = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len() + 1));
    }
    bytes
}

/// Runs a property on a bed that is kept from case to case: what one case leaves behind is a start for the next.
fn on_a_bed(cases: u32, property: impl Fn(&mut Bed, (Index, Vec<(Index, u8)>, Option<Index>))) {
    let bed = RefCell::new(Bed::new().unwrap());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    });
    runner
        .run(&edits(), |edits| {
            property(&mut bed.borrow_mut(), edits);
            Ok(())
        })
        .unwrap();
}

#[test]
fn ten_thousand_commands() {
    let seen = RefCell::new(BTreeSet::new());
    on_a_bed(10_000, |bed, edits| {
        let input = mutate(&bed.commands(), &edits);
        let output = bed.command(&input, 16 + input.len());
        assert!(output.len() >= 8);
        seen.borrow_mut().extend(output.first());
        bed.work();
        // What was broken for good is begun anew.
        if bed.connect().is_err() {
            *bed = Bed::new().unwrap();
        }
    });
    // Success, and a refusal of each kind: the mutations get past the first check.
    let expected = BTreeSet::from([0x00, 0x02, 0x03, 0x05, 0x0a, 0x10, 0x50]);
    assert!(seen.borrow().is_superset(&expected), "{:x?}", seen.borrow());
}

#[test]
fn ten_thousand_work_requests() {
    let seen = RefCell::new(BTreeSet::new());
    on_a_bed(10_000, |bed, edits| {
        if !bed.sends() && bed.connect().is_err() {
            *bed = Bed::new().unwrap();
        }
        let request = mutate(&bed.requests(), &edits);
        bed.post_receive(vhca::hostile::DATA, 64);
        bed.post(&request);
        seen.borrow_mut().extend(bed.completions());
    });
    // Success, local and remote errors, and receives in error.
    let expected = [
        (0x0, 0),
        (0x2, 0),
        (0x3, 0),
        (0xd, 0x02),
        (0xd, 0x04),
        (0xd, 0x05),
        (0xd, 0x12),
        (0xd, 0x13),
        (0xe, 0x05),
    ];
    assert!(seen.borrow().is_superset(&BTreeSet::from(expected)), "{:x?}", seen.borrow());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn the_decoder_is_total(bytes in prop::collection::vec(any::<u8>(), 0..1100), which in any::<Index>()) {
        let service = *which.get(&SERVICES);
        if let Ok(request) = wqe::decode(service, &bytes) {
            prop_assert!(usize::from(request.control.ds) * 16 <= bytes.len());
        }
    }
}
