//! The server is killed at each of its failpoints, one after the other, and the next one finds nothing lost and nothing
//! left. One sandbox lives through all of it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Host, Server, binary, entries, eventually, kill, scaled};

/// Slots that wait would hide those that are left.
const BARE: (&str, &str) = ("MANTA_NETNS_POOL_SIZE", "0");
const ONE_WAITS: (&str, &str) = ("MANTA_WARM_POOL_SIZE", "1");
const BOOT: (&str, &str) = ("MANTA_ENABLE_SNAPSHOTS", "0");

/// All steps, as the binary under test names them.
fn failpoints() -> Vec<String> {
    let listed = Command::new(binary()).arg("failpoints").output().expect("run the binary");
    let listed = String::from_utf8(listed.stdout).expect("text");
    listed.lines().map(str::to_owned).collect()
}

/// One sandbox that must never be lost, on one host.
struct Ground<'a> {
    host: &'a Host,
    kept: String,
}

impl Ground<'_> {
    /// What is true of every server that has taken over, whenever the one before was killed.
    fn check(&self, server: &Server, waiting: usize, killed_at: &str) {
        assert_eq!(server.stdout(&self.kept, "cat /root/kept /dev/shm/kept"), "disk\nmemory", "{killed_at}");
        // One that was handed out to nobody is whole, or it is not there.
        let depth = || server.get("/healthz")["pools"]["warm"]["depth"].as_u64().expect("a number");
        let sandboxes = || server.get("/sandboxes")["sandboxes"].as_array().expect("a list").clone();
        eventually("nothing is on its way", scaled(60), || {
            sandboxes().iter().all(|info| info["state"] == "running") && depth() == waiting as u64
        });
        for info in sandboxes() {
            let id = info["id"].as_str().expect("an id");
            if id == self.kept {
                continue;
            }
            assert_eq!(server.stdout(id, "hostname"), id, "{killed_at}");
            server.destroy(id).ok();
        }
        let count = 1 + waiting;
        // Sandboxes by their processes, directories, cgroups, links, addresses let out, and entries in the journal.
        let left = || {
            let links = self.host.links().iter().filter(|link| link.starts_with("mt-")).count();
            let ruleset = self.host.ruleset();
            let names = ruleset.split("\"mt-").skip(1);
            let admitted =
                names.filter(|rest| rest.starts_with(|first: char| first.is_ascii_digit())).count();
            // None at all where the host has none.
            let dirs = server.cgroups();
            let names = dirs.iter().filter_map(|dir| dir.file_name()?.to_str()?.strip_prefix("sb-"));
            let groups = if dirs.is_empty() { count } else { names.collect::<BTreeSet<_>>().len() };
            [server.vmms().len(), server.sandbox_dirs(), groups, links, admitted, rows(server)]
        };
        let end = Instant::now() + scaled(30);
        while left() != [count; 6] {
            assert!(
                Instant::now() < end,
                "left after a kill at {killed_at}: {:?}, not {count} of each:\n{}",
                left(),
                self.host.ruleset()
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
        for snapshot in server.snapshots() {
            let id = snapshot["id"].as_str().expect("an id");
            assert_eq!(snapshot["restorable"], true, "{killed_at}: {snapshot:#}");
            let clone = server.restore(id);
            assert_eq!(server.stdout(&clone, "cat /root/kept"), "disk", "{killed_at}");
            server.destroy(&clone).ok();
            server.delete_snapshot(id).ok();
        }
        assert_eq!(entries(&server.snapshots_dir()), [""; 0], "{killed_at}");
    }

    /// Has a server kill itself at this step; returns its directory. `killed_at` is where the one before was killed.
    fn kill_at(&self, point: &str, dir: TempDir, killed_at: &str) -> TempDir {
        let limit = scaled(60);
        let (group, _) = point.split_once('.').expect("a group and a step");
        // The golden snapshot is tried at the start: a sandbox that is restored, and destroyed.
        let nth = if ["restore", "destroy"].contains(&group) { 2 } else { 1 };
        let failpoint = format!("{point}:{nth}");
        let failpoint = ("MANTA_FAILPOINT", failpoint.as_str());
        let start = |settings: &[(&str, &str)], dir| {
            let server = Server::in_dir(dir, settings);
            self.check(&server, usize::from(settings.contains(&ONE_WAITS)), killed_at);
            server
        };
        match group {
            // Reached while the server starts: with something left to take back, and to remove.
            "refill" | "recover" => {
                let before = start(&[BARE, ONE_WAITS], dir).kill();
                Server::doomed(before, &[BARE, ONE_WAITS, failpoint], limit)
            }
            "boot" | "restore" | "claim" => {
                let way = match group {
                    "boot" => BOOT,
                    "claim" => ONE_WAITS,
                    _ => ("MANTA_WARM_POOL_SIZE", "0"),
                };
                let server = start(&[BARE, way, failpoint], dir);
                let _creating = server.begin("/create", &json!({}));
                server.died(limit)
            }
            "snapshot" => {
                let server = start(&[BARE, failpoint], dir);
                let _saving = server.begin("/snapshot/create", &json!({"sandbox_id": self.kept}));
                server.died(limit)
            }
            "delete" => {
                // What looks around deletes the snapshots that it finds.
                let server = Server::in_dir(start(&[BARE], dir).kill(), &[BARE, failpoint]);
                let snapshot = server.snapshot(&self.kept);
                let _deleting = server.begin("/snapshot/delete", &json!({"snapshot_id": snapshot}));
                server.died(limit)
            }
            "destroy" => {
                let server = start(&[BARE, failpoint], dir);
                let victim = server.create();
                let _destroying = server.begin("/destroy", &json!({"sandbox_id": victim}));
                let dir = server.died(limit);
                let next = Server::in_dir(dir, &[BARE]);
                let message =
                    next.raw("GET", &format!("/sandboxes/{victim}"), "", b"").error(404, "sandbox_not_found");
                assert!(message.contains("destroyed by request"), "{point}: {message}");
                next.kill()
            }
            "crash" => {
                let server = start(&[BARE, failpoint], dir);
                let victim = server.create();
                kill(server.vmm_of(&victim));
                let next = Server::in_dir(server.died(limit), &[BARE]);
                let message =
                    next.raw("GET", &format!("/sandboxes/{victim}"), "", b"").error(404, "sandbox_not_found");
                let told = if point == "crash.noticed" { "was lost" } else { "crashed" };
                assert!(message.contains(told), "{point}: {message}");
                next.kill()
            }
            _ => panic!("nothing here reaches {point}"),
        }
    }
}

/// Sandboxes in the journal.
fn rows(server: &Server) -> usize {
    let path = server.work_dir.join("journal.db");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let journal = rusqlite::Connection::open_with_flags(path, flags).expect("open the journal");
    journal.query_row("SELECT count(*) FROM sandboxes", [], |row| row.get(0)).expect("count")
}

fn mounts() -> BTreeSet<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    mounts.lines().map(str::to_owned).collect()
}

