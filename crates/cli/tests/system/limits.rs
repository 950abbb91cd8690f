//! How much callers may have: limits of a key and of the host, whose a sandbox is, and who did what.

use serde_json::{Value, json};

use crate::harness::{Answer, Host, Server, at_once, eventually, scaled};
use crate::keys::key;

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\ncontent-type: application/json\r\n")
}

fn post(server: &Server, key: &str, path: &str, body: &Value) -> Answer {
    server.raw("POST", path, &bearer(key), body.to_string().as_bytes())
}

fn get(server: &Server, key: &str, path: &str) -> Answer {
    server.raw("GET", path, &bearer(key), b"")
}

fn id(created: Answer) -> String {
    created.ok()["sandbox_id"].as_str().expect("an id").to_owned()
}

/// Seconds in `Retry-After`.
fn retry_after(answer: &Answer) -> u64 {
    answer.header("retry-after").and_then(|after| after.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// The value of a line of the metrics.
fn metric(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {text}"))
}

#[test]
fn of_many_creates_at_once_a_key_gets_as_many_sandboxes_as_it_may_have() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "2")]);
    let few = key(&server.work_dir, &["create", "few", "--max-sandboxes", "3"]);
    let any = key(&server.work_dir, &["create", "any"]);
    let answers = at_once(32, 100, |_| post(&server, &few, "/create", &json!({})));
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!((made.len(), refused.len()), (3, 97));
    for answer in refused {
        assert!(retry_after(&answer) >= 1);
        assert!(answer.error(429, "key_sandbox_limit").contains("its 3 sandboxes"));
    }
    let ids: Vec<_> = made.into_iter().map(id).collect();
    // Another key has its own, and what a server without keys has is nobody's.
    let other = id(post(&server, &any, "/create", &json!({})));
    let listed = get(&server, &any, "/sandboxes").ok();
    let owner = |id: &str| {
        let all = listed["sandboxes"].as_array().expect("a list");
        assert_eq!(all.len(), 4, "{listed:#}");
        all.iter().find(|info| info["id"] == id).expect("listed")["owner"].clone()
    };
    assert!(ids.iter().all(|id| owner(id) == "few") && owner(&other) == "any", "{listed:#}");

    // A snapshot is no way around it, and one that is gone makes room for one.
    let snapshot = post(&server, &any, "/snapshot/create", &json!({"sandbox_id": other})).ok();
    let restore = json!({"snapshot_id": snapshot["snapshot_id"]});
    post(&server, &few, "/snapshot/restore", &restore).error(429, "key_sandbox_limit");
    post(&server, &any, "/destroy", &json!({"sandbox_id": ids[0]})).ok();
    id(post(&server, &few, "/snapshot/restore", &restore));
    post(&server, &few, "/create", &json!({})).error(429, "key_sandbox_limit");

    let metrics = get(&server, &any, "/metrics").text;
    assert_eq!(metric(&metrics, "manta_rejections_total{code=\"key_sandbox_limit\"}"), 99);
    assert!(metric(&metrics, "manta_memory_committed_bytes") >= (4 * 256) << 20, "{metrics}");
    // What was refused has left nothing: not one sandbox was begun for it.
    let events = get(&server, &any, "/events").text;
    let begun =
        events.lines().filter(|line| line.contains("\"created\"") && line.contains("\"few\"")).count();
    assert_eq!(begun, 4, "{events}");
}

#[test]
fn a_key_makes_sandboxes_as_fast_as_it_may() {
    let _host = Host::enter();
    let server = Server::start();
    let slow = key(&server.work_dir, &["create", "slow", "--creates-per-s", "0.01:2"]);
    let listed = key(&server.work_dir, &["list"]);
    assert!(listed.contains("0.01:2"), "{listed}");
    for _ in 0..2 {
        let made = id(post(&server, &slow, "/create", &json!({})));
        post(&server, &slow, "/destroy", &json!({"sandbox_id": made})).ok();
    }
    let refused = post(&server, &slow, "/create", &json!({}));
    // One each 100 s, and some of them have passed.
    assert!((2..=100).contains(&retry_after(&refused)), "{refused:?}");
    refused.error(429, "key_rate_limit");
    // Commands and everything else go on.
    get(&server, &slow, "/sandboxes").ok();
}

