#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| turbo_fuzz::run("oci", bytes));
