//! Manifests of snapshots and files of keys: see `manta_engine::fuzzing` and `manta_server::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    manta_engine::fuzzing::manifest(input);
    manta_server::fuzzing::keys(input);
});
