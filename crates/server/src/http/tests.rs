//! What clients may cost, tried on real connections over loopback, without an engine behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::{get, post};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

use super::{Limits, serve};
use crate::body::{Json, MAX_BODY};
use crate::tls::LiveTls;

/// Longer than any test waits for anything that should happen.
const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);
const ANSWERED: &str = "HTTP/1.1 200 OK";

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<()>,
    /// Says when a request to `/slow` has come in.
    begun: mpsc::Receiver<()>,
    /// Lets such a request end.
    end: mpsc::Sender<()>,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        Self::start_with(None, limits).await
    }

    async fn start_with(tls: Option<Arc<LiveTls>>, limits: Limits) -> Self {
        let (begin, begun) = mpsc::channel(8);
        let (end, may_end) = mpsc::channel(8);
        let may_end = Arc::new(tokio::sync::Mutex::new(may_end));
        let slow = move || async move {
            begin.send(()).await.unwrap();
            may_end.lock().await.recv().await.unwrap();
            "slow"
        };
        let router = Router::new()
            .route("/", get(async || "fine"))
            .route("/slow", get(slow))
            .route("/large", get(async || "x".repeat(64 << 20)))
            .route("/body", post(async |Json(_): Json<Value>| "read"))
            .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let ended = tokio::spawn(serve(listener, tls, router, limits, stop.clone()));
        Self { address, stop, ended, begun, end }
    }

    /// A connection on which this was sent.
    async fn sent(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn stopped(self) -> Duration {
        let began = Instant::now();
        self.stop.cancel();
        tokio::time::timeout(LONG, self.ended).await.expect("the server ends").unwrap();
        began.elapsed()
    }
}

/// Limits that no test comes near.
fn wide() -> Limits {
    Limits { connections: 100, header_timeout: 10 * LONG, body_timeout: 10 * LONG }
}

/// All that comes until the server closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // The server may have closed with something of ours unread: a reset, after the answer.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut text)).await.expect("the server closes");
    String::from_utf8(text).unwrap()
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")
}

