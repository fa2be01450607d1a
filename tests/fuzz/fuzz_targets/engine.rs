//! See `netd_tests::fuzz::engine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netd_tests::fuzz::engine(input));
