//! Commands and work requests with anything in them: the device answers or fails a queue pair, and lives.
#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

use std::cell::RefCell;

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
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(cases));
    runner
        .run(&edits(), |edits| {
            property(&mut bed.borrow_mut(), edits);
            Ok(())
        })
        .unwrap();
}

#[test]
fn ten_thousand_commands() {
    on_a_bed(10_000, |bed, edits| {
        let input = mutate(&bed.commands(), &edits);
        let output = bed.command(&input, 16 + input.len());
        assert!(output.len() >= 8);
        bed.work();
        // What was broken for good is begun anew.
        if bed.connect().is_err() {
            *bed = Bed::new().unwrap();
        }
    });
}

#[test]
fn ten_thousand_work_requests() {
    on_a_bed(10_000, |bed, edits| {
        if !bed.sends() && bed.connect().is_err() {
            *bed = Bed::new().unwrap();
        }
        let request = mutate(&bed.requests(), &edits);
        bed.post_receive(vhca::hostile::DATA, 64);
        bed.post(&request);
        bed.completions();
    });
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
