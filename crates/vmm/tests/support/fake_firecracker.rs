//! A Firecracker as far as the driver sees it: a process that does nothing, and its API and vsock sockets, served
//! by the test itself. They appear when the process starts, as those of the real one do.

use std::convert::Infallible;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};

use crate::ground::Ground;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    /// The API refuses the tap.
    Refusal,
    /// The process is killed by this request, of this path and body.
    Death(&'static str),
    /// The API refuses to save the VM, having written a part.
    NoRoom,
    /// The API refuses to resume the VM.
    NoResume,
    /// When told to save the VM, it makes a symbolic link of this one of its files.
    Link(&'static str),
}

/// Of the guest of [`Ground::spec`], bytes.
pub(crate) const MEMORY: u64 = 128 << 20;
/// What the fake writes at the beginning of the guest's memory.
pub(crate) const FIRST_PAGE: &[u8] = &[0xaa; 4096];
/// What it writes in a restored guest, and where.
pub(crate) const CHANGED_PAGE: (&[u8], u64) = (&[0xbb; 4096], 8192);

/// Writes the program. It prints how it was called, lets its sockets appear, and waits to be killed. It has no
/// children, which could outlive it.
pub(crate) fn program(ground: &Ground) -> PathBuf {
    program_of_version(ground, "1.12.1")
}

pub(crate) fn program_of_version(ground: &Ground, version: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\n\
        [ \"$1\" = --version ] && {{ echo 'Firecracker v{version}'; exit; }}\n\
        echo \"fake firecracker $*\"\n\
        echo > started && exec sleep 600\n"
    );
    script_program(ground, &script)
}

/// A program that ends at once.
pub(crate) fn failing_program(ground: &Ground) -> PathBuf {
    let script = "#!/bin/sh\n\
        [ \"$1\" = --version ] && { echo 'Firecracker v1.12.1'; exit; }\n\
        echo 'no room in this machine'; exit 7\n";
    script_program(ground, script)
}

fn script_program(ground: &Ground, script: &str) -> PathBuf {
    // Where the VMM's user can execute it.
    let path = ground.vm_dir().join("firecracker");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// The served side.
#[derive(Debug)]
pub(crate) struct Fake {
    dir: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Serves the API; the sockets are hidden until the program shows them.
    pub(crate) fn serve(dir: &Path, trouble: Trouble) -> (Self, UnixListener) {
        let api = UnixListener::bind(dir.join("hidden-api.sock")).unwrap();
        let vsock = UnixListener::bind(dir.join("hidden-v.sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let fake = Self { dir: dir.to_owned(), requests: Arc::clone(&requests) };
        let dir = dir.to_owned();
        let started = dir.join("started");
        mkfifoat(CWD, &started, Mode::RUSR).unwrap();
        fs::set_permissions(&started, PermissionsExt::from_mode(0o666)).unwrap();
        let started = pipe::OpenOptions::new().read_write(true).open_receiver(started).unwrap();
        tokio::spawn(async move {
            started.readable().await.unwrap();
            for name in ["v.sock", "api.sock"] {
                fs::rename(dir.join(format!("hidden-{name}")), dir.join(name)).unwrap();
            }
            while let Ok((stream, _)) = api.accept().await {
                let (requests, dir) = (Arc::clone(&requests), dir.clone());
                let service =
                    service_fn(move |request| answer(request, Arc::clone(&requests), dir.clone(), trouble));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // A client may hang up whenever it wants.
                    let _ = connection.await;
                });
            }
        });
        (fake, vsock)
    }

    /// All requests so far, one a line.
    pub(crate) fn requests(&self) -> String {
        self.requests.lock().unwrap().join("\n")
    }

    /// What Firecracker does when the guest calls the host.
    pub(crate) async fn guest_calls(&self, port: u32) -> std::io::Result<UnixStream> {
        UnixStream::connect(self.dir.join(format!("v.sock_{port}"))).await
    }
}

async fn answer(
    request: Request<Incoming>,
    requests: Arc<Mutex<Vec<String>>>,
    dir: PathBuf,
    trouble: Trouble,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8_lossy(&body);
    let line = format!("{method} {path} {body}");
    requests.lock().unwrap().push(line.clone());
    if matches!(trouble, Trouble::Death(at) if line.contains(at)) {
        for process in manta_host::processes_in(&dir).unwrap() {
            kill_process(Pid::from_raw(i32::try_from(process.pid()).unwrap()).unwrap(), Signal::KILL)
                .unwrap();
        }
        // The real one would not answer either.
        std::future::pending::<()>().await;
    }
    if path == "/snapshot/create" {
        save(&dir, &serde_json::from_str(&body).unwrap(), trouble);
    }
    let fault = match (trouble, path.as_str()) {
        (Trouble::Refusal, "/network-interfaces/net") => "Could not create the network device: no tap",
        (Trouble::NoRoom, "/snapshot/create") => "Cannot write memory file: no room",
        (Trouble::NoResume, "/vm") if body.contains("Resumed") => "Failed to resume: no answer of a vCPU",
        _ => "",
    };
    let (status, body) = if path == "/" {
        (StatusCode::OK, describe(&requests.lock().unwrap()))
    } else if fault.is_empty() {
        (StatusCode::NO_CONTENT, String::new())
    } else {
        (StatusCode::BAD_REQUEST, format!(r#"{{"fault_message":"{fault}"}}"#))
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}

/// `InstanceInfo` of the API, after these requests.
fn describe(requests: &[String]) -> String {
    let state = requests.iter().rev().find_map(|line| match line.split(' ').nth(1)? {
        "/vm" if line.contains("Paused") => Some("Paused"),
        "/vm" | "/actions" | "/snapshot/load" => Some("Running"),
        _ => None,
    });
    let state = state.unwrap_or("Not started");
    serde_json::json!({ "id": "vm", "state": state, "vmm_version": "1.12.1", "app_name": "Firecracker" })
        .to_string()
}

/// Does to the files what Firecracker does (its `Vm::snapshot_memory_to_file`), as the user it runs as.
fn save(dir: &Path, request: &serde_json::Value, trouble: Trouble) {
    let owner = fs::metadata(dir).unwrap();
    let file = |name: &str| dir.join(request[name].as_str().unwrap());
    let (state, memory) = (file("snapshot_path"), file("mem_file_path"));
    for (path, what) in [(&state, "state"), (&memory, "memory")] {
        if trouble == Trouble::Link(what) {
            let secret = dir.join("secret");
            fs::write(&secret, "secret").unwrap();
            fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
            let _ = fs::remove_file(path);
            symlink(&secret, path).unwrap();
            return;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        if what == "state" {
            file.set_len(0).unwrap();
            file.write_all_at(b"processors", 0).unwrap();
        } else if trouble == Trouble::NoRoom {
            file.set_len(MEMORY).unwrap();
        } else if request["snapshot_type"] == "Diff" {
            let clone = file.metadata().unwrap();
            assert_eq!((clone.len(), clone.uid()), (MEMORY, owner.uid()), "it is there, and Firecracker's");
            file.write_all_at(CHANGED_PAGE.0, CHANGED_PAGE.1).unwrap();
        } else {
            file.set_len(MEMORY).unwrap();
            file.write_all_at(&vec![0; 4 << 20], 1 << 20).unwrap();
            file.write_all_at(FIRST_PAGE, 0).unwrap();
        }
        chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

/// Reads the host's CONNECT.
pub(crate) async fn accept_connect(vsock: &UnixListener) -> (String, UnixStream) {
    let mut stream = vsock.accept().await.unwrap().0;
    let mut line = String::new();
    BufReader::new((&mut stream).take(64)).read_line(&mut line).await.unwrap();
    (line, stream)
}

/// Answers it, with the first bytes of the agent in the same breath.
pub(crate) async fn grant(stream: &mut UnixStream) {
    stream.write_all(b"OK 1073741824\nagent").await.unwrap();
}
