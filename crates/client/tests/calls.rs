//! Each call against a real HTTP server on the loopback: what is sent, what is understood.

#![expect(clippy::unwrap_used, reason = "Clippy's exemption for tests does not reach their helpers")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use manta_api::{
    DestroyStatus, ErrorCode, ExecRequest, HealthStatus, OutputEncoding, SandboxId, SnapshotDeleteStatus,
    SnapshotId,
};
use manta_client::{Call, Client, ClientError};
use tokio::net::TcpListener;

const ID: &str = "sb-0123456789abcdef0123";
const SNAPSHOT: &str = "snap-0123456789abcdef0123";
/// What the server says of its time in each answer.
const TIMING: (&str, &str) = ("server-timing", r#"pool;desc="hit", total;dur=2.6"#);

#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// Answers every request with `answer` and remembers it.
async fn server(status: u16, answer: &'static str) -> (Client, Seen) {
    let seen = Seen::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let connections = seen.connections.clone();
    let listener = listener.tap_io(move |_| {
        connections.fetch_add(1, Ordering::Relaxed);
    });
    let router = Router::new()
        .fallback(move |State(seen): State<Seen>, request: Request| remember(seen, request, status, answer))
        .with_state(seen.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (Client::new(&endpoint, Duration::from_secs(10)).unwrap(), seen)
}

async fn remember(seen: Seen, request: Request, status: u16, answer: &'static str) -> Response {
    let (parts, body) = request.into_parts();
    let body = String::from_utf8(axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    assert_eq!(parts.headers[header::CONTENT_TYPE], "application/json");
    let key = parts.headers.get(header::AUTHORIZATION).map(|key| format!(" {}", key.to_str().unwrap()));
    let line = format!("{} {} {body}{}", parts.method, parts.uri.path(), key.unwrap_or_default());
    seen.requests.lock().unwrap().push(line);
    (StatusCode::from_u16(status).unwrap(), [TIMING], answer).into_response()
}

fn shell(cmd: &str) -> ExecRequest {
    ExecRequest {
        sandbox_id: ID.parse().unwrap(),
        cmd: Some(cmd.to_owned()),
        argv: None,
        use_shell: None,
        timeout_ms: None,
        cwd: None,
        env: Default::default(),
        stdin: None,
        encoding: OutputEncoding::Utf8,
    }
}

#[tokio::test]
async fn create_sends_an_empty_object_and_gives_the_sandbox() {
    let (client, seen) = server(200, r#"{"sandbox_id":"sb-0123456789abcdef0123"}"#).await;
    assert_eq!(client.create().await.unwrap().sandbox_id.as_str(), ID);
    assert_eq!(*seen.requests.lock().unwrap(), ["POST /create {}"]);
}

#[tokio::test]
async fn exec_of_a_line_is_what_a_client_of_the_original_sends() {
    let (client, seen) = server(200, r#"{"stdout":"hi\n","stderr":"oh","exit_code":3}"#).await;
    let done = client.exec(&shell("echo hi")).await.unwrap();
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.exit_code), ("hi\n", "oh", 3));
    assert!(!done.stdout_truncated && !done.stderr_truncated);
    assert_eq!(
        *seen.requests.lock().unwrap(),
        [format!(r#"POST /exec {{"sandbox_id":"{ID}","cmd":"echo hi"}}"#)]
    );
}

#[tokio::test]
async fn destroy_names_the_sandbox() {
    let answer = r#"{"sandbox_id":"sb-0123456789abcdef0123","status":"destroyed"}"#;
    let (client, seen) = server(200, answer).await;
    let id: SandboxId = ID.parse().unwrap();
    let gone = client.destroy(&id).await.unwrap();
    assert_eq!((gone.sandbox_id, gone.status), (id, DestroyStatus::Destroyed));
    assert_eq!(*seen.requests.lock().unwrap(), [format!(r#"POST /destroy {{"sandbox_id":"{ID}"}}"#)]);
}

#[tokio::test]
async fn a_snapshot_has_a_name_only_if_it_is_given_one() {
    let (client, seen) = server(200, r#"{"snapshot_id":"snap-0123456789abcdef0123","pause_us":1500}"#).await;
    let id: SandboxId = ID.parse().unwrap();
    let made = client.snapshot(&id, None).await.unwrap();
    assert_eq!((made.snapshot_id.as_str(), made.pause_us), (SNAPSHOT, 1500));
    client.snapshot(&id, Some("ready".to_owned())).await.unwrap();
    assert_eq!(
        *seen.requests.lock().unwrap(),
        [
            format!(r#"POST /snapshot/create {{"sandbox_id":"{ID}"}}"#),
            format!(r#"POST /snapshot/create {{"sandbox_id":"{ID}","name":"ready"}}"#),
        ]
    );
}

#[tokio::test]
async fn restore_names_the_snapshot_and_gives_a_sandbox() {
    let (client, seen) = server(200, r#"{"sandbox_id":"sb-0123456789abcdef0123"}"#).await;
    let restored = client.restore(&SNAPSHOT.parse().unwrap()).await.unwrap();
    assert_eq!(restored.sandbox_id.as_str(), ID);
    assert_eq!(restored.server_timing.as_ref().and_then(|timing| timing.description("pool")), Some("hit"));
    let sent = format!(r#"POST /snapshot/restore {{"snapshot_id":"{SNAPSHOT}"}}"#);
    assert_eq!(*seen.requests.lock().unwrap(), [sent]);
}

#[tokio::test]
async fn deleting_a_snapshot_names_it_and_tells_one_that_is_not_there() {
    let id: SnapshotId = SNAPSHOT.parse().unwrap();
    let answer = r#"{"snapshot_id":"snap-0123456789abcdef0123","status":"deleted"}"#;
    let (client, seen) = server(200, answer).await;
    let gone = client.delete_snapshot(&id).await.unwrap();
    assert_eq!((&gone.snapshot_id, gone.status), (&id, SnapshotDeleteStatus::Deleted));
    let sent = format!(r#"POST /snapshot/delete {{"snapshot_id":"{SNAPSHOT}"}}"#);
    assert_eq!(*seen.requests.lock().unwrap(), [sent]);

    let (client, _) = server(404, r#"{"error":"no such snapshot","code":"snapshot_not_found"}"#).await;
    let error = client.delete_snapshot(&id).await.unwrap_err();
    let ClientError::Api { call, status: 404, body } = error else { panic!("{error:?}") };
    assert_eq!((call, body.code), (Call::SnapshotDelete, ErrorCode::SnapshotNotFound));
}

#[tokio::test]
async fn snapshots_are_read() {
    let answer = r#"{"snapshots":[{"id":"snap-0123456789abcdef0123","created_unix_ms":1,
        "sandbox_id":"sb-0123456789abcdef0123","vmm":"qemu","vmm_version":"10.0.2","vcpus":1,"mem_mib":256,
        "disk_bytes":{"state":1,"memory":2,"disk":4},"restorable":true,"a_later_field":1}]}"#;
    let (client, seen) = server(200, answer).await;
    let list = client.snapshots().await.unwrap().snapshots;
    let [snapshot] = &list[..] else { panic!("{list:?}") };
    assert_eq!((snapshot.id.as_str(), snapshot.disk_bytes.total()), (SNAPSHOT, 7));
    assert_eq!(*seen.requests.lock().unwrap(), ["GET /snapshot/list "]);
}

#[tokio::test]
async fn sandboxes_and_health_are_read() {
    let (client, seen) = server(200, r#"{"sandboxes":[]}"#).await;
    assert!(client.sandboxes().await.unwrap().sandboxes.is_empty());
    assert_eq!(*seen.requests.lock().unwrap(), ["GET /sandboxes "]);

    let answer = r#"{"status":"degraded","degraded":["no egress"],"version":"0.1.0","sandboxes":0,
        "vmm":{"name":"qemu","version":"10.0.2","accelerator":"tcg","reason":"no KVM"},"max_sandboxes":8,
        "host":{"cpu":"c","cpus":2,"mem_mib":1,"kernel":"k","filesystem":"f","storage":"s"},
        "settings":{"MANTA_VMM":"auto"},"a_later_field":1}"#;
    let (client, seen) = server(200, answer).await;
    let health = client.health().await.unwrap();
    assert_eq!(health.status, HealthStatus::Degraded);
    assert_eq!(health.settings["MANTA_VMM"], "auto");
    assert_eq!(*seen.requests.lock().unwrap(), ["GET /healthz "]);
}

#[tokio::test]
async fn calls_and_clones_share_one_connection() {
    let (client, seen) = server(200, r#"{"sandboxes":[]}"#).await;
    for _ in 0..3 {
        client.sandboxes().await.unwrap();
        client.with_timeout(Duration::from_secs(5)).sandboxes().await.unwrap();
    }
    assert_eq!(seen.requests.lock().unwrap().len(), 6);
    assert_eq!(seen.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_servers_account_of_a_failure_is_kept_whole() {
    let (client, _) =
        server(504, r#"{"error":"killed after 1 s","code":"exec_timeout","stdout":"so far"}"#).await;
    let error = client.exec(&shell("sleep 9")).await.unwrap_err();
    assert_eq!(error.to_string(), "POST /exec: HTTP 504: killed after 1 s");
    let ClientError::Api { call, status, body } = error else { panic!("{error:?}") };
    assert_eq!((call, status, body.code), (Call::Exec, 504, ErrorCode::ExecTimeout));
    assert_eq!((body.stdout.as_deref(), body.stderr), (Some("so far"), None));
}

#[tokio::test]
async fn an_answer_that_is_not_mantas_is_shown_not_guessed_at() {
    for (status, answer) in [
        (200, "<html>it works</html>"),
        (200, r#"{"sandbox_id":"../../etc"}"#),
        (200, ""),
        (502, "Bad Gateway"),
        (500, r#"{"error":"newer than this client","code":"a_later_code"}"#),
        (302, ""),
    ] {
        let (client, seen) = server(status, answer).await;
        let error = client.create().await.unwrap_err();
        let ClientError::Decode { call: Call::Create, status: got, excerpt, .. } = error else {
            panic!("{status} {answer:?}: {error:?}")
        };
        assert_eq!((got, excerpt.as_str()), (status, answer));
        assert_eq!(seen.requests.lock().unwrap().len(), 1, "asked again after {status} {answer:?}");
    }
}

#[test]
fn a_bad_address_is_refused_before_anything_is_sent() {
    let error = Client::new("localhost:8080", Duration::from_secs(1)).unwrap_err();
    assert!(
        matches!(&error, ClientError::Endpoint { endpoint, .. } if endpoint == "localhost:8080"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_key_goes_with_each_request_and_nowhere_else() {
    let (client, seen) = server(401, r#"{"error":"send a key","code":"unauthorized"}"#).await;
    let with_key = client.with_api_key(&"manta_secret".parse().unwrap()).unwrap();
    let error = with_key.sandboxes().await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Api { body, .. } if body.code == ErrorCode::Unauthorized),
        "{error:?}"
    );
    client.sandboxes().await.unwrap_err();
    let requests = seen.requests.lock().unwrap().clone();
    assert_eq!(requests, ["GET /sandboxes  Bearer manta_secret", "GET /sandboxes "]);
    let shown = format!("{with_key:?} {error:?}");
    assert!(!shown.contains("secret"), "{shown}");
    let wrong = client.with_api_key(&"two\nlines".parse().unwrap()).unwrap_err();
    assert!(!wrong.to_string().contains("lines"), "{wrong}");
}
