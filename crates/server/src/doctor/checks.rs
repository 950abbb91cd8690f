//! What the kernel and the machine must offer, tried out rather than looked up.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use manta_host::mounts::filesystem_of;
use manta_host::net::{HostNetwork, NetSlot, detect_egress, interface_exists};
use manta_host::{CgroupLimits, Cgroups, NetNs, disk, facts};

use super::{Finding, chain, existing};
use crate::args::{CgroupSetting, ListenAddr, ServerArgs};
use crate::listeners::{in_clear, tls};
use crate::run::{is_root, max_memory_mib};

/// Open files that a server with a few hundred sandboxes needs.
const OPEN_FILES: u64 = 16_384;
/// Processes and threads that it needs.
const PROCESSES: u64 = 8_192;
/// Bytes below which the work directory's file system is called small.
const SMALL_DISK: u64 = 5 << 30;

/// All checks but those of VMMs.
pub(super) fn all(args: &ServerArgs) -> Vec<Finding> {
    let mut findings = vec![root()];
    findings.extend(network());
    findings.push(egress(&args.host_iface));
    findings.extend(artifacts(args));
    findings.extend(work_dir(&args.work_dir, args.disk_reserve_mib));
    findings.push(memory(args));
    findings.push(listener(args));
    findings.extend(cgroups(args.cgroup));
    findings.extend(limits());
    findings
}

fn root() -> Finding {
    if is_root() {
        Finding::ok("root", "running as root")
    } else {
        Finding::error(
            "root",
            "not running as root",
            "run as root: the server makes namespaces, taps and rules",
        )
    }
}

/// Sets up a slot with all that belongs to it, in a namespace made for this and gone afterwards.
fn network() -> Vec<Finding> {
    let namespace = match NetNs::create() {
        Ok(namespace) => namespace,
        Err(error) => {
            let advice = "needs root and a kernel with CONFIG_NET_NS";
            return vec![Finding::error("namespaces", chain(&error), advice)];
        }
    };
    let tried = namespace.run(|| {
        let host = HostNetwork::set_up(None).map(Arc::new).map_err(|error| ("nftables", chain(&error)))?;
        NetSlot::create(&host, 0, 0).and_then(NetSlot::destroy).map_err(|error| ("slot", chain(&error)))
    });
    let mut findings = vec![Finding::ok("namespaces", "network namespaces can be made")];
    findings.push(match tried {
        Ok(Ok(())) => Finding::ok("network", "tap, veth, addresses and nftables rules with NAT can be made"),
        Ok(Err((what, error))) => Finding::error(
            "network",
            format!("{what}: {error}"),
            "needs the kernel modules tun, veth, nf_tables, nf_conntrack and nf_nat (modprobe them), and root",
        ),
        Err(error) => Finding::error("network", chain(&error), "needs root"),
    });
    findings
}

fn egress(setting: &str) -> Finding {
    let interface = match setting {
        "auto" => detect_egress(),
        "none" => None,
        name => Some(name.to_owned()),
    };
    match interface {
        Some(name) if interface_exists(&name) => Finding::ok("egress", name),
        Some(name) => Finding::error(
            "egress",
            format!("no interface {name}"),
            "set MANTA_HOST_IFACE to one that exists, or auto",
        ),
        None => Finding::warning(
            "egress",
            "no default route",
            "sandboxes will reach no network; give the host a default route or set MANTA_HOST_IFACE",
        ),
    }
}

fn artifacts(args: &ServerArgs) -> Vec<Finding> {
    [
        ("kernel", &args.kernel_path, "MANTA_KERNEL_PATH"),
        ("rootfs", &args.rootfs_path, "MANTA_ROOTFS_PATH"),
        ("agent", &args.agent_path, "MANTA_AGENT_PATH"),
    ]
    .into_iter()
    .map(|(check, path, variable)| match fs::metadata(path) {
        Ok(found) => Finding::ok(check, format!("{} ({} MiB)", path.display(), found.len() >> 20)),
        Err(error) => Finding::error(
            check,
            format!("{}: {error}", path.display()),
            format!("build it with `manta image build`, or set {variable}"),
        ),
    })
    .collect()
}

