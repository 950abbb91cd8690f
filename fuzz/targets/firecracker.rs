//! A Firecracker in its guest's hands, its API and its consent to a connection: see `manta_vmm::fuzzing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    manta_fuzz::run(async {
        manta_vmm::fuzzing::firecracker(input).await;
        manta_vmm::fuzzing::connect(input).await;
    });
});
