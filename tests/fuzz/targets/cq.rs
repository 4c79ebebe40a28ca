//! A completion queue whose mapped memory holds anything at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast::rxe::fuzz::fuzz_cq(data));
