//! The Firecracker driver against a fake Firecracker that speaks its API: order and errors of requests, the
//! wait for the API socket and for the agent, the files of snapshots, death at any time. As root. The real one
//! boots in the emulated KVM host.
#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "firecracker/adopt.rs"]
mod adopt;
#[path = "support/fake_firecracker.rs"]
mod fake_firecracker;
#[path = "support/ground.rs"]
mod ground;
#[path = "firecracker/links.rs"]
mod links;

use std::error::Error;
use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use fake_firecracker::{
    CHANGED_PAGE, FIRST_PAGE, Fake, MEMORY, Trouble, accept_connect, failing_program, grant, program,
    program_of_version,
};
use ground::Ground;
use manta_vmm::{ApiError, JailerChoice, MicroVm, Origin, SnapshotFiles, VmmError, firecracker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// For one step of a test, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

async fn within<T>(step: impl Future<Output = T>) -> T {
    timeout(LIMIT, step).await.expect("in time")
}

async fn spawn(ground: &Ground, program: &Path) -> Result<Box<dyn MicroVm>, VmmError> {
    spawn_from(ground, program, &Origin::Boot).await
}

async fn spawn_from(ground: &Ground, program: &Path, origin: &Origin) -> Result<Box<dyn MicroVm>, VmmError> {
    let kernel = ground.file("vmlinux", b"kernel");
    let initramfs = ground.file("initramfs", b"initramfs");
    let vmm = firecracker(program, &JailerChoice::Off).unwrap();
    within(vmm.spawn(ground.place(), &ground.spec(&kernel, &initramfs), origin)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_is_described_and_started_and_the_agent_calls() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    assert_eq!(fake.requests(), "", "the guest does not run, and could still be a snapshot");
    vm.start().await.unwrap();
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
    assert!(vm.console().await.contains("fake firecracker --id vm --api-sock api.sock"));

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
async fn a_refused_request_is_reported_with_its_fault() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Refusal);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let error = within(vm.start()).await.unwrap_err();
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
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Death("/drives/rootfs"));
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    let start = Instant::now();
    let error = within(vm.start()).await.unwrap_err();
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

#[tokio::test(flavor = "multi_thread")]
async fn a_booted_vm_is_saved_whole_and_goes_on() {
    let ground = Ground::new();
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    vm.start().await.unwrap();
    let (first, call) = within(async { tokio::join!(vm.connect_agent(), fake.guest_calls(5252)) }).await;
    drop((first.unwrap(), call.unwrap()));

    let files = snapshot_files(&ground, "snapshot");
    let while_paused = async {
        let requests = fake.requests();
        assert!(requests.contains("/snapshot/create"), "the disk comes last: {requests}");
        assert!(!requests.contains("Resumed"), "and the guest stands still: {requests}");
        Ok(())
    };
    let start = Instant::now();
    let paused = within(vm.snapshot(&files, Box::pin(while_paused))).await.unwrap();
    assert!(paused < start.elapsed());
    assert_eq!(
        last_requests(&fake, 3),
        ["PATCH /vm Paused", "PUT /snapshot/create Full", "PATCH /vm Resumed"]
    );

    assert_eq!(fs::read(&files.state).unwrap(), b"processors");
    assert_eq!(page(&files.memory, 0), FIRST_PAGE);
    let memory = fs::metadata(&files.memory).unwrap();
    assert_eq!(memory.len(), MEMORY);
    assert!(memory.blocks() * 512 < 1 << 20, "written zeroes take room: {} blocks", memory.blocks());
    for file in [&files.state, &files.memory] {
        let file = fs::metadata(file).unwrap();
        assert_eq!((file.uid(), file.gid(), file.mode()), (0, 0, 0o100_444));
    }
    assert_nothing_left(&ground);

    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async { grant(&mut accept_connect(&vsock).await.1).await })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_vm_is_loaded_and_saves_only_its_changes() {
    let ground = Ground::new();
    let parent = parent(&ground);
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn_from(&ground, &program(&ground), &Origin::Snapshot(parent.clone())).await.unwrap();
    assert_eq!(fake.requests(), "");
    vm.start().await.unwrap();
    assert_eq!(
        last_requests(&fake, 9),
        ["PUT /snapshot/load File", "PATCH /drives/rootfs ", "PATCH /drives/disk "],
        "it is not configured"
    );

    // Its agent has no reason to call.
    assert!(fake.guest_calls(5252).await.is_err(), "nobody waits for it");
    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async {
            let (line, mut stream) = accept_connect(&vsock).await;
            assert_eq!(line, "CONNECT 5252\n");
            grant(&mut stream).await;
        })
    })
    .await;
    read_exactly(&mut stream.unwrap(), b"agent").await;

    let still_open = fs::File::open(&parent.memory).unwrap();
    fs::remove_file(&parent.memory).unwrap();
    let [first, second] = ["first", "second"].map(|name| snapshot_files(&ground, name));
    for files in [&first, &second] {
        within(vm.snapshot(files, Box::pin(async { Ok(()) }))).await.unwrap();
        let saved = last_requests(&fake, 3);
        assert_eq!(saved, ["PATCH /vm Paused", "PUT /snapshot/create Diff", "PATCH /vm Resumed"]);
        assert_eq!(fs::metadata(&files.memory).unwrap().mode(), 0o100_444);
        assert_eq!(page(&files.memory, CHANGED_PAGE.1), CHANGED_PAGE.0);
        // Firecracker saves what has changed since the last snapshot, so the next is made from that.
        let unchanged = if files == &first { FIRST_PAGE } else { &[0xcc; 4096] };
        assert_eq!(page(&files.memory, 0), unchanged);
        let mark = fs::OpenOptions::new().write(true).open(&first.memory).unwrap();
        mark.write_all_at(&[0xcc; 4096], 0).unwrap();
    }
    let mut of_parent = vec![1; 4096];
    still_open.read_exact_at(&mut of_parent, CHANGED_PAGE.1).unwrap();
    assert_eq!(of_parent, [0; 4096], "what others are restored from never changes");
    assert_nothing_left(&ground);
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_goes_on_when_it_cannot_be_saved() {
    let ground = Ground::new();
    let (fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::NoRoom);
    let origin = Origin::Snapshot(parent(&ground));
    let vm = spawn_from(&ground, &program(&ground), &origin).await.unwrap();
    vm.start().await.unwrap();
    for (name, kind) in [("first", "Diff"), ("second", "Full")] {
        let while_paused = Box::pin(async { unreachable!("there is nothing to go with the disk") });
        let error = within(vm.snapshot(&snapshot_files(&ground, name), while_paused)).await.unwrap_err();
        assert_eq!(error.to_string(), "Firecracker request PUT /snapshot/create failed");
        // What has changed up to a failed attempt is known to nobody, so all is saved the next time.
        let create = format!("PUT /snapshot/create {kind}");
        assert_eq!(last_requests(&fake, 3), ["PATCH /vm Paused", &create, "PATCH /vm Resumed"]);
        assert_nothing_left(&ground);
    }
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_goes_on_when_its_disk_cannot_be_cloned() {
    let ground = Ground::new();
    let (fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    vm.start().await.unwrap();
    let while_paused = Box::pin(async { Err(io::ErrorKind::StorageFull.into()) });
    let error = within(vm.snapshot(&snapshot_files(&ground, "snapshot"), while_paused)).await.unwrap_err();
    assert!(matches!(&error, VmmError::WhilePaused(source) if source.kind() == io::ErrorKind::StorageFull));
    assert_eq!(last_requests(&fake, 1), ["PATCH /vm Resumed"]);
    assert_nothing_left(&ground);
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stays_paused_is_reported() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::NoResume);
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    vm.start().await.unwrap();
    let files = snapshot_files(&ground, "snapshot");
    let error = within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap_err();
    assert!(matches!(error, VmmError::Resume(_)), "{error:?}");
    assert_eq!(error.source().unwrap().to_string(), "Firecracker request PATCH /vm failed");
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_a_file_is_not_followed() {
    for what in ["state", "memory"] {
        let ground = Ground::new();
        let (fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Link(what));
        let vm = spawn(&ground, &program(&ground)).await.unwrap();
        vm.start().await.unwrap();
        let files = snapshot_files(&ground, "snapshot");
        let error = within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap_err();
        assert!(matches!(error, VmmError::Save { .. }), "{error:?}");
        assert_eq!(last_requests(&fake, 1), ["PATCH /vm Resumed"]);
        let secret = ground.vm_dir().join("secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        assert_nothing_left(&ground);
        vm.kill().await.unwrap();
        ground.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn death_during_a_snapshot_is_reported_at_once() {
    for at in ["Paused", "/snapshot/create", "Resumed"] {
        let ground = Ground::new();
        let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Death(at));
        let vm = spawn(&ground, &program(&ground)).await.unwrap();
        vm.start().await.unwrap();
        let files = snapshot_files(&ground, "snapshot");
        let start = Instant::now();
        let error = within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap_err();
        assert!(
            matches!(&error, VmmError::Ended(exit) if exit.status.contains("SIGKILL")),
            "{at}: {error:?}"
        );
        assert!(start.elapsed() < Duration::from_secs(5), "{at}: {:?}", start.elapsed());
        assert_nothing_left(&ground);
        ground.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_rests_unless_it_could_not_be_reached_afterwards() {
    for (version, rests) in [("1.12.1", true), ("1.16.1", false)] {
        let ground = Ground::new();
        let (fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
        let vm = spawn(&ground, &program_of_version(&ground, version)).await.unwrap();
        vm.start().await.unwrap();
        within(vm.rest()).await.unwrap();
        within(vm.wake()).await.unwrap();
        let expected = if rests {
            ["PATCH /vm Paused", "PATCH /vm Resumed"]
        } else {
            ["PUT /entropy ", "PUT /actions "]
        };
        assert_eq!(last_requests(&fake, 2), expected, "{version}");
        vm.kill().await.unwrap();
        for end in [vm.rest().await, vm.wake().await] {
            assert!(!rests || matches!(end, Err(VmmError::Ended(_))), "{end:?}");
        }
        ground.finish();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn death_on_waking_is_reported_at_once() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::Death("Resumed"));
    let vm = spawn(&ground, &program(&ground)).await.unwrap();
    vm.start().await.unwrap();
    within(vm.rest()).await.unwrap();
    let start = Instant::now();
    let error = within(vm.wake()).await.unwrap_err();
    assert!(matches!(&error, VmmError::Ended(exit) if exit.status.contains("SIGKILL")), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_differ_by_what_the_guest_sees() {
    let ground = Ground::new();
    let vmm = firecracker(&program(&ground), &JailerChoice::Off).unwrap();
    let spec = ground.spec(Path::new("a/vmlinux"), Path::new("a/initramfs"));
    let mut other = ground.spec(Path::new("b/vmlinux"), Path::new("b/initramfs"));
    other.disk = "other".into();
    assert_eq!(vmm.machine(&spec), vmm.machine(&other));
    other.mem_mib += 1;
    assert_ne!(vmm.machine(&spec), vmm.machine(&other));
    ground.finish();
}

/// Files of a snapshot in a directory of the server's.
fn snapshot_files(ground: &Ground, name: &str) -> SnapshotFiles {
    let dir = ground.path(name);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o700)).unwrap();
    SnapshotFiles { state: dir.join("state"), memory: dir.join("memory") }
}

/// A snapshot to restore from.
fn parent(ground: &Ground) -> SnapshotFiles {
    let files = snapshot_files(ground, "parent");
    fs::write(&files.state, "processors").unwrap();
    fs::write(&files.memory, FIRST_PAGE).unwrap();
    fs::OpenOptions::new().write(true).open(&files.memory).unwrap().set_len(MEMORY).unwrap();
    for file in [&files.state, &files.memory] {
        fs::set_permissions(file, PermissionsExt::from_mode(0o444)).unwrap();
    }
    files
}

fn page(file: &Path, offset: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    fs::File::open(file).unwrap().read_exact_at(&mut page, offset).unwrap();
    page
}

/// The last `count` requests: method, path, and what tells them apart.
fn last_requests(fake: &Fake, count: usize) -> Vec<String> {
    let short = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let (method, path, body) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let words = ["Paused", "Resumed", "Full", "Diff", "File"];
        let word = words.into_iter().find(|word| body.contains(&format!("\"{word}\""))).unwrap_or_default();
        format!("{method} {path} {word}")
    };
    let all: Vec<String> = fake.requests().lines().map(short).collect();
    all[all.len().saturating_sub(count)..].to_vec()
}

fn assert_nothing_left(ground: &Ground) {
    let names = fs::read_dir(ground.vm_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("snapshot")).collect();
    assert!(left.is_empty(), "left: {left:?}");
}

async fn read_exactly(stream: &mut UnixStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, expected);
}