fn work_dir(path: &Path, reserve_mib: u64) -> Vec<Finding> {
    let Some(existing) = existing(path) else {
        return vec![Finding::error(
            "work dir",
            format!("{} has no parent", path.display()),
            "set MANTA_WORK_DIR",
        )];
    };
    let place = match filesystem_of(existing) {
        Ok(found) => format!("{} on {} ({})", path.display(), found.kind, found.device),
        Err(error) => format!("{} ({error})", path.display()),
    };
    let mut findings = vec![match disk::reflink_supported(existing) {
        Ok(true) => Finding::ok("work dir", format!("{place}, clones files by reflink")),
        Ok(false) => Finding::ok("work dir", format!("{place}, no reflink: disks are cloned by sparse copy")),
        Err(error) => Finding::error(
            "work dir",
            format!("{place}: {}", chain(&error)),
            "set MANTA_WORK_DIR to a writable place",
        ),
    }];
    let free = rustix::fs::statvfs(existing).map_or(u64::MAX, |found| found.f_bavail * found.f_frsize);
    if free < reserve_mib << 20 {
        findings.push(Finding::error(
            "disk space",
            format!("{} MiB free at {}, and {reserve_mib} stay free", free >> 20, existing.display()),
            "no sandbox is made before there is room; delete something, or set MANTA_DISK_RESERVE_MIB",
        ));
    } else if free < SMALL_DISK {
        findings.push(Finding::warning(
            "disk space",
            format!("{} MiB free at {}", free >> 20, existing.display()),
            "sandboxes write to their disks here; make room or set MANTA_WORK_DIR",
        ));
    }
    findings
}

/// Whether as many sandboxes fit into the memory as may exist, and the memory into the machine.
fn memory(args: &ServerArgs) -> Finding {
    let (limit, machine, each) =
        (max_memory_mib(args), facts::mem_mib(), manta_engine::sandbox_mib(args.mem_mib));
    let text = format!("{limit} of {machine} MiB for sandboxes of {each}");
    let wanted = args.max_sandboxes.map_or(0, |most| u64::from(most) * each);
    if limit > machine {
        let advice = "MANTA_MAX_MEMORY_MIB overcommits: guests that use all of theirs have each other killed";
        Finding::warning("memory", text, advice)
    } else if wanted > limit {
        let advice = format!(
            "MANTA_MAX_SANDBOXES would take {wanted} MiB, and is not reached; lower it, or MANTA_MEM_MIB, or raise \
             MANTA_MAX_MEMORY_MIB"
        );
        Finding::warning("memory", text, advice)
    } else {
        Finding::ok("memory", text)
    }
}

/// Where clients come in, and whether others could read along.
fn listener(args: &ServerArgs) -> Finding {
    let place = match args.listen_addr {
        ListenAddr::Tcp(address) => address.to_string(),
        ListenAddr::None => "no TCP".to_owned(),
    };
    match (tls(args), in_clear(args)) {
        (Err(error), _) => Finding::error("listener", chain(&error), "the server would not start with it"),
        (Ok(_), Some(what)) => Finding::warning("listener", place, what),
        (Ok(Some(_)), None) => Finding::ok("listener", format!("{place}, with TLS")),
        (Ok(None), None) => Finding::ok("listener", place),
    }
}

/// Sets up a tree of groups as a server would, and removes it.
fn cgroups(setting: CgroupSetting) -> Vec<Finding> {
    if setting == CgroupSetting::Off {
        return vec![Finding::ok("cgroups", "not used, as MANTA_CGROUP=off says")];
    }
    // What every host can give.
    let each = CgroupLimits { memory_bytes: 1 << 30, cpu_percent: 100, processes: 100 };
    let tree = Cgroups::set_up(&format!("manta-doctor-{}", std::process::id()), 100, &each);
    let mut findings: Vec<Finding> = tree
        .missing()
        .iter()
        .map(|missing| {
            let (what, advice) = missing.rsplit_once("; ").unwrap_or((missing, ""));
            match setting {
                CgroupSetting::Required => Finding::error("cgroups", what, advice),
                _ => Finding::warning("cgroups", what, advice),
            }
        })
        .collect();
    if findings.is_empty() {
        let dirs = tree.dirs();
        let parents = dirs.iter().filter_map(|dir| dir.parent());
        let parents: Vec<_> = parents.map(|dir| dir.display().to_string()).collect();
        let text = format!("VMMs' memory, processors and processes are limited, in {}", parents.join(", "));
        findings.push(Finding::ok("cgroups", text));
    }
    if let Err(error) = tree.tear_down() {
        findings.push(Finding::warning("cgroups", chain(&error), "remove it with rmdir"));
    }
    findings
}

fn limits() -> Vec<Finding> {
    [
        ("open files", facts::open_files().hard, OPEN_FILES, "LimitNOFILE= in the unit, or `ulimit -n`"),
        ("processes", facts::processes().hard, PROCESSES, "LimitNPROC= in the unit, or `ulimit -u`"),
    ]
    .into_iter()
    .map(|(check, limit, wanted, how)| match limit {
        Some(limit) if limit < wanted => {
            let advice = format!("raise it to {wanted} for a few hundred sandboxes ({how})");
            Finding::warning(check, format!("at most {limit}"), advice)
        }
        Some(limit) => Finding::ok(check, format!("at most {limit}")),
        None => Finding::ok(check, "unlimited"),
    })
    .collect()
}
