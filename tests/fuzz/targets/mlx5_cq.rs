//! A completion queue of a device that writes anything at all.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast::mlx5::fuzz::fuzz_cq(data));
