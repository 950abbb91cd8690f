//! Who may call: keys, what needs one, and the Unix socket, which needs none.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Answer, Host, Server, answer, binary, new_dir, scaled, send};

/// All that may be asked without a key. A route that is added here has been thought about.
pub(crate) const OPEN: [(&str, &str); 1] = [("GET", "/healthz")];

/// `manta key` on this work directory.
fn manta_key(work_dir: &Path, args: &[&str]) -> Output {
    Command::new(binary())
        .arg("key")
        .args(args)
        .env("MANTA_WORK_DIR", work_dir)
        .output()
        .expect("run manta key")
}

/// What it prints when it works.
pub(crate) fn key(work_dir: &Path, args: &[&str]) -> String {
    let run = manta_key(work_dir, args);
    assert!(run.status.success(), "{args:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).expect("UTF-8").trim_end().to_owned()
}

fn get(server: &Server, path: &str, key: &str) -> Answer {
    server.raw("GET", path, &format!("authorization: Bearer {key}\r\n"), b"")
}

/// An answer over the Unix socket.
fn over_unix(path: &Path, method: &str, route: &str) -> Answer {
    let mut stream = UnixStream::connect(path).expect("connect to the socket");
    stream.set_read_timeout(Some(scaled(60))).expect("set a time limit");
    send(&mut stream, method, route, "", b"");
    answer(stream)
}

#[test]
fn keys_count_from_the_first_one_on_until_they_are_revoked_or_expire() {
    let _host = Host::enter();
    let server = Server::start();
    let work_dir = server.work_dir.clone();
    // Loopback, and no key yet.
    server.get("/sandboxes");
    let first = key(&work_dir, &["create", "first"]);
    assert!(first.starts_with("manta_") && first.len() == 46, "{first}");
    let second = key(&work_dir, &["create", "second", "--expires", "30d"]);
    let passing = key(&work_dir, &["create", "passing", "--expires", "1ms"]);
    for valid in [&first, &second] {
        get(&server, "/sandboxes", valid).ok();
    }
    let listed = key(&work_dir, &["list"]);
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 4, "{listed}");
    assert!(lines[1].contains("first") && lines[1].contains("never"), "{listed}");
    assert!(lines[1].ends_with(&first[42..]) && lines[3].contains("(expired)"), "{listed}");
    assert!([&first, &second, &passing].iter().all(|key| !listed.contains(&key[6..41])), "{listed}");

    let refused = |sent: &str| {
        let answer = server.raw("GET", "/sandboxes", sent, b"");
        assert_eq!(answer.header("www-authenticate"), Some("bearer"), "{}", answer.headers);
        answer.error(401, "unauthorized")
    };
    let none = refused("");
    let bearer = |key: &str| refused(&format!("authorization: Bearer {key}\r\n"));
    assert_eq!(key(&work_dir, &["revoke", "first"]).lines().count(), 1);
    for wrong in [&first, &passing, "manta_0", &second[1..], ""] {
        assert_eq!(bearer(wrong), none, "the answer tells what is wrong with {wrong:?}");
    }
    assert_eq!(refused(&format!("authorization: Basic {second}\r\n")), none);
    get(&server, "/sandboxes", &second).ok();

    let file = work_dir.join("keys.json");
    let mode = std::fs::metadata(&file).expect("the file of keys").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept = std::fs::read_to_string(file).expect("the file of keys");
    let log = server.log();
    for key in [&first, &second, &passing] {
        assert!(!kept.contains(&key[6..41]) && !log.contains(&key[6..41]), "a key was written down");
    }
    // The last of them goes, and nobody gets in: not as if there had never been one.
    let id = |line: &str| line.split_whitespace().nth(1).expect("an id").to_owned();
    key(&work_dir, &["revoke", &id(lines[2])]);
    assert!(key(&work_dir, &["revoke", "passing"]).contains("No key is left"));
    refused("");
    assert!(!manta_key(&work_dir, &["revoke", "passing"]).status.success());
}

