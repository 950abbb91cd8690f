//! The Firecracker driver against a fake Firecracker that speaks its API: order and errors of requests, the wait
//! for the API socket and for the agent, death at any time. As root. The real one boots in the emulated KVM host.
#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/fake_firecracker.rs"]
mod fake_firecracker;
#[path = "support/ground.rs"]
mod ground;

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use fake_firecracker::{Fake, Trouble, accept_connect, failing_program, grant, program};
use ground::Ground;
use manta_vmm::{ApiError, MicroVm, VmmError, firecracker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// For one step of a test, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

async fn within<T>(step: impl Future<Output = T>) -> T {
    timeout(LIMIT, step).await.expect("in time")
}

async fn spawn(ground: &Ground, program: &Path) -> Result<Box<dyn MicroVm>, VmmError> {
    let kernel = ground.file("vmlinux", b"kernel");
    let initramfs = ground.file("initramfs", b"initramfs");
    let vmm = firecracker(program).unwrap();
    assert_eq!(vmm.info().version, "1.12.1");
    within(vmm.spawn(ground.place(), &ground.spec(&kernel, &initramfs))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_is_described_and_started_and_the_agent_calls() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    assert_eq!(fake.requests(), "", "the guest does not run, and could still be a snapshot");
    vm.boot().await.unwrap();
    let requests = fake.requests();
    let paths: Vec<&str> = requests.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    let expected = [
        "/machine-config",
        "/boot-source",
        "/drives/rootfs",
        "/drives/disk",
        "/network-interfaces/net",
        "/vsock",
        "/entropy",
        "/actions",
    ];
    assert_eq!(paths, expected);
    assert!(vm.console().await.contains("fake firecracker --api-sock api.sock --id vm"));

    // A waiting caller that gives up takes nothing with it.
    assert!(timeout(Duration::ZERO, vm.connect_agent()).await.is_err());
    let (mut stream, call) = within(async { tokio::join!(vm.connect_agent(), fake.guest_calls(5252)) }).await;
    let mut call = call.unwrap();
    call.write_all(b"first").await.unwrap();
    read_exactly(stream.as_mut().unwrap(), b"first").await;

    assert!(fake.guest_calls(5252).await.is_err(), "nobody listens to more of them");

    // Later, it is the host that calls.
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            let (line, mut stream) = accept_connect(&vsock).await;
            assert_eq!(line, "CONNECT 5252\n");
            grant(&mut stream).await;
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;
    vm.kill().await.unwrap();
    assert!(vm.exited().await.status.contains("SIGKILL"));
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_link_is_asked_for_again_at_once() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let (first, call) = within(async { tokio::join!(vm.connect_agent(), fake.guest_calls(5252)) }).await;
    drop((first.unwrap(), call.unwrap()));
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            drop(accept_connect(&vsock).await);
            grant(&mut accept_connect(&vsock).await.1).await;
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;

    // A link that dies after the OK ends its stream; the next one works.
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            accept_connect(&vsock).await.1.write_all(b"OK 1\n").await.unwrap();
        })
    })
    .await;
    assert_eq!(within(stream.unwrap().read(&mut [0; 1])).await.unwrap(), 0);
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async { grant(&mut accept_connect(&vsock).await.1).await })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;

    // Refused again and again is an error, while the VMM lives.
    let refuse = async {
        loop {
            drop(accept_connect(&vsock).await);
        }
    };
    let error = within(async {
        tokio::select! { stream = vm.connect_agent() => stream.unwrap_err(), () = refuse => unreachable!() }
    })
    .await;
    assert!(matches!(error, VmmError::AgentLink(_)), "{error:?}");
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_reported_with_its_fault() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Refusal);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let error = within(vm.boot()).await.unwrap_err();
    assert_eq!(error.to_string(), "Firecracker request PUT /network-interfaces/net failed");
    let source = error.source().unwrap().to_string();
    assert_eq!(source, "Firecracker refused (400): Could not create the network device: no tap");
    assert!(matches!(error, VmmError::Api { source: ApiError::Fault { status: 400, .. }, .. }));
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn death_during_boot_is_reported_at_once() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Death);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let start = Instant::now();
    let error = within(vm.boot()).await.unwrap_err();
    assert!(matches!(&error, VmmError::Ended(exit) if exit.status.contains("SIGKILL")), "{error:?}");
    assert!(error.to_string().contains("fake firecracker"), "it says what was printed: {error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn death_ends_the_wait_for_the_agent() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let (stream, killed) = within(async { tokio::join!(vm.connect_agent(), vm.kill()) }).await;
    killed.unwrap();
    assert!(matches!(stream, Err(VmmError::Ended(_))), "{stream:?}");
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn death_before_the_api_is_there_is_reported_at_once() {
    let ground = Ground::new();
    let program = failing_program(&ground);
    let start = Instant::now();
    let error = spawn(&ground, &program).await.unwrap_err();
    assert!(matches!(&error, VmmError::Ended(exit) if exit.console.contains("no room")), "{error:?}");
    assert!(error.to_string().contains("exit status: 7"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ground.finish();
}

async fn read_exactly(stream: &mut UnixStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, expected);
}