#[tokio::test]
async fn a_head_that_does_not_arrive_and_an_idle_connection_are_closed() {
    let server = Server::start(Limits { header_timeout: SHORT, ..wide() }).await;
    for head in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: a\r\n"] {
        assert_eq!(rest(server.sent(head).await).await, "", "{head:?}");
    }
    assert!(rest(server.sent(&request("/")).await).await.starts_with(ANSWERED));
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_answered_408() {
    let server = Server::start(Limits { body_timeout: SHORT, ..wide() }).await;
    let head =
        "POST /body HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
    let answer = rest(server.sent(&format!("{head}{{")).await).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_long_is_answered_431() {
    let server = Server::start(wide()).await;
    let head =
        |bytes| format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    assert!(rest(server.sent(&head(30_000)).await).await.starts_with(ANSWERED));
    assert!(rest(server.sent(&head(40_000)).await).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn who_does_not_read_the_answer_is_cut_off() {
    let server = Server::start(Limits { body_timeout: SHORT, ..wide() }).await;
    let stream = server.sent(&request("/large")).await;
    stream.readable().await.unwrap();
    // One connection is open. It ends by itself, or the server would not end.
    assert!(server.stopped().await < LONG);
    assert!(rest(stream).await.len() < 64 << 20);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_their_turn() {
    let mut server = Server::start(Limits { connections: 1, ..wide() }).await;
    let first = server.sent(&request("/slow")).await;
    server.begun.recv().await.unwrap();
    let mut second = server.sent(&request("/")).await;
    let mut byte = [0];
    assert!(tokio::time::timeout(SHORT, second.read(&mut byte)).await.is_err(), "answered beside the first");
    server.end.send(()).await.unwrap();
    drop(first);
    assert_eq!(tokio::time::timeout(LONG, second.read(&mut byte)).await.expect("its turn").unwrap(), 1);
}

#[tokio::test]
async fn what_is_half_sent_does_not_hold_up_the_end() {
    let server = Server::start(wide()).await;
    let body =
        "POST /body HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut held = Vec::new();
    for text in ["", "GET / HT", body, &request("/")] {
        held.push(server.sent(text).await);
    }
    // What is answered last was accepted last.
    held.last().unwrap().readable().await.unwrap();
    let took = server.stopped().await;
    assert!(took < Duration::from_secs(2), "it took {took:?}");
    let answers = [rest(held.remove(2)).await, rest(held.remove(0)).await, rest(held.remove(0)).await];
    assert!(
        answers[0].contains("503 Service Unavailable") && answers[0].contains("shutting_down"),
        "{answers:?}"
    );
    assert_eq!(answers[1..], ["", ""]);
}

#[tokio::test]
async fn what_is_being_answered_is_waited_for() {
    let mut server = Server::start(wide()).await;
    let (slow, large) = (server.sent(&request("/slow")).await, server.sent(&request("/large")).await);
    server.begun.recv().await.unwrap();
    large.readable().await.unwrap();
    server.stop.cancel();
    let end = server.end.clone();
    let stopped = tokio::spawn(server.stopped());
    assert!(rest(large).await.len() > 64 << 20, "an answer was cut short");
    assert!(!stopped.is_finished());
    end.send(()).await.unwrap();
    assert!(rest(slow).await.ends_with("slow"));
    stopped.await.unwrap();
}

/// A certificate for `localhost`, and who trusts it.
fn certificate() -> (Arc<LiveTls>, TlsConnector) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert"), dir.path().join("key"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    (Arc::new(LiveTls::open(cert, key).unwrap()), TlsConnector::from(Arc::new(config)))
}

#[tokio::test]
async fn who_is_slow_at_the_handshake_holds_up_nobody_and_is_cut_off() {
    let (tls, connector) = certificate();
    // Also of the proper client's handshake, which takes some processor time.
    let header_timeout = Duration::from_secs(2);
    let server = Server::start_with(Some(tls), Limits { header_timeout, ..wide() }).await;
    let began = Instant::now();
    let silent = server.sent("").await;
    // The first bytes of a hello, and a hello that is none.
    let (half, plain) = (server.sent("\x16\x03\x01").await, server.sent(&request("/")).await);
    let mut proper = connector.connect(name(), server.sent("").await).await.unwrap();
    proper.write_all(request("/").as_bytes()).await.unwrap();
    let mut answer = vec![0; ANSWERED.len()];
    proper.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, ANSWERED.as_bytes());
    for mut cut_off in [silent, half, plain] {
        let mut text = Vec::new();
        let _ = tokio::time::timeout(LONG, cut_off.read_to_end(&mut text)).await.expect("the server closes");
        assert!(!text.starts_with(b"HTTP"), "answered without TLS");
    }
    assert!(began.elapsed() >= header_timeout);
}

#[tokio::test]
async fn with_tls_too_who_does_not_read_the_answer_is_cut_off() {
    let (tls, connector) = certificate();
    let server = Server::start_with(Some(tls), Limits { body_timeout: SHORT, ..wide() }).await;
    let mut stream = connector.connect(name(), server.sent("").await).await.unwrap();
    stream.write_all(request("/large").as_bytes()).await.unwrap();
    // Of the answer, not of the handshake.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 1);
    assert!(server.stopped().await < LONG);
    let mut text = Vec::new();
    // Cut off in the middle of a record.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut text)).await.expect("the server closes");
    assert!(text.len() < 64 << 20);
}

#[tokio::test]
async fn with_tls_too_what_is_being_answered_is_waited_for_and_a_handshake_is_not() {
    let (tls, connector) = certificate();
    let server = Server::start_with(Some(tls), wide()).await;
    let handshake = server.sent("\x16\x03\x01").await;
    let mut stream = connector.connect(name(), server.sent("").await).await.unwrap();
    stream.write_all(request("/large").as_bytes()).await.unwrap();
    // Of the answer, not of the handshake.
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 1);
    server.stop.cancel();
    let stopped = tokio::spawn(server.stopped());
    let mut text = Vec::new();
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut text)).await.expect("all of it");
    assert!(text.len() > 64 << 20, "an answer was cut short");
    stopped.await.unwrap();
    drop(handshake);
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}
