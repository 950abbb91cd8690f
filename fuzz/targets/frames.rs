//! Any bytes as frames, whole and in pieces: see `manta_agent_proto::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| manta_agent_proto::fuzzing::frames(input));
