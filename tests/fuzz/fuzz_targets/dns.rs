//! See `netd_tests::fuzz::dns`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| netd_tests::fuzz::dns(input));
