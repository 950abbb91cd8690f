//! Sandboxes that end by themselves, and what is known of one that exists, or did.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::harness::{Answer, Host, Server, eventually, kill, scaled};

fn one(server: &Server, id: &str) -> Answer {
    server.raw("GET", &format!("/sandboxes/{id}"), "", b"")
}

fn create(server: &Server, timeout_s: u64) -> String {
    let created = server.post("/create", &json!({"timeout_s": timeout_s})).ok();
    created["sandbox_id"].as_str().expect("a sandbox id").to_owned()
}

fn extend(server: &Server, id: &str, timeout_s: u64) -> Answer {
    server.post(&format!("/sandboxes/{id}/extend"), &json!({"timeout_s": timeout_s}))
}

/// Waits until it is gone, and checks that everybody who asks is told why.
fn expires(server: &Server, id: &str) {
    eventually("the sandbox expires", scaled(30), || one(server, id).status == 404);
    let answers = [
        one(server, id),
        extend(server, id, 1),
        server.post("/exec", &json!({"sandbox_id": id, "cmd": "true"})),
        server.post("/snapshot/create", &json!({"sandbox_id": id})),
    ];
    for answer in answers {
        let message = answer.error(404, "sandbox_not_found");
        assert!(message.contains("expired"), "{message}");
    }
}

/// Seconds left to it, as the server says.
fn left(info: &Value) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    info["expires_unix_s"].as_i64().expect("a time") - i64::try_from(now).expect("a time")
}

#[test]
fn a_sandbox_that_expires_is_destroyed_and_its_commands_say_so() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_DESTROY_DRAIN", "100ms")]);
    // In this order: the second has little time.
    let (other, id) = (server.create(), create(&server, 3));
    assert!((1..=3).contains(&left(&one(&server, &id).ok())));
    let exec = server.post("/exec", &json!({"sandbox_id": id, "cmd": "echo begun; sleep 300"}));
    assert_eq!(exec.body["stdout"], "begun\n");
    exec.error(409, "sandbox_destroyed");
    expires(&server, &id);
    server.destroy(&id).ok();
    let info = one(&server, &other).ok();
    assert_eq!((info.get("expires_unix_s"), server.info(&other)), (None, Some(info.clone())));
    server.destroy(&other).ok();
    assert_eq!(server.vmms(), [0u32; 0]);
    assert_eq!(server.sandbox_dirs(), 0);
}

#[test]
fn a_lifetime_is_set_anew_by_an_extension_to_more_or_to_less() {
    let _host = Host::enter();
    let server = Server::start();
    let (shortened, extended) = (server.create(), create(&server, 2));
    assert!((998..=1000).contains(&left(&extend(&server, &extended, 1000).ok())));
    let later = create(&server, 2);
    expires(&server, &later);
    assert_eq!(server.stdout(&extended, "echo alive"), "alive", "its first lifetime is over");
    assert!(extend(&server, &shortened, 1).ok()["expires_unix_s"].is_u64());
    expires(&server, &shortened);
    let zero = extend(&server, &extended, 0).error(400, "bad_request");
    assert!(zero.contains("1 to 31536000"), "{zero}");
}

#[test]
fn the_servers_default_and_maximum_hold_for_creates_and_restores() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_SANDBOX_TIMEOUT", "2s"), ("MANTA_SANDBOX_TIMEOUT_MAX", "1m")]);
    let (default, kept) = (server.create(), create(&server, 60));
    let snapshot = server.snapshot(&kept);
    for timeout_s in [0, 61, u64::MAX] {
        let restore = json!({"snapshot_id": snapshot, "timeout_s": timeout_s});
        let answers = [
            server.post("/create", &json!({"timeout_s": timeout_s})),
            server.post("/snapshot/restore", &restore),
            extend(&server, &kept, timeout_s),
        ];
        for answer in answers {
            let message = answer.error(400, "bad_request");
            assert!(message.contains("timeout_s must be 1 to 60"), "{message}");
        }
    }
    server.post("/create", &json!({"timeout_s": -1})).error(400, "bad_request");
    expires(&server, &default);
    let (short, restored) = (server.restore(&snapshot), json!({"snapshot_id": snapshot, "timeout_s": 50}));
    let long = server.post("/snapshot/restore", &restored).ok()["sandbox_id"].clone();
    let long = one(&server, long.as_str().expect("an id")).ok();
    assert!((48..=50).contains(&left(&long)), "{long}");
    expires(&server, &short);
    drop(server);

    let settings = [("MANTA_SANDBOX_TIMEOUT", "2m"), ("MANTA_SANDBOX_TIMEOUT_MAX", "1m")];
    let log = Server::try_with(&settings).err().expect("a default beyond the maximum");
    assert!(log.contains("MANTA_SANDBOX_TIMEOUT is longer"), "{log}");
}

#[test]
fn a_lifetime_begins_when_a_sandbox_that_waited_is_claimed() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_WARM_POOL_SIZE", "1"), ("MANTA_SANDBOX_TIMEOUT", "3s")]);
    let other = create(&server, 1000);
    eventually("one waits", scaled(40), || server.get("/healthz")["pools"]["warm"]["depth"] == 1);
    // Longer than its lifetime will be.
    server.stdout(&other, "sleep 4");
    let began = Instant::now();
    let id = server.create();
    assert_eq!(server.get("/healthz")["pools"]["warm"]["hits"].as_u64(), Some(1));
    expires(&server, &id);
    assert!(began.elapsed() >= Duration::from_secs(3), "after {:?}", began.elapsed());
}

#[test]
fn one_sandbox_is_shown_and_when_it_is_gone_the_reason() {
    let _host = Host::enter();
    let server = Server::start();
    let (destroyed, crashed) = (server.create(), server.create());
    let info = one(&server, &crashed).ok();
    assert_eq!((&info["id"], &info["state"]), (&json!(crashed), &json!("running")));
    server.destroy(&destroyed).ok();
    let message = one(&server, &destroyed).error(404, "sandbox_not_found");
    assert!(message.contains("by request"), "{message}");

    kill(server.vmm_of(&crashed));
    eventually("it failed", scaled(20), || one(&server, &crashed).ok()["state"] == "failed");
    let failed = one(&server, &crashed).ok();
    assert!(failed["reason"].as_str().expect("a reason").contains("VMM"), "{failed}");
    extend(&server, &crashed, 9).error(409, "sandbox_not_running");
    server.destroy(&crashed).ok();
    let message = one(&server, &crashed).error(404, "sandbox_not_found");
    assert!(message.contains("crashed") && message.contains("VMM"), "{message}");

    let unknown = "sb-00000000000000000000";
    let message = one(&server, unknown).error(404, "sandbox_not_found");
    assert!(!message.contains("any more"), "{message}");
    extend(&server, unknown, 9).error(404, "sandbox_not_found");
    assert!(one(&server, "sb-0").error(400, "bad_request").contains("not a sandbox id"));
    let bodyless = format!("/sandboxes/{unknown}/extend");
    assert!(server.raw("POST", &bodyless, "", b"").error(400, "bad_request").contains("no body"));
}

#[test]
fn one_that_crashed_is_removed_when_its_lifetime_ends() {
    let _host = Host::enter();
    let server = Server::start();
    let id = create(&server, 4);
    kill(server.vmm_of(&id));
    eventually("it is gone", scaled(30), || server.info(&id).is_none());
    let message = one(&server, &id).error(404, "sandbox_not_found");
    assert!(message.contains("crashed"), "{message}");
}
