//! What a client can get wrong, each with its own answer.

use serde_json::json;

use crate::harness::{Host, Server};

const UNKNOWN: &str = "sb-00000000000000000000";

#[test]
fn malformed_requests_are_told_what_is_wrong() {
    let _host = Host::enter();
    let server = Server::start();
    let exec = |body: serde_json::Value| server.post("/exec", &body).error(400, "bad_request");

    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": "true", "colour": 1})).contains("colour"));
    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": 7})).contains("string"));
    assert!(exec(json!({"sandbox_id": UNKNOWN})).contains("cmd"));
    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": "a", "argv": ["a"]})).contains("not both"));
    assert!(exec(json!({"sandbox_id": UNKNOWN, "argv": []})).contains("argv"));
    assert!(
        exec(json!({"sandbox_id": UNKNOWN, "argv": ["a"], "use_shell": true})).contains("without a shell")
    );
    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": "a\u{0}b"})).contains("NUL"));
    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": "a", "env": {"A=B": "c"}})).contains("A=B"));
    assert!(exec(json!({"sandbox_id": UNKNOWN, "cmd": "a", "timeout_ms": 0})).contains("timeout_ms"));
    for odd in [
        "",
        "../etc",
        "sb-0123",
        "SB-00000000000000000000",
        "sb-0000000000000000000g",
        "sb-/etc/passwd0000000",
    ] {
        assert!(exec(json!({"sandbox_id": odd, "cmd": "a"})).contains("not a sandbox id"), "{odd}");
        server.post("/destroy", &json!({"sandbox_id": odd})).error(400, "bad_request");
    }

    let json_type = "content-type: application/json\r\n";
    assert!(server.raw("POST", "/exec", json_type, b"").error(400, "bad_request").contains("no body"));
    assert!(server.raw("POST", "/exec", json_type, b"{\"cmd\":").error(400, "bad_request").contains("EOF"));
    server.raw("POST", "/exec", "content-type: text/plain\r\n", b"{}").error(415, "unsupported_media_type");
    server.post("/create", &json!({"vcpus": 4})).error(400, "bad_request");
    // serde would take an array for an object, its elements in the order of the fields.
    assert!(server.post("/create", &json!([])).error(400, "bad_request").contains("object"));
    assert!(server.post("/destroy", &json!([UNKNOWN])).error(400, "bad_request").contains("object"));
    let huge = format!("{{\"cmd\": \"{}\"}}", "x".repeat(9 << 20));
    server.raw("POST", "/exec", json_type, huge.as_bytes()).error(413, "body_too_large");
    server.raw("GET", "/no-such-route", "", b"").error(404, "not_found");
    server.raw("GET", "/create", "", b"").error(405, "method_not_allowed");

    server.post("/exec", &json!({"sandbox_id": UNKNOWN, "cmd": "true"})).error(404, "sandbox_not_found");
    server.post("/destroy", &json!({"sandbox_id": UNKNOWN})).error(404, "sandbox_not_found");
    assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));
}

#[test]
fn a_command_longer_than_linux_takes_is_refused_and_the_sandbox_goes_on() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let long = format!("echo {}", "x".repeat(140_000));
    let ran = server.sh(&id, &long);
    assert_eq!(ran["exit_code"], 126, "over the 128 KiB that Linux takes for one argument");
    let longer = format!("echo {}", "x".repeat(1 << 20));
    server.post("/exec", &json!({"sandbox_id": id, "cmd": longer})).error(400, "bad_request");
    assert_eq!(server.stdout(&id, "echo fine"), "fine");
}

#[test]
fn a_full_host_says_when_to_come_back() {
    let _host = Host::enter();
    let server = Server::with(&[("MANTA_MAX_SANDBOXES", "1")]);
    let id = server.create();
    let answer = server.raw("POST", "/create", "", b"");
    assert!(answer.headers.contains("retry-after: 1"), "{}", answer.headers);
    assert!(answer.error(503, "host_full").contains("1 sandboxes"));
    server.destroy(&id).ok();
    server.create();
}

#[test]
fn a_setting_that_does_not_parse_stops_the_start_and_is_named() {
    let _host = Host::enter();
    for (name, value) in [
        ("MANTA_VCPUS", "many"),
        ("MANTA_LISTEN_ADDR", "localhost"),
        ("MANTA_HEADER_TIMEOUT", "0s"),
        ("MANTA_MAX_CONNECTIONS", "0"),
        ("MANTA_MEM_MIB", "1"),
        ("MANTA_EXEC_TIMEOUT", "5"),
        ("MANTA_VMM", "xen"),
        ("MANTA_HOST_IFACE", "no-such-if"),
        ("MANTA_ENABLE_SNAPSHOTS", "maybe"),
        ("MANTA_MAX_SNAPSHOTS", "-1"),
        ("MANTA_DNS", "example"),
        ("MANTA_LOG_FORMAT", "xml"),
        ("MANTA_ROOTFS_CLONE_MODE", "hope"),
    ] {
        let refused = Server::try_with(&[(name, value)]).err();
        let log = refused.unwrap_or_else(|| panic!("{name}={value} was accepted"));
        assert!(log.contains(name), "{name} is not named in:\n{log}");
    }
}
