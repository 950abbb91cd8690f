//! The QEMU driver with a real QEMU, a real kernel and a tiny guest. As root.
#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "qemu/adopt.rs"]
mod adopt;
#[path = "qemu/confined.rs"]
mod confined;
#[path = "support/ground.rs"]
mod ground;
#[path = "support/guest.rs"]
mod guest;
#[path = "qemu/rest.rs"]
mod rest;
#[path = "qemu/snapshots.rs"]
mod snapshots;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ground::Ground;
use guest::{GREETING, Then, init, kernel};
use manta_vmm::{Accelerator, MicroVm, Origin, VmmError, VmmKind, qemu, write_initramfs};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// For one step of a test, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

async fn within<T>(step: impl Future<Output = T>) -> T {
    timeout(LIMIT, step).await.expect("in time")
}

async fn spawn(
    ground: &Ground,
    kernel: &Path,
    then: Then,
    origin: &Origin,
) -> Result<Box<dyn MicroVm>, VmmError> {
    let agent = ground.file("agent", &init(then));
    let initramfs = ground.path("initramfs");
    write_initramfs(&agent, &initramfs).unwrap();
    let vmm = qemu(Path::new("qemu-system-x86_64"), Accelerator::Tcg).unwrap();
    within(vmm.spawn(ground.place(), &ground.spec(kernel, &initramfs), origin)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_boots_prints_and_is_killed() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let start = Instant::now();
    let vm = spawn(&ground, &kernel, Then::Wait, &Origin::Boot).await.unwrap();
    println!("spawn to QMP ready: {:?}", start.elapsed());
    for socket in ["qmp.sock", "agent.sock"] {
        let mode = ground.vm_dir().join(socket).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{socket} is nobody else's");
    }
    assert_eq!(vm.console().await, "", "the guest does not run yet");

    let start = Instant::now();
    vm.start().await.unwrap();
    let mut agent = within(vm.connect_agent()).await.unwrap();
    // The console makes no event.
    let mut look = tokio::time::interval(Duration::from_millis(20));
    within(async {
        while !vm.console().await.contains(GREETING) {
            look.tick().await;
        }
    })
    .await;
    println!("boot to the first line of init: {:?}", start.elapsed());
    assert!(vm.console().await.contains(GREETING), "the console is kept");

    let (exit, killed) = within(async { tokio::join!(vm.exited(), vm.kill()) }).await;
    killed.unwrap();
    assert!(exit.status.contains("SIGKILL"), "{exit:?}");
    assert!(exit.console.contains(GREETING), "{exit:?}");
    assert_eq!(within(agent.read(&mut [0; 1])).await.unwrap(), 0, "the agent's stream ends");
    vm.kill().await.unwrap();
    assert_eq!(vm.exited().await, exit, "its end can be asked for again");
    assert!(matches!(within(vm.connect_agent()).await, Err(VmmError::Ended(_))));
    assert!(matches!(within(vm.start()).await, Err(VmmError::Ended(_))));
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_panics_ends_the_vmm_and_leaves_its_console() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &kernel, Then::Exit, &Origin::Boot).await.unwrap();
    vm.start().await.unwrap();
    let exit = within(vm.exited()).await;
    assert!(exit.status.contains("guest-reset"), "{exit:?}");
    assert!(exit.console.contains(GREETING), "{exit:?}");
    assert!(exit.console.contains("Kernel panic"), "{exit:?}");
    assert_eq!(vm.console().await, exit.console);
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vmm_killed_while_booting_is_reported_at_once() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &kernel, Then::Wait, &Origin::Boot).await.unwrap();
    vm.start().await.unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(vm.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let start = Instant::now();
    let exit = within(vm.exited()).await;
    assert!(exit.status.contains("SIGKILL"), "{exit:?}");
    let error = within(vm.connect_agent()).await.unwrap_err();
    assert!(matches!(&error, VmmError::Ended(exit) if exit.status.contains("SIGKILL")), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_kernel_is_refused_by_qemu_in_its_words() {
    let ground = Ground::new();
    let kernel = ground.file("vmlinux", b"this is not a kernel");
    let error = spawn(&ground, &kernel, Then::Wait, &Origin::Boot).await.unwrap_err();
    let VmmError::Ended(exit) = &error else { panic!("{error:?}") };
    assert!(exit.status.contains("exit status: 1"), "{exit:?}");
    assert!(exit.console.contains("kernel"), "{exit:?}");
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_files_are_named_before_anything_is_started() {
    let ground = Ground::new();
    let missing = ground.path("nothing/vmlinux");
    let error = spawn(&ground, &missing, Then::Wait, &Origin::Boot).await.unwrap_err();
    assert!(matches!(&error, VmmError::Open { what: "kernel", path, .. } if *path == missing), "{error:?}");
    assert_eq!(std::fs::read_dir(ground.vm_dir()).unwrap().count(), 0);
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_start_leaves_no_process() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let agent = ground.file("agent", &init(Then::Wait));
    let initramfs = ground.path("initramfs");
    write_initramfs(&agent, &initramfs).unwrap();
    let vmm = qemu(Path::new("qemu-system-x86_64"), Accelerator::Tcg).unwrap();
    assert_eq!(vmm.info().kind, VmmKind::Qemu);
    let spec = ground.spec(&kernel, &initramfs);
    // Too short for QEMU to answer, long enough to be started.
    let cut = timeout(Duration::from_millis(5), vmm.spawn(ground.place(), &spec, &Origin::Boot)).await;
    assert!(cut.is_err(), "{cut:?}");
    // A process just being started is killed by the thread that starts it.
    let mut look = tokio::time::interval(Duration::from_millis(20));
    within(async {
        while !manta_host::processes_in(&ground.vm_dir()).unwrap().is_empty() {
            look.tick().await;
        }
    })
    .await;
    ground.finish();
}
