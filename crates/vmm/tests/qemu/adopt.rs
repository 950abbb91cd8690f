//! VMs whose server is killed, in the hands of the next one. The killed server is a process of its own: this
//! program again, told by [`ROLE`] what to do until it is killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use manta_host::{Credentials, Process, ProcessId};
use manta_vmm::{
    Accelerator, DiskLimits, MicroVm, Origin, SnapshotFiles, Survivor, VmSpec, Vmm, VmmError, qemu,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::ground::Ground;
use crate::guest::{Then, kernel};
use crate::{spawn, within};

const ROLE: &str = "MANTA_TEST_ROLE";

/// Does nothing as a test. In its role it is a server with one VM, which waits to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let kernel = kernel().unwrap();
    let then = match role.as_str() {
        "echo" => Then::Echo,
        "exit" => Then::Exit,
        _ => Then::Count,
    };
    let mut ground = Ground::new();
    let mut vm = spawn(&ground, &kernel, then, &Origin::Boot).await.unwrap();
    let files = SnapshotFiles { state: ground.path("state"), memory: ground.path("memory") };
    if !role.starts_with("unborn") {
        within(vm.start()).await.unwrap();
    }
    if role == "echo" {
        let mut agent = within(vm.connect_agent()).await.unwrap();
        echo(&mut agent, b"before").await;
    } else if role != "exit" && !role.starts_with("unborn") {
        counts_on(&*vm).await;
    }
    let restored = Ground::new();
    if role.ends_with("restored") {
        if role.starts_with("unborn") {
            within(vm.start()).await.unwrap();
        }
        within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap();
        let clone = spawn(&restored, &kernel, Then::Count, &Origin::Snapshot(files.clone())).await.unwrap();
        within(std::mem::replace(&mut vm, clone).kill()).await.unwrap();
        // With it goes the snapshot, as when it is deleted.
        ground = restored;
        if !role.starts_with("unborn") {
            within(vm.start()).await.unwrap();
        }
    }
    let say = || {
        let ProcessId { pid, start_ticks } = vm.process_id();
        println!("\nvm {pid} {start_ticks} {}", ground.vm_dir().display());
    };
    if role.starts_with("saving") {
        let other = SnapshotFiles { state: ground.path("other-state"), memory: ground.path("other-memory") };
        let never = async {
            say();
            std::future::pending().await
        };
        vm.snapshot(&other, Box::pin(never)).await.unwrap();
    }
    say();
    std::future::pending::<()>().await;
}

/// A VM without a server.
struct Orphan {
    id: ProcessId,
    dir: PathBuf,
    restored: bool,
    /// Holds all that the server made.
    _files: TempDir,
}

impl Orphan {
    /// Starts a server and kills it, as by `kill -9`.
    fn of(role: &str) -> Self {
        struct Server(Child);
        impl Drop for Server {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
            }
        }
        let files = tempfile::tempdir().unwrap();
        let mut server = Server(
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "adopt::a_server_to_be_killed", "--nocapture"])
                .env(ROLE, role)
                .env("TMPDIR", files.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        for line in BufReader::new(server.0.stdout.take().unwrap()).lines() {
            if let ["vm", pid, ticks, dir] = line.unwrap().split(' ').collect::<Vec<_>>()[..] {
                let id = ProcessId { pid: pid.parse().unwrap(), start_ticks: ticks.parse().unwrap() };
                let (dir, restored) = (dir.into(), role.ends_with("restored"));
                return Self { id, dir, restored, _files: files };
            }
        }
        panic!("the server ended");
    }

    async fn adopt(&self) -> Result<Box<dyn MicroVm>, VmmError> {
        self.adopt_of_size(128).await
    }

    async fn adopt_of_size(&self, mem_mib: u32) -> Result<Box<dyn MicroVm>, VmmError> {
        let survivor = Survivor {
            process: Process::adopt(&self.id).unwrap().expect("it lives"),
            dir: self.dir.clone(),
            credentials: Credentials { uid: 64_123, gid: 64_123, groups: Vec::new() },
            restored: self.restored,
        };
        within(vmm().adopt(survivor, &spec(mem_mib))).await
    }

    /// A connection to QEMU of the test's own, ready for commands.
    async fn qmp(&self) -> tokio::io::BufReader<UnixStream> {
        let stream = UnixStream::connect(self.dir.join("qmp.sock")).await.unwrap();
        let mut qmp = tokio::io::BufReader::new(stream);
        qmp.read_line(&mut String::new()).await.unwrap();
        command(&mut qmp, &json!({ "execute": "qmp_capabilities" })).await;
        qmp
    }

    fn assert_gone(&self) {
        assert!(Process::adopt(&self.id).unwrap().is_none(), "its VMM is gone");
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        drop(Process::adopt(&self.id));
    }
}

fn vmm() -> Arc<dyn Vmm> {
    qemu(Path::new("qemu-system-x86_64"), Accelerator::Tcg).unwrap()
}

/// No file of it is there any more.
fn spec(mem_mib: u32) -> VmSpec {
    let [kernel, initramfs, rootfs, disk] = ["kernel", "initramfs", "rootfs", "disk"].map(PathBuf::from);
    let mac = [0x06, 0, 0, 0, 0, 2];
    let disk_limits = DiskLimits::default();
    VmSpec { kernel, initramfs, rootfs, disk, disk_limits, vcpus: 1, mem_mib, mac, vsock_port: 5252 }
}

