//! A hostile agent at the host's session: see `manta_engine::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| manta_fuzz::run(manta_engine::fuzzing::session(input)));
