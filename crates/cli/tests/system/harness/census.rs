//! What a server has of the machine, counted, to be compared with itself later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{Host, Server};

/// How many there are of each kind.
pub(crate) type Census = BTreeMap<&'static str, usize>;

/// Counts all that a server may have of its host, and holds itself.
pub(crate) fn census(server: &Server, host: &Host) -> Census {
    let links = host.links();
    let ruleset = host.ruleset();
    let vmms = server.vmms();
    // Slots that come back wait, some more or some fewer; each is a namespace that the server holds, a link and an element.
    let waiting = server.get("/healthz")["pools"]["slots"]["depth"].as_u64().expect("a depth");
    let beside_waiting = |count: usize| count.saturating_sub(usize::try_from(waiting).expect("few"));
    let elements = links.iter().filter(|link| link.starts_with("mt-") && ruleset.contains(link.as_str()));
    Census::from([
        ("VMMs", vmms.len()),
        ("network namespaces", beside_waiting(namespaces(server, &vmms))),
        ("links", beside_waiting(links.len())),
        ("nft elements", beside_waiting(elements.count())),
        ("cgroups", server.cgroups().len()),
        ("mounts", mounts(&server.work_dir)),
        ("files", files(&server.work_dir)),
        ("descriptors", beside_waiting(server.descriptors())),
        ("threads", server.status("Threads")),
    ])
}

/// Those that the server and its VMMs are in or hold.
fn namespaces(server: &Server, vmms: &[u32]) -> usize {
    let held = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("its descriptors").flatten();
    let held = held.map(|entry| entry.path());
    let used = vmms.iter().map(|pid| format!("/proc/{pid}/ns/net").into());
    let links = held.chain(used).filter_map(|path| fs::read_link(path).ok());
    let names = links.map(|link| link.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("net:[")).collect::<BTreeSet<_>>().len()
}

fn mounts(work_dir: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    mounts.lines().filter(|line| line.contains(&*work_dir.to_string_lossy())).count()
}

/// Below `dir`, but for those that a journal makes and removes as it likes.
fn files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| !entry.file_name().to_string_lossy().contains("journal"));
    let below = |path: &Path| if path.is_dir() && !path.is_symlink() { files(path) } else { 0 };
    entries.map(|entry| 1 + below(&entry.path())).sum()
}
