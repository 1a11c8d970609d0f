#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| fleethold_fuzz_targets::identity_header(input));
