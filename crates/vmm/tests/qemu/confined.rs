//! What a running QEMU is kept in, seen from outside, and what is in reach from where it is.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use manta_vmm::Origin;

use crate::ground::Ground;
use crate::guest::{Then, kernel};
use crate::spawn;

#[tokio::test(flavor = "multi_thread")]
async fn a_running_qemu_has_no_privileges_and_sees_nothing_but_its_own() {
    let Some(kernel) = kernel() else { return };
    let ground = Ground::new();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let vm = spawn(&ground, &kernel, Then::Wait, &Origin::Boot).await.unwrap();
    vm.start().await.unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "the host sees no mount of it");

    let of = |name: &str| format!("/proc/{}/{name}", vm.pid());
    let status = fs::read_to_string(of("status")).unwrap();
    let none = "0000000000000000";
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "NSpid:"]
        .map(str::to_owned)
        .into_iter()
        .chain(["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t{none}")))
    {
        assert!(status.contains(&line), "{line}: {status}");
    }
    assert!(status.contains(&format!("NSpid:\t{}\t1\n", vm.pid())), "process 1 in its namespace: {status}");
    assert!(status.contains("Umask:\t0077"), "{status}");
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(!uid.split_whitespace().any(|uid| uid == "0"), "{uid}");
    for name in ["mnt", "net", "ipc", "uts", "pid"] {
        assert_ne!(
            fs::read_link(of(&format!("ns/{name}"))).unwrap(),
            fs::read_link(format!("/proc/self/ns/{name}")).unwrap()
        );
    }

    // Its working directory is its own, and all that it could write to.
    assert_eq!(fs::metadata(of("cwd")).unwrap().ino(), fs::metadata(ground.vm_dir()).unwrap().ino());
    for line in fs::read_to_string(of("mountinfo")).unwrap().lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let (point, options): (_, BTreeSet<&str>) = (fields[4], fields[5].split(',').collect());
        assert!(options.contains("nosuid") && options.contains("nodev"), "{line}");
        assert_eq!(options.contains("rw"), point == "/vm", "{line}");
        assert!(!line.contains(" shared:") && !line.contains(" master:"), "{line}");
        assert!(
            options.contains("noexec") || point.contains(".so") || point.contains("qemu-system"),
            "{line}"
        );
    }
    let root = of("root");
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(Path::new(&root).join(dir)).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let expected = ["etc", "lib", "lib64", "proc", "usr", "vm"].map(str::to_owned);
    assert!(names("").is_subset(&expected.into()), "{:?}", names(""));
    assert!(names("etc").iter().all(|name| name == "ld.so.cache"), "{:?}", names("etc"));
    let (others, own): (Vec<_>, Vec<_>) =
        names("proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).partition(|name| name != "1");
    assert_eq!((others, own), (Vec::new(), vec!["1".to_owned()]), "of /proc it has itself");

    let limits = fs::read_to_string(of("limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(limit("Max address space"), ((128 << 20) + (8u64 << 30)).to_string());
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max open files"), "256");
    assert_eq!(limit("Max locked memory"), "0");
    assert_eq!(limit("Max file size"), (64 << 20).to_string());
    // It needs far less than it may.
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")).unwrap();
    println!("address space at its largest: {}", peak.trim());
    vm.kill().await.unwrap();
    ground.finish();
}