#[test]
fn with_keys_nothing_but_health_is_open() {
    let _host = Host::enter();
    let server = Server::start();
    let valid = key(&server.work_dir, &["create", "one"]);
    let document: Value = serde_json::from_str(&manta_server::openapi()).expect("JSON");
    let mut paths: Vec<_> =
        document["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    paths.extend(["/openapi.json", "/", "/no-such-route", "/healthz/", "//healthz", "/healthz/../metrics"]);
    let mut open = Vec::new();
    for path in paths {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let answer = server.raw(method, path, "content-type: application/json\r\n", b"{}");
            if answer.status == 401 {
                assert_eq!(answer.body["code"], "unauthorized");
            } else {
                open.push((method, path));
            }
            let documented = &document["paths"][path][method.to_lowercase()];
            if documented.is_object() {
                let needs_key = !documented["security"].is_null();
                assert_eq!(needs_key, answer.status == 401, "the document is wrong about {method} {path}");
            }
        }
    }
    assert_eq!(open, OPEN);
    // A route that does not exist is told from one that does only to those who have a key.
    get(&server, "/no-such-route", &valid).error(404, "not_found");
    assert_eq!(get(&server, "/openapi.json", &valid).ok(), document);
    assert_eq!(get(&server, "/metrics", &valid).status, 200);
}

#[test]
fn an_address_that_others_reach_needs_a_key_to_listen_on() {
    let _host = Host::enter();
    let everywhere = ("MANTA_LISTEN_ADDR", "0.0.0.0:0");
    let log = Server::try_with(&[everywhere]).err().expect("refused");
    assert!(log.contains("manta key create") && log.contains("MANTA_ALLOW_UNAUTHENTICATED=1"), "{log}");

    let allowed = Server::with(&[everywhere, ("MANTA_ALLOW_UNAUTHENTICATED", "1")]);
    let port = allowed.address.port();
    assert!(allowed.log().contains("whoever reaches this address"), "{}", allowed.log());
    let via = |port: u16, headers: &str| {
        let mut stream = TcpStream::connect((crate::harness::HOST_ADDRESS, port)).expect("connect");
        stream.set_read_timeout(Some(scaled(60))).expect("set a time limit");
        send(&mut stream, "GET", "/sandboxes", headers, b"");
        answer(stream)
    };
    via(port, "").ok();
    // Allowed or not: once there is a key, it is needed.
    let valid = key(&allowed.work_dir, &["create", "one"]);
    via(port, "").error(401, "unauthorized");
    let dir = allowed.end();
    let server = Server::in_dir(dir, &[everywhere]);
    via(server.address.port(), "").error(401, "unauthorized");
    via(server.address.port(), &format!("authorization: Bearer {valid}\r\n")).ok();
    let dir = server.end();

    std::fs::write(dir.path().join("work/keys.json"), "{").expect("break the file");
    let log = Server::try_in_dir(dir, &[]).err().expect("refused");
    assert!(log.contains("cannot read the API keys") && log.contains("keys.json"), "{log}");
}

#[test]
fn without_keys_a_web_page_gets_nothing_and_programs_do() {
    let _host = Host::enter();
    let place = new_dir();
    let path = place.path().join("manta.sock");
    let server = Server::with(&[("MANTA_LISTEN_UNIX", path.to_str().expect("UTF-8"))]);
    let port = server.address.port();
    let head = |host: &str, more: &str| {
        format!(
            "POST /create HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\ncontent-length: 0\r\n\r\n"
        )
    };
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(server.address).expect("connect");
        stream.set_read_timeout(Some(scaled(60))).expect("set a time limit");
        stream.write_all(head.as_bytes()).expect("send a request");
        answer(stream)
    };
    // What a browser sends for `fetch(URL, {method: "POST"})`, and for a page whose name leads here by now.
    let foreign = "origin: http://attacker.example\r\n";
    let page = head(&format!("127.0.0.1:{port}"), foreign);
    let name = format!("attacker.example:{port}");
    let rebound = head(&name, &format!("origin: http://{name}\r\n"));
    for (request, says) in [(&page, "web page"), (&rebound, "as localhost")] {
        let message = ask(request).error(403, "forbidden");
        assert!(message.contains(says) && message.contains("manta key create"), "{message}");
    }
    assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));
    server.raw("GET", "/metrics", foreign, b"").error(403, "forbidden");
    assert_eq!(server.raw("GET", "/healthz", foreign, b"").status, 200);

    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        let id = ask(&head(&host, "")).ok()["sandbox_id"].as_str().expect("an id").to_owned();
        server.destroy(&id).ok();
    }
    // No page gets there.
    let mut stream = UnixStream::connect(&path).expect("connect to the Unix socket");
    stream.set_read_timeout(Some(scaled(60))).expect("set a time limit");
    stream.write_all(page.as_bytes()).expect("send a request");
    answer(stream).ok();
    // A page that was given a key may use it, wherever it is from.
    let valid = key(&server.work_dir, &["create", "one"]);
    ask(&page).error(401, "unauthorized");
    ask(&head(&name, &format!("{foreign}authorization: Bearer {valid}\r\n"))).ok();
}

