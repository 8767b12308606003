//! Makes bytes up, and tries them as an archive; what must hold is beside the tests.
#![no_main]

#[path = "../../tests/archive/any_bytes.rs"]
mod promise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| promise::hold_what_is_promised(data));
