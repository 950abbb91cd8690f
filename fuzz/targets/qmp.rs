//! A QEMU in its guest's hands: see `manta_vmm::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| manta_fuzz::run(manta_vmm::fuzzing::qmp(input)));
