//! The server over TLS, asked by a real client.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Answer, HOST_ADDRESS, Host, Server, answer, binary, new_dir, scaled, send};
use crate::keys::{OPEN, key};

/// A certificate for `localhost` on the disk, and its key.
struct Certificate {
    dir: TempDir,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificate {
    fn new() -> Self {
        let dir = new_dir();
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let certificate = Self { dir, cert, key };
        certificate.renew();
        certificate
    }

    /// Puts another in its place; gives it.
    fn renew(&self) -> CertificateDer<'static> {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("make a certificate");
        self.put(&self.cert, &made.cert.pem());
        self.put(&self.key, &made.signing_key.serialize_pem());
        made.cert.der().clone()
    }

    fn put(&self, path: &Path, text: &str) {
        let unfinished = self.dir.path().join("unfinished");
        fs::write(&unfinished, text).expect("write a file");
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).expect("close it to others");
        fs::rename(unfinished, path).expect("put it into place");
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [
            ("MANTA_TLS_CERT", self.cert.to_str().expect("UTF-8")),
            ("MANTA_TLS_KEY", self.key.to_str().expect("UTF-8")),
        ]
    }
}

/// Asks over TLS, trusting this certificate alone; the error is the handshake's.
fn ask(
    server: &Server,
    trusted: &CertificateDer<'static>,
    (method, path): (&str, &str),
    headers: &str,
    body: &[u8],
) -> Result<Answer, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let stream = TcpStream::connect(server.address).expect("connect");
    stream.set_read_timeout(Some(scaled(60))).expect("set a time limit");
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    send(&mut stream, method, path, headers, body);
    Ok(answer(stream))
}

#[test]
fn everything_goes_over_tls_and_keys_count_there_too() {
    let _host = Host::enter();
    let certificate = Certificate::new();
    let trusted = certificate.renew();
    let server = Server::with(&certificate.settings());
    let valid = key(&server.work_dir, &["create", "one"]);
    let bearer = format!("authorization: Bearer {valid}\r\ncontent-type: application/json\r\n");
    let over = |route: (&str, &str), headers: &str, body: &[u8]| {
        ask(&server, &trusted, route, headers, body).expect("an answer")
    };
    let created = over(("POST", "/create"), &bearer, b"").ok();
    let exec = json!({"sandbox_id": created["sandbox_id"], "cmd": "seq 200000"}).to_string();
    let ran = over(("POST", "/exec"), &bearer, exec.as_bytes()).ok();
    assert!(
        ran["stdout"].as_str().expect("output").ends_with("\n199999\n200000\n"),
        "an answer of many records"
    );

    // The same list as without TLS.
    let document: Value = serde_json::from_str(&manta_server::openapi()).expect("JSON");
    let mut open = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys() {
            let method = method.to_uppercase();
            let answer = over((&method, path), "content-type: application/json\r\n", b"{}");
            if answer.status != 401 {
                open.push((method, path.clone()));
            }
        }
    }
    assert_eq!(open, OPEN.map(|(method, path)| (method.to_owned(), path.to_owned())));
    let passing = key(&server.work_dir, &["create", "passing", "--expires", "1ms"]);
    key(&server.work_dir, &["create", "another"]);
    key(&server.work_dir, &["revoke", "one"]);
    for gone in [&valid, &passing] {
        over(("GET", "/sandboxes"), &format!("authorization: Bearer {gone}\r\n"), b"")
            .error(401, "unauthorized");
    }

    // Without TLS nobody is answered, and another certificate is not the one.
    let mut plain = TcpStream::connect(server.address).expect("connect");
    plain.set_read_timeout(Some(scaled(20))).expect("set a time limit");
    send(&mut plain, "GET", "/healthz", "", b"");
    let mut text = Vec::new();
    let _ = std::io::Read::read_to_end(&mut plain, &mut text);
    assert!(!text.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&text));
    let stranger = Certificate::new().renew();
    ask(&server, &stranger, OPEN[0], "", b"").expect_err("it was trusted");

    // A renewed one counts from the next connection on; half of one, or a broken one, never.
    let next = certificate.renew();
    ask(&server, &trusted, OPEN[0], "", b"").expect_err("the old one is still used");
    ask(&server, &next, OPEN[0], "", b"").expect("the new one").ok();
    certificate.put(&certificate.cert, "broken");
    ask(&server, &next, OPEN[0], "", b"").expect("the one from before").ok();
    assert!(server.log().contains("the one from before stays"), "{}", server.log());
}

#[test]
fn a_certificate_that_cannot_be_used_stops_the_start_and_says_why() {
    let _host = Host::enter();
    let certificate = Certificate::new();
    let refused = |settings: &[(&str, &str)]| Server::try_with(settings).err().expect("refused");
    let settings = certificate.settings();
    for half in settings {
        let log = refused(&[half]);
        assert!(log.contains("MANTA_TLS_CERT and MANTA_TLS_KEY belong together"), "{log}");
    }
    fs::set_permissions(&certificate.key, fs::Permissions::from_mode(0o644)).expect("open it to others");
    let log = refused(&settings);
    assert!(log.contains("key.pem") && log.contains("chmod 600"), "{log}");
    let doctor = Command::new(binary()).arg("doctor").envs(settings).output().expect("run the doctor");
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(found.contains("chmod 600"), "{found}");
    let other = Certificate::new();
    let log = refused(&[settings[0], other.settings()[1]]);
    assert!(log.contains("cannot be used together"), "{log}");
    fs::remove_file(&certificate.cert).expect("remove it");
    let log = refused(&settings);
    assert!(log.contains("cannot read") && log.contains("cert.pem"), "{log}");
}

#[test]
fn without_tls_keys_cross_the_network_in_clear_and_the_server_says_so() {
    let _host = Host::enter();
    let everywhere = ("MANTA_LISTEN_ADDR", "0.0.0.0:0");
    let degraded = |settings: &[(&str, &str)]| {
        let server = Server::with(&[settings, &[everywhere, ("MANTA_ALLOW_UNAUTHENTICATED", "1")]].concat());
        (server.log().contains("in clear text"), server)
    };
    let (warned, plain) = degraded(&[]);
    let mut stream = TcpStream::connect((HOST_ADDRESS, plain.address.port())).expect("connect");
    send(&mut stream, "GET", "/healthz", "", b"");
    let health = answer(stream).ok();
    assert!(warned && health["status"] == "degraded", "{health:#}");
    assert!(health["degraded"].to_string().contains("MANTA_TLS_CERT"), "{health:#}");
    drop(plain);
    let certificate = Certificate::new();
    assert!(!degraded(&certificate.settings()).0);
}

#[test]
fn the_benchmark_trusts_whom_it_is_told_to_trust() {
    let _host = Host::enter();
    let certificate = Certificate::new();
    let server = Server::with(&certificate.settings());
    let valid = key(&server.work_dir, &["create", "bench"]);
    let bench = |trusted: &Path| {
        let endpoint = format!("https://localhost:{}", server.address.port());
        Command::new(binary())
            .args(["bench", "--iterations", "1", "--warmup", "0", "--endpoint", &endpoint])
            .env("MANTA_API_KEY", &valid)
            .env("MANTA_CA_CERT", trusted)
            .output()
            .expect("run the benchmark")
    };
    let run = bench(&certificate.cert);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert!(!bench(&Certificate::new().cert).status.success(), "it trusts a stranger");
    let none = bench(&certificate.key);
    assert!(String::from_utf8_lossy(&none.stderr).contains("key.pem"), "{none:?}");
}
