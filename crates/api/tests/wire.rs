//! Bodies as they are on the wire: what clients of the original send and read, and what is refused.

#![expect(clippy::unwrap_used, reason = "Clippy's exemption for tests does not reach their helpers")]

use manta_api::{
    CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, DestroyStatus, ErrorBody, ErrorCode,
    Event, EventKind, ExecRequest, ExecResponse, ExtendRequest, OutputEncoding, SandboxInfo, SandboxState,
    SnapshotBytes, SnapshotCreateRequest, SnapshotCreateResponse, SnapshotDeleteRequest,
    SnapshotDeleteResponse, SnapshotDeleteStatus, SnapshotInfo, SnapshotList, SnapshotRestoreRequest,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json, to_value};

const ID: &str = "sb-0123456789abcdef0123";
const SNAPSHOT: &str = "snap-0123456789abcdef0123";

/// A body of exactly this shape, in both directions.
fn exact<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(body: &T, shape: Value) {
    assert_eq!(to_value(body).unwrap(), shape);
    assert_eq!(&from_value::<T>(shape).unwrap(), body);
}

fn exec(shape: Value) -> Result<ExecRequest, String> {
    from_value(shape).map_err(|error| error.to_string())
}

#[test]
fn bodies_have_the_originals_shapes() {
    exact(&CreateRequest::default(), json!({}));
    exact(&CreateRequest { timeout_s: Some(90) }, json!({"timeout_s": 90}));
    exact(&ExtendRequest { timeout_s: 90 }, json!({"timeout_s": 90}));
    exact(&CreateResponse { sandbox_id: ID.parse().unwrap() }, json!({"sandbox_id": ID}));
    exact(&DestroyRequest { sandbox_id: ID.parse().unwrap() }, json!({"sandbox_id": ID}));
    exact(
        &DestroyResponse { sandbox_id: ID.parse().unwrap(), status: DestroyStatus::Destroyed },
        json!({"sandbox_id": ID, "status": "destroyed"}),
    );
}

#[test]
fn bodies_of_snapshots_have_the_originals_shapes() {
    let (sandbox_id, snapshot_id) = (ID.parse().unwrap(), SNAPSHOT.parse().unwrap());
    let create = SnapshotCreateRequest { sandbox_id, name: None };
    exact(&create, json!({"sandbox_id": ID}));
    exact(
        &SnapshotCreateRequest { name: Some("ready".to_owned()), ..create },
        json!({"sandbox_id": ID, "name": "ready"}),
    );
    let created = SnapshotCreateResponse { snapshot_id, pause_us: 1500 };
    exact(&created, json!({"snapshot_id": SNAPSHOT, "pause_us": 1500}));
    let short: SnapshotCreateResponse = from_value(json!({"snapshot_id": SNAPSHOT, "later": 1})).unwrap();
    assert_eq!(short.pause_us, 0, "the original does not say");
    let snapshot_id = created.snapshot_id;
    let restore = SnapshotRestoreRequest { snapshot_id: snapshot_id.clone(), timeout_s: None };
    exact(&restore, json!({"snapshot_id": SNAPSHOT}));
    exact(
        &SnapshotRestoreRequest { timeout_s: Some(90), ..restore },
        json!({"snapshot_id": SNAPSHOT, "timeout_s": 90}),
    );
    exact(&SnapshotDeleteRequest { snapshot_id: snapshot_id.clone() }, json!({"snapshot_id": SNAPSHOT}));
    exact(
        &SnapshotDeleteResponse { snapshot_id, status: SnapshotDeleteStatus::Deleted },
        json!({"snapshot_id": SNAPSHOT, "status": "deleted"}),
    );
}

#[test]
fn a_snapshot_in_the_list_shows_only_what_there_is() {
    let info = SnapshotInfo {
        id: SNAPSHOT.parse().unwrap(),
        name: None,
        created_unix_ms: 1_795_435_200_123,
        sandbox_id: ID.parse().unwrap(),
        vmm: "qemu".to_owned(),
        vmm_version: "10.0.2".to_owned(),
        vcpus: 1,
        mem_mib: 256,
        disk_bytes: SnapshotBytes { state: 1, memory: 2, disk: 4 },
        restorable: true,
        reason: None,
    };
    let mut shape = json!({"id": SNAPSHOT, "created_unix_ms": 1_795_435_200_123_u64, "sandbox_id": ID,
        "vmm": "qemu", "vmm_version": "10.0.2", "vcpus": 1, "mem_mib": 256,
        "disk_bytes": {"state": 1, "memory": 2, "disk": 4}, "restorable": true});
    exact(&SnapshotList { snapshots: vec![info.clone()] }, json!({"snapshots": [shape]}));
    let (name, reason) = (Some("ready".to_owned()), Some("another kernel".to_owned()));
    shape["name"] = json!("ready");
    shape["reason"] = json!("another kernel");
    exact(&SnapshotInfo { name, reason, ..info }, shape);
}

