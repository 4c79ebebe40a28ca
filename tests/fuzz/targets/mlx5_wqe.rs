//! Work queue elements: what is posted, a decoder reads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| holdfast::mlx5::fuzz::fuzz_wqe(data));
