#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kvmlet_server::fuzz::websocket(data));
