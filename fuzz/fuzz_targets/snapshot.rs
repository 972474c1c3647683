#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm_lib::fuzz::snapshot(data));
