//! The virtual ConnectX's send queue, with work requests that hold anything at all.
#![no_main]

use vhca::hostile::{Bed, DATA};
use vhca::wqe::{self, Service};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for service in [Service::Rc, Service::Uc, Service::Ud, Service::XrcInitiator, Service::Registration] {
        let _ = wqe::decode(service, data);
    }
    let Ok(mut bed) = Bed::new() else { return };
    bed.post_receive(DATA, 64);
    if let Some((code, rest)) = data.split_first() {
        let rest = &rest[..rest.len().min(900)];
        let request = bed.request(*code, rest);
        bed.post(&request);
    }
    bed.completions();
});
