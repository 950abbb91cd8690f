//! What a Firecracker is asked by a server that takes it over, and what becomes of it. Here its first server lives on,
//! idle: Firecracker cannot tell.

use manta_host::{Credentials, Process};
use manta_vmm::{JailerChoice, MicroVm, Origin, SnapshotFiles, Survivor, VmmError, firecracker};
use tokio::io::AsyncReadExt;

use crate::fake_firecracker::{Fake, MEMORY, Trouble, accept_connect, grant, program, program_of_version};
use crate::ground::Ground;
use crate::{spawn, spawn_from, within};

/// Takes over the VM that `vm` is.
async fn adopt(
    ground: &Ground,
    program: &std::path::Path,
    vm: &dyn MicroVm,
    restored: bool,
) -> Result<Box<dyn MicroVm>, VmmError> {
    let gone = ground.path("gone");
    let survivor = Survivor {
        process: Process::adopt(&vm.process_id()).unwrap().expect("it lives"),
        dir: ground.vm_dir(),
        credentials: Credentials { uid: 64_123, gid: 64_123, groups: Vec::new() },
        restored,
    };
    within(firecracker(program, &JailerChoice::Off).unwrap().adopt(survivor, &ground.spec(&gone, &gone)))
        .await
}

async fn save(ground: &Ground, vm: &dyn MicroVm, name: &str) -> Result<(), VmmError> {
    let file = |what: &str| ground.path(&format!("{name}.{what}"));
    let files = SnapshotFiles { state: file("state"), memory: file("memory") };
    within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_vm_is_resumed_reached_and_saved_whole_at_first() {
    let ground = Ground::new();
    let memory = ground.file("old.memory", b"");
    std::fs::OpenOptions::new().write(true).open(&memory).unwrap().set_len(MEMORY).unwrap();
    let origin = Origin::Snapshot(SnapshotFiles { state: ground.file("old.state", b"state"), memory });
    let (fake, vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let program = program(&ground);
    let first = spawn_from(&ground, &program, &origin).await.unwrap();
    first.start().await.unwrap();
    first.rest().await.unwrap();
    // Of a snapshot that was being taken.
    std::fs::write(ground.vm_dir().join("snapshot.state"), "half").unwrap();

    let before = fake.requests().lines().count();
    let vm = adopt(&ground, &program, &*first, true).await.unwrap();
    let requests: Vec<String> = fake.requests().lines().skip(before).map(str::to_owned).collect();
    assert_eq!(requests, ["GET / ", "PATCH /vm {\"state\":\"Resumed\"}"]);
    assert!(!ground.vm_dir().join("snapshot.state").exists());

    let (stream, ()) = within(async {
        tokio::join!(vm.connect_agent(), async { grant(&mut accept_connect(&vsock).await.1).await })
    })
    .await;
    let mut said = [0; 5];
    within(stream.unwrap().read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"agent");

    for (name, kind) in [("one", "Full"), ("two", "Diff")] {
        save(&ground, &*vm, name).await.unwrap();
        let requests = fake.requests();
        let create = requests.lines().rfind(|line| line.contains("/snapshot/create")).unwrap();
        assert!(create.contains(kind), "{name}: {create}");
    }
    within(vm.kill()).await.unwrap();
    within(first.exited()).await;
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_never_ran_is_killed() {
    let ground = Ground::new();
    let (fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let program = program(&ground);
    let first = spawn(&ground, &program).await.unwrap();
    let error = adopt(&ground, &program, &*first, false).await.unwrap_err();
    assert!(matches!(&error, VmmError::NeverRan(state) if state == "Not started"), "{error:?}");
    assert_eq!(fake.requests(), "GET / ");
    within(first.exited()).await;
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_of_another_version_runs_on_but_is_not_saved() {
    let ground = Ground::new();
    let (_fake, _vsock) = Fake::serve(&ground.vm_dir(), Trouble::None);
    let first = spawn(&ground, &program(&ground)).await.unwrap();
    first.start().await.unwrap();
    let vm = adopt(&ground, &program_of_version(&ground, "1.13.0"), &*first, false).await.unwrap();
    let error = save(&ground, &*vm, "one").await.unwrap_err();
    assert!(matches!(&error, VmmError::OtherVersion { running, .. } if running == "1.12.1"), "{error:?}");
    within(vm.kill()).await.unwrap();
    within(first.exited()).await;
    ground.finish();
}