#[test]
fn nothing_is_lost_and_nothing_left_wherever_the_server_is_killed() {
    let host = Host::enter();
    let (links, mounts_before, began) = (host.links(), mounts(), Instant::now());
    let first = Server::with(&[BARE]);
    let kept = first.create();
    first.stdout(&kept, "echo disk > /root/kept; echo memory > /dev/shm/kept");
    let ground = Ground { host: &host, kept };
    let mut dir = first.kill();
    let mut killed_at = "no step".to_owned();
    for point in failpoints() {
        dir = ground.kill_at(&point, dir, &killed_at);
        eprintln!("{:6.1} s: {point}", began.elapsed().as_secs_f64());
        killed_at = point;
    }
    let mut last = Server::in_dir(dir, &[BARE]);
    ground.check(&last, 0, &killed_at);
    last.stop();
    assert_eq!(last.vmms(), [0u32; 0]);
    assert_eq!(last.sandbox_dirs(), 0);
    assert_eq!((host.links(), host.ruleset().trim()), (links, ""));
    assert_eq!(mounts(), mounts_before);
}

#[test]
fn what_a_killed_server_had_made_for_itself_is_removed() {
    let host = Host::enter();
    let dir = Server::with(&[BARE]).kill();
    // The trial of the golden snapshot.
    let dir = Server::doomed(dir, &[BARE, ("MANTA_FAILPOINT", "restore.ready")], scaled(60));
    let server = Server::in_dir(dir, &[BARE]);
    assert_eq!(server.get("/sandboxes")["sandboxes"], json!([]));
    eventually("nothing is left", scaled(20), || {
        server.vmms().is_empty() && server.sandbox_dirs() == 0 && rows(&server) == 0
    });
    drop((server, host));
}

#[test]
fn a_step_that_does_not_exist_stops_the_start() {
    let _host = Host::enter();
    let log = Server::try_with(&[("MANTA_FAILPOINT", "no.step")]).err().expect("it must not start");
    assert!(log.contains("MANTA_FAILPOINT") && log.contains("no.step"), "{log}");
}
