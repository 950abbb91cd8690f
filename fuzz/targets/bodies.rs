//! Bodies of every route: see `manta_server::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| manta_server::fuzzing::body(input));