#[test]
fn the_unix_socket_needs_no_key_and_is_replaced_only_when_its_server_is_dead() {
    let _host = Host::enter();
    let place = new_dir();
    let path = place.path().join("manta.sock");
    let at = ("MANTA_LISTEN_UNIX", path.to_str().expect("UTF-8"));
    let server = Server::with(&[at]);
    key(&server.work_dir, &["create", "one"]);
    server.raw("GET", "/sandboxes", "", b"").error(401, "unauthorized");
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(over_unix(&path, "GET", "/sandboxes").ok(), json!({"sandboxes": []}));
    let id = over_unix(&path, "POST", "/create").ok()["sandbox_id"].as_str().expect("an id").to_owned();
    assert!(over_unix(&path, "GET", "/sandboxes").text.contains(&id));

    let log = Server::try_with(&[at]).err().expect("the socket is taken");
    assert!(log.contains("another server is listening on it"), "{log}");
    assert_eq!(over_unix(&path, "GET", "/healthz").status, 200, "the living server keeps its socket");

    let dir = server.kill();
    assert!(path.exists(), "a killed server leaves its socket");
    let mut next = Server::in_dir(dir, &[at, ("MANTA_LISTEN_ADDR", "none")]);
    assert_eq!(over_unix(&path, "GET", "/sandboxes").status, 200);
    next.stop();
    assert!(!path.exists(), "the socket outlived its server");

    let log = Server::try_with(&[("MANTA_LISTEN_ADDR", "none")]).err().expect("nothing to listen on");
    assert!(log.contains("MANTA_LISTEN_UNIX"), "{log}");
}

#[test]
fn half_sent_requests_are_given_up_and_do_not_hold_up_the_end() {
    let _host = Host::enter();
    let mut server = Server::with(&[("MANTA_HEADER_TIMEOUT", "1s"), ("MANTA_BODY_TIMEOUT", "1s")]);
    let half = |text: &str| {
        let mut stream = TcpStream::connect(server.address).expect("connect");
        stream.set_read_timeout(Some(scaled(20))).expect("set a time limit");
        stream.write_all(text.as_bytes()).expect("send half a request");
        stream
    };
    const BODY: &str = "POST /exec HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    let mut head = half("GET /sandboxes HTTP/1.1\r\nhost");
    let mut text = String::new();
    head.read_to_string(&mut text).expect("closed in time");
    assert_eq!(text, "");
    answer(half(BODY)).error(408, "body_timeout");

    let dir = server.end();
    let hours = [("MANTA_HEADER_TIMEOUT", "1h"), ("MANTA_BODY_TIMEOUT", "1h")];
    server = Server::in_dir(dir, &hours);
    let open = |text: &str| {
        let mut stream = TcpStream::connect(server.address).expect("connect");
        stream.write_all(text.as_bytes()).expect("send half a request");
        stream
    };
    let held = [open("GET /sandboxes HTTP/1.1\r\nhost"), open(BODY), open("")];
    // Accepted after them, so they are in its hands.
    server.get("/sandboxes");
    let began = Instant::now();
    server.stop();
    let took = began.elapsed();
    assert!(took < scaled(10), "half-sent requests held up the end: {took:?}");
    assert!(!server.log().contains("connections still open"), "{}", server.log());
    drop(held);
}

#[test]
fn the_benchmark_sends_the_key_and_keeps_it_to_itself() {
    let _host = Host::enter();
    let server = Server::start();
    let valid = key(&server.work_dir, &["create", "bench"]);
    let endpoint = format!("http://{}", server.address);
    let bench = |key: Option<&str>| {
        let mut command = Command::new(binary());
        command.args(["bench", "--iterations", "1", "--warmup", "0", "--endpoint", &endpoint]);
        command.envs(key.map(|key| ("MANTA_API_KEY", key))).output().expect("run the benchmark")
    };
    let run = bench(Some(&valid));
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{err}");
    assert!(!out.contains(&valid[6..]) && !err.contains(&valid[6..]), "the key was printed");
    let refused = bench(None);
    assert!(!refused.status.success());
    let text = [refused.stdout, refused.stderr].concat();
    assert!(String::from_utf8_lossy(&text).contains("manta key create"), "it says what to do");
}