#[test]
fn what_the_host_has_no_room_for_is_not_begun() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_MAX_MEMORY_MIB", "700"), ("MANTA_WARM_POOL_SIZE", "4")]);
    let made = [server.create(), server.create()];
    let refused = server.raw("POST", "/create", "", b"");
    assert!(retry_after(&refused) >= 1);
    // Two of 256 MiB, each with 48 for its VMM. By default there are as many places as fit, and they go first.
    assert_eq!(server.get("/healthz")["max_sandboxes"], 2);
    refused.error(503, "host_full");
    eventually("nobody waits in a full host", scaled(20), || server.vmms().len() == 2);
    drop(server);
    drop(made);

    let settings = [("MANTA_MAX_MEMORY_MIB", "700"), ("MANTA_MAX_SANDBOXES", "9")];
    let server = Server::with(&settings);
    let made = server.create();
    server.create();
    let refused = server.raw("POST", "/create", "", b"");
    assert!(retry_after(&refused) >= 1);
    assert!(refused.error(503, "host_memory_full").contains("608 of 700 MiB"));
    assert_eq!(server.vmms().len(), 2);
    server.destroy(&made).ok();
    let snapshot = server.snapshot(&server.create());

    // A reserve that no disk has.
    let server = Server::in_dir(server.end(), &[("MANTA_DISK_RESERVE_MIB", "1000000000")]);
    assert_eq!(server.get("/healthz")["status"], "ok", "the server serves");
    let refused = [server.raw("POST", "/create", "", b""), server.try_restore(&snapshot)];
    for answer in refused {
        assert!(retry_after(&answer) >= 1);
        answer.error(503, "host_disk_full");
    }
    assert_eq!((server.vmms(), server.sandbox_dirs()), (Vec::new(), 0));
    let metrics = server.raw("GET", "/metrics", "", b"").text;
    assert_eq!(metric(&metrics, "manta_rejections_total{code=\"host_disk_full\"}"), 2);
}

#[test]
fn events_tell_who_caused_them() {
    let _host = Host::enter();
    let server = Server::start();
    let nobodys = server.create();
    let [ann, bob] = ["ann", "bob"].map(|name| key(&server.work_dir, &["create", name]));
    let made = id(post(&server, &ann, "/create", &json!({})));
    post(&server, &bob, "/exec", &json!({"sandbox_id": made, "cmd": "true"})).ok();
    post(&server, &bob, "/snapshot/create", &json!({"sandbox_id": made})).ok();
    post(&server, &bob, "/destroy", &json!({"sandbox_id": made})).ok();
    let passing = id(post(&server, &ann, "/create", &json!({"timeout_s": 1})));
    let who = |id: &str| -> Vec<(String, String)> {
        let text = get(&server, &ann, &format!("/events?sandbox_id={id}")).text;
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let events = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let word = |value: &Value| value.as_str().unwrap_or("nobody").to_owned();
        events.map(|event| (word(&event["event"]), word(&event["who"]))).collect()
    };
    let pairs = |of: &[(&str, &str)]| -> Vec<(String, String)> {
        of.iter().map(|(event, who)| ((*event).to_owned(), (*who).to_owned())).collect()
    };
    let expected =
        [("created", "ann"), ("ready", "ann"), ("exec", "bob"), ("snapshot", "bob"), ("destroyed", "bob")];
    assert_eq!(who(&made), pairs(&expected));
    let expected = [("created", "ann"), ("ready", "ann"), ("expired", "server"), ("destroyed", "server")];
    eventually("it expires", scaled(20), || who(&passing) == pairs(&expected));
    assert_eq!(who(&nobodys), pairs(&[("created", "nobody"), ("ready", "nobody")]));
    let info = get(&server, &ann, &format!("/sandboxes/{nobodys}")).ok();
    assert!(info.get("owner").is_none(), "{info:#}");
}
