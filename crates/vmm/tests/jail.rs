//! The real jailer and the real Firecracker, up to the API: what a jailed Firecracker is and sees. As root; no KVM
//! is needed, since no guest is run. Guests run in the emulated KVM host.
#![allow(clippy::unwrap_used)] // in the helpers too

#[path = "support/ground.rs"]
mod ground;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ground::Ground;
use manta_host::process::{Stray, processes_in};
use manta_vmm::{JailerChoice, MicroVm, Origin, VmmError, firecracker};

/// Firecracker beside its jailer: `MANTA_TEST_FIRECRACKER_BIN`, which must exist if set.
fn real() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MANTA_TEST_FIRECRACKER_BIN") else {
        println!("skipped: no Firecracker (MANTA_TEST_FIRECRACKER_BIN; `cargo xtask test` has one)");
        return None;
    };
    let path = PathBuf::from(path);
    assert!(path.is_file(), "MANTA_TEST_FIRECRACKER_BIN={} is no file", path.display());
    Some(path)
}

async fn spawn(ground: &Ground, program: &Path) -> Result<Box<dyn MicroVm>, VmmError> {
    let kernel = ground.file("vmlinux", b"kernel");
    let initramfs = ground.file("initramfs", b"initramfs");
    let vmm = firecracker(program, &JailerChoice::Find).unwrap();
    vmm.spawn(ground.place(), &ground.spec(&kernel, &initramfs), &Origin::Boot).await
}

/// `/proc/PID/NAME` of a VM.
fn proc_file(vm: &dyn MicroVm, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", vm.pid()))
}

fn status(vm: &dyn MicroVm) -> BTreeMap<String, String> {
    let text = fs::read_to_string(proc_file(vm, "status")).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.into(), words(value)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jailed_firecracker_has_a_user_of_its_own_and_no_privileges() {
    let Some(program) = real() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &program).await.unwrap();
    let status = status(&*vm);
    let owner = ground.place().credentials;
    assert_eq!(status["Name"], "firecracker", "the process that was spawned is Firecracker itself by now");
    assert_eq!(status["Uid"], [owner.uid.to_string().as_str(); 4].join(" "));
    assert_eq!(status["Gid"], [owner.gid.to_string().as_str(); 4].join(" "));
    assert_eq!(status["Groups"], "");
    assert_eq!(status["NoNewPrivs"], "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    // It outlives who reads what it prints.
    let signals = |set: &str| u64::from_str_radix(&status[set], 16).unwrap();
    let sigpipe = 1 << (13 - 1);
    assert_ne!((signals("SigIgn") | signals("SigCgt")) & sigpipe, 0);
    // All that the jailer needed.
    assert_eq!(status["CapBnd"], "00000000082000cb");
    vm.kill().await.unwrap();
    assert!(vm.exited().await.status.contains("SIGKILL"));
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jailed_firecracker_sees_its_directory_and_nothing_else() {
    let Some(program) = real() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &program).await.unwrap();

    let working: Vec<_> = processes_in(&ground.vm_dir()).unwrap().iter().map(Stray::pid).collect();
    assert_eq!(working, [vm.pid()], "a later server would find it");
    // All paths begin at a root, a working directory or an open file, and none leads out of a mount.
    let mounts = fs::read_to_string(proc_file(&*vm, "mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert!(
        mounts.split_whitespace().nth(3).unwrap().ends_with(ground.vm_dir().to_str().unwrap()),
        "{mounts}"
    );
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).unwrap();
    for place in ["root", "cwd"] {
        assert_eq!(identity(&proc_file(&*vm, place)), identity(&ground.vm_dir()), "{place}");
    }
    for entry in fs::read_dir(proc_file(&*vm, "fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        let harmless = ["pipe:", "socket:", "anon_inode:"].iter().any(|kind| target.starts_with(kind));
        assert!(harmless || target == "/dev/null", "it has {target} open");
    }

    // What is there is its own, or cannot be written.
    let mut found = Vec::new();
    list(&ground.vm_dir(), &mut found);
    let uid = ground.place().credentials.uid;
    for name in ["files/kernel", "files/initramfs", "files/rootfs", "jail/firecracker/vm/root"] {
        let path = ground.vm_dir().join(name);
        assert!(found.contains(&path), "{name} is not among {found:?}");
        assert_ne!(fs::symlink_metadata(path).unwrap().uid(), uid, "{name}");
    }
    let shared = ["kernel", "initramfs", "rootfs"].map(|name| ground.vm_dir().join("files").join(name));
    for path in shared {
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o022, 0, "{}", path.display());
    }
    assert_eq!(fs::metadata(ground.vm_dir().join("files/disk")).unwrap().uid(), uid);
    assert_eq!(fs::metadata(ground.vm_dir()).unwrap().mode() & 0o777, 0o700);
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jailed_firecracker_is_in_namespaces_of_its_own_and_bounded() {
    let Some(program) = real() else { return };
    let ground = Ground::new();
    let vm = spawn(&ground, &program).await.unwrap();
    for namespace in ["ns/mnt", "ns/net"] {
        let own = fs::metadata(Path::new("/proc/self").join(namespace)).unwrap().ino();
        assert_ne!(fs::metadata(proc_file(&*vm, namespace)).unwrap().ino(), own, "{namespace}");
    }
    let limits = fs::read_to_string(proc_file(&*vm, "limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(
        limit("Max file size"),
        (128 << 20).to_string(),
        "the guest's memory is the largest it writes"
    );
    assert_eq!(limit("Max address space"), ((128 << 20) + (1 << 30)).to_string());
    assert_eq!(limit("Max open files"), "2048");
    assert_eq!(limit("Max processes"), "17");
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max locked memory"), "0");
    vm.kill().await.unwrap();
    ground.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jail_that_cannot_be_made_is_reported_with_the_jailers_words() {
    let Some(program) = real() else { return };
    let ground = Ground::new();
    // In the way of a device node.
    fs::create_dir_all(ground.vm_dir().join("dev/net/tun")).unwrap();
    let error = spawn(&ground, &program).await.unwrap_err();
    assert!(matches!(&error, VmmError::Ended(exit) if exit.console.contains("/dev/net/tun")), "{error:?}");
    ground.finish();
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            list(&path, found);
        }
        found.push(path);
    }
}
