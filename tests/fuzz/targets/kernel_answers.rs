//! Every kernel command, answered with anything at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast::uapi::fuzz::fuzz_decode(data));