#[test]
fn an_exec_needs_no_more_than_the_original_asks_for() {
    let line = exec(json!({"sandbox_id": ID, "cmd": "echo hi"})).unwrap();
    assert_eq!(
        (line.cmd.as_deref(), line.argv.as_ref(), line.encoding),
        (Some("echo hi"), None, OutputEncoding::Utf8)
    );
    exact(&line, json!({"sandbox_id": ID, "cmd": "echo hi"}));
    let program =
        exec(json!({"sandbox_id": ID, "argv": ["ls", "-l"], "use_shell": false, "timeout_ms": 5})).unwrap();
    exact(&program, json!({"sandbox_id": ID, "argv": ["ls", "-l"], "use_shell": false, "timeout_ms": 5}));
}

#[test]
fn requests_with_anything_odd_in_them_are_refused_by_name() {
    for (shape, named) in [
        (json!({"cmd": "x"}), "missing field `sandbox_id`"),
        (json!({"sandbox_id": ID, "cmd": "x", "cmdd": "y"}), "unknown field `cmdd`"),
        (json!({"sandbox_id": "../x", "cmd": "x"}), "not a sandbox id"),
        (json!({"sandbox_id": ID, "cmd": 7}), "expected a string"),
        (json!({"sandbox_id": ID, "argv": "ls"}), "expected a sequence"),
        (json!({"sandbox_id": ID, "cmd": "x", "timeout_ms": -1}), "expected u64"),
        (json!({"sandbox_id": ID, "cmd": "x", "timeout_ms": 1.5}), "expected u64"),
        (json!({"sandbox_id": ID, "cmd": "x", "encoding": "latin1"}), "unknown variant `latin1`"),
        (json!({"sandbox_id": ID, "cmd": "x", "env": ["A=1"]}), "expected a map"),
    ] {
        let error = exec(shape.clone()).unwrap_err();
        assert!(error.contains(named), "{shape}: {error}");
    }
    assert!(from_value::<CreateRequest>(json!({"mem_mib": 1})).is_err());
    assert!(from_value::<DestroyRequest>(json!({"sandbox_id": ID, "force": true})).is_err());
    assert!(from_value::<SnapshotCreateRequest>(json!({"sandbox_id": ID, "names": "x"})).is_err());
    assert!(from_value::<SnapshotRestoreRequest>(json!({"snapshot_id": ID})).is_err());
    assert!(from_value::<SnapshotRestoreRequest>(json!({"snapshot_id": SNAPSHOT, "mem_mib": 1})).is_err());
    assert!(from_value::<SnapshotDeleteRequest>(json!({"snapshot_id": SNAPSHOT, "force": true})).is_err());
}

#[test]
fn an_answer_of_an_exec_is_readable_with_and_without_what_the_original_lacks() {
    let short: ExecResponse = from_value(json!({"stdout": "a", "stderr": "b", "exit_code": 137})).unwrap();
    exact(
        &short,
        json!({"stdout": "a", "stderr": "b", "exit_code": 137,
            "stdout_truncated": false, "stderr_truncated": false, "duration_us": 0}),
    );
    assert!(
        from_value::<ExecResponse>(json!({"stdout": "", "stderr": "", "exit_code": 0, "later": 1})).is_ok()
    );
}

#[test]
fn errors_are_text_and_code_and_output_only_where_there_is_some() {
    let error = |stdout| ErrorBody {
        error: "no".to_owned(),
        code: ErrorCode::ExecTimeout,
        stdout,
        stderr: None,
        stdout_truncated: None,
        stderr_truncated: None,
    };
    exact(&error(None), json!({"error": "no", "code": "exec_timeout"}));
    exact(
        &error(Some("so far".to_owned())),
        json!({"error": "no", "code": "exec_timeout", "stdout": "so far"}),
    );
}

