//! Any bytes on a connection to the server: see `manta_server::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| manta_fuzz::run(manta_server::fuzzing::http(input)));