async fn command(qmp: &mut tokio::io::BufReader<UnixStream>, command: &Value) -> Value {
    qmp.write_all(command.to_string().as_bytes()).await.unwrap();
    loop {
        let mut line = String::new();
        within(qmp.read_line(&mut line)).await.unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer.get("error").is_none(), "{answer}");
        if let Some(value) = answer.get("return") {
            return value.clone();
        }
    }
}

async fn echo(agent: &mut UnixStream, text: &[u8]) {
    agent.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    within(agent.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, text);
}

/// Waits until a counting guest has printed some more. It ends when its memory is not what it wrote.
async fn counts_on(vm: &dyn MicroVm) {
    let before = vm.console().await.len();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    let more = async {
        while vm.console().await.len() < before + 100 {
            look.tick().await;
        }
    };
    tokio::select! {
        () = within(more) => {}
        exit = vm.exited() => panic!("{exit}"),
    }
}

/// Saves a counting VM, and lets a clone of it count on.
async fn assert_can_be_saved(vm: &dyn MicroVm) {
    let (ground, kernel) = (Ground::new(), kernel().unwrap());
    let files = SnapshotFiles { state: ground.path("state"), memory: ground.path("memory") };
    within(vm.snapshot(&files, Box::pin(async { Ok(()) }))).await.unwrap();
    let clone = spawn(&ground, &kernel, Then::Count, &Origin::Snapshot(files)).await.unwrap();
    within(clone.start()).await.unwrap();
    counts_on(&*clone).await;
    counts_on(vm).await;
    within(clone.kill()).await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_goes_on_with_the_next_server_and_can_be_saved_by_it() {
    if kernel().is_none() {
        return;
    }
    for role in ["booted", "restored", "saving", "saving-restored"] {
        let orphan = Orphan::of(role);
        let paused = role.starts_with("saving");
        if paused {
            let mut qmp = orphan.qmp().await;
            let status = command(&mut qmp, &json!({ "execute": "query-status" })).await;
            assert_eq!(status["running"], false, "{role}: the server died during the pause");
            assert!(orphan.dir.join("snapshot.state").exists());
        }
        let vm = orphan.adopt().await.unwrap_or_else(|error| panic!("{role}: {error:?}"));
        assert_eq!(vm.process_id(), orphan.id);
        assert!(!orphan.dir.join("snapshot.state").exists(), "{role}");
        counts_on(&*vm).await;
        assert_can_be_saved(&*vm).await;
        within(vm.rest()).await.unwrap();
        within(vm.wake()).await.unwrap();
        counts_on(&*vm).await;
        let (exit, killed) = within(async { tokio::join!(vm.exited(), vm.kill()) }).await;
        killed.unwrap();
        assert!(exit.status.contains("status unknown"), "{exit:?}");
        orphan.assert_gone();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_is_reached_again_whatever_qemu_was_told_and_has_printed_since() {
    if kernel().is_none() {
        return;
    }
    let orphan = Orphan::of("echo");
    let stream = orphan.qmp().await;
    let mut half = stream.into_inner();
    half.write_all(b"{\"execute\": \"sto").await.unwrap();
    drop(half);
    // QEMU writes to the pipe that nobody reads any more.
    let mut qmp = orphan.qmp().await;
    let log = |what: &str| {
        let line = format!("log {what}");
        json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } })
    };
    command(&mut qmp, &log("exec,nochain,in_asm")).await;
    // Of a command that is under way.
    qmp.write_all(b"{\"execute\": \"query-status\"}").await.unwrap();
    drop(qmp);

    let vm = orphan.adopt().await.unwrap();
    let mut agent = within(vm.connect_agent()).await.unwrap();
    for text in [b"first", b"other"] {
        echo(&mut agent, text).await;
    }
    within(vm.kill()).await.unwrap();
    orphan.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_ran_or_has_ended_is_not_adopted_and_gone() {
    if kernel().is_none() {
        return;
    }
    for role in ["unborn", "unborn-restored"] {
        let orphan = Orphan::of(role);
        let error = orphan.adopt().await.unwrap_err();
        assert!(matches!(error, VmmError::NeverRan(_)), "{role}: {error:?}");
        orphan.assert_gone();
    }

    let orphan = Orphan::of("exit");
    let mut qmp = orphan.qmp().await;
    let mut look = tokio::time::interval(Duration::from_millis(20));
    within(async {
        while command(&mut qmp, &json!({ "execute": "query-status" })).await["status"] != "shutdown" {
            look.tick().await;
        }
    })
    .await;
    drop(qmp);
    let error = orphan.adopt().await.unwrap_err();
    let VmmError::Ended(exit) = &error else { panic!("{error:?}") };
    assert!(exit.status.contains("no server"), "{exit:?}");
    assert!(exit.console.contains("Kernel panic"), "{exit:?}");
    orphan.assert_gone();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_not_as_it_was_started_is_not_adopted_and_gone() {
    if kernel().is_none() {
        return;
    }
    let orphan = Orphan::of("booted");
    let error = orphan.adopt_of_size(64).await.unwrap_err();
    assert!(matches!(error, VmmError::Memory { .. }), "{error:?}");
    orphan.assert_gone();

    // Nobody listens.
    let orphan = Orphan::of("booted");
    std::fs::remove_file(orphan.dir.join("qmp.sock")).unwrap();
    let error = orphan.adopt().await.unwrap_err();
    assert!(matches!(error, VmmError::Connect { .. }), "{error:?}");
    orphan.assert_gone();
}