#[test]
fn codes_and_their_statuses_are_stable() {
    let codes = [
        ("bad_request", 400),
        ("unauthorized", 401),
        ("forbidden", 403),
        ("not_found", 404),
        ("method_not_allowed", 405),
        ("sandbox_not_found", 404),
        ("sandbox_not_running", 409),
        ("sandbox_destroyed", 409),
        ("body_timeout", 408),
        ("body_too_large", 413),
        ("unsupported_media_type", 415),
        ("host_full", 503),
        ("host_memory_full", 503),
        ("host_disk_full", 503),
        ("key_sandbox_limit", 429),
        ("key_rate_limit", 429),
        ("overloaded", 503),
        ("sandbox_busy", 503),
        ("shutting_down", 503),
        ("journal_unwritable", 503),
        ("boot_failed", 502),
        ("guest_gone", 502),
        ("guest_timeout", 504),
        ("exec_timeout", 504),
        ("snapshot_not_found", 404),
        ("snapshot_name_taken", 409),
        ("snapshot_incompatible", 409),
        ("snapshot_damaged", 409),
        ("snapshot_failed", 502),
        ("snapshot_storage_full", 507),
        ("internal", 500),
    ];
    for (name, status) in codes {
        let code: ErrorCode = from_value(json!(name)).unwrap();
        assert_eq!((to_value(code).unwrap(), code.status()), (json!(name), status));
    }
    // The error names every code there is: none is missing above.
    let known = from_value::<ErrorCode>(json!("?")).unwrap_err().to_string();
    assert_eq!(known.matches('`').count(), 2 * (codes.len() + 1), "{known}");
}

#[test]
fn a_sandbox_in_the_list_shows_only_what_there_is() {
    let info = SandboxInfo {
        id: ID.parse().unwrap(),
        state: SandboxState::Creating,
        owner: None,
        reason: None,
        vmm: "qemu".to_owned(),
        snapshot_id: None,
        created_unix_s: 1_795_435_200,
        expires_unix_s: None,
        pid: None,
        guest_address: [172, 16, 0, 2].into(),
        host_address: [198, 18, 0, 2].into(),
    };
    let mut shape = json!({"id": ID, "state": "creating", "vmm": "qemu", "created_unix_s": 1_795_435_200_u64,
        "guest_address": "172.16.0.2", "host_address": "198.18.0.2"});
    exact(&info, shape.clone());
    shape["snapshot_id"] = json!(SNAPSHOT);
    shape["expires_unix_s"] = json!(1_795_435_290_u64);
    shape["owner"] = json!("ci");
    let (snapshot_id, expires_unix_s) = (Some(SNAPSHOT.parse().unwrap()), Some(1_795_435_290));
    let owner = Some("ci".to_owned());
    exact(&SandboxInfo { owner, snapshot_id, expires_unix_s, ..info }, shape);
}

#[test]
fn an_event_says_only_what_there_is_to_say() {
    let swept = Event { seq: 7, unix_ms: 1, ..Event::new(EventKind::Swept, Some(ID.parse().unwrap())) };
    let mut shape = json!({"seq": 7, "unix_ms": 1, "event": "swept", "sandbox_id": ID});
    exact(&swept, shape.clone());
    shape["exit_code"] = json!(3);
    shape["duration_us"] = json!(1500);
    shape["event"] = json!("exec");
    shape["who"] = json!("ci");
    let who = Some("ci".to_owned());
    exact(
        &Event { event: EventKind::Exec, who, exit_code: Some(3), duration_us: Some(1500), ..swept },
        shape,
    );
    for kind in [
        EventKind::Created,
        EventKind::Ready,
        EventKind::Exec,
        EventKind::Snapshot,
        EventKind::Expired,
        EventKind::Crashed,
        EventKind::Destroyed,
        EventKind::Swept,
        EventKind::Lost,
    ] {
        exact(&kind, json!(kind.as_str()));
    }
}

prop_compose! {
    fn any_exec()(
        id: [u8; 10],
        cmd in option::of(".*"),
        argv in option::of(vec(".*", 0..4)),
        use_shell: Option<bool>,
        timeout_ms: Option<u64>,
        cwd in option::of(".*"),
        env in btree_map(".*", ".*", 0..4),
        stdin in option::of("\\PC*"),
        base64: bool,
    ) -> ExecRequest {
        let encoding = if base64 { OutputEncoding::Base64 } else { OutputEncoding::Utf8 };
        let sandbox_id = manta_api::SandboxId::from_random(id);
        ExecRequest { sandbox_id, cmd, argv, use_shell, timeout_ms, cwd, env, stdin, encoding }
    }
}

proptest! {
    #[test]
    fn an_exec_arrives_as_it_was_sent(request in any_exec()) {
        let sent = serde_json::to_string(&request).unwrap();
        prop_assert_eq!(serde_json::from_str::<ExecRequest>(&sent).unwrap(), request);
    }

    #[test]
    fn output_arrives_as_it_was_sent(stdout in any::<String>(), stderr in any::<String>(), exit_code: i32) {
        let done = ExecResponse {
            stdout, stderr, exit_code, stdout_truncated: true, stderr_truncated: false, duration_us: 1,
        };
        let sent = serde_json::to_string(&done).unwrap();
        prop_assert_eq!(serde_json::from_str::<ExecResponse>(&sent).unwrap(), done);
    }
}
