//! A server that speaks the interface on the loopback, has no microVMs, and does as it is scripted.

#![expect(clippy::unwrap_used, reason = "Clippy's exemption for tests does not reach their helpers")]
#![allow(dead_code, reason = "each file of tests uses its part of it")]

pub(crate) mod signals;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use manta_api::{SandboxId, SnapshotId};
use manta_bench::restore::RestoreArgs;
use manta_bench::{BenchArgs, CommonArgs, Mode, PoolArgs};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const MUTATION: &str = "mkdir -p /opt/manta && printf restored-ok > /opt/manta/state.txt";
const SANITY: &str = "cat /opt/manta/state.txt";

/// What the server does with a request.
pub(crate) enum Answer {
    /// What it is asked.
    Normal,
    /// Nothing, and says this.
    Instead(u16, Value),
    /// What it is asked, but says this.
    But(u16, Value),
    /// What it is asked, after interrupting this process and seeing that it noticed.
    Interrupt,
    /// What it is asked, and it is that much work.
    Slow(Duration),
    /// What it is asked, once the route was called that often.
    Together(usize),
    /// Nothing, ever.
    Hang,
    /// What it is asked, for the last time: closes the connection and takes no other.
    Close,
}

/// The answer to the n-th request (from 1) of a route.
pub(crate) type Script = fn(route: &str, n: usize) -> Answer;

/// What the server says of its pools, beside what it does.
#[derive(Clone, Copy)]
pub(crate) struct Said {
    /// The `Server-Timing` of the n-th create or restore (from 1).
    pub(crate) timing: fn(n: usize) -> Option<&'static str>,
    /// `pools` of the n-th `GET /healthz` (from 1).
    pub(crate) pools: fn(n: usize) -> Option<Value>,
}

impl Said {
    pub(crate) const NOTHING: Self = Self { timing: |_| None, pools: |_| None };
}

#[derive(Default)]
struct Record {
    asked_for_health: usize,
    calls: Vec<String>,
    alive: BTreeMap<String, Sandbox>,
    snapshots: BTreeMap<String, Snapshot>,
    created: u8,
    /// Sandboxes that were alive at once, at most.
    most: usize,
    listener: Option<JoinHandle<()>>,
}

#[derive(Clone, Default)]
struct Sandbox {
    /// The fixture's file is there.
    mutated: bool,
    restored_from: Option<String>,
}

struct Snapshot {
    of: String,
    name: Value,
    mutated: bool,
}

impl Record {
    fn sandbox(&mut self, sandbox: Sandbox) -> (u16, Value) {
        self.created += 1;
        let id = SandboxId::from_random([self.created; 10]).to_string();
        self.alive.insert(id.clone(), sandbox);
        self.most = self.most.max(self.alive.len());
        (200, json!({"sandbox_id": id}))
    }
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    script: Script,
    said: Said,
    record: Arc<Mutex<Record>>,
    /// Changes with every call.
    called: watch::Sender<()>,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        Self::saying(Said::NOTHING, script).await
    }

    /// One that has pools.
    pub(crate) async fn saying(said: Said, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { endpoint, script, said, record: Arc::default(), called: watch::channel(()).0 };
        let router = Router::new()
            .route("/healthz", get(health))
            .route("/create", post(create))
            .route("/exec", post(exec))
            .route("/destroy", post(destroy))
            .route("/sandboxes", get(sandboxes))
            .route("/snapshot/create", post(snapshot))
            .route("/snapshot/restore", post(restore))
            .route("/snapshot/delete", post(delete))
            .route("/snapshot/list", get(snapshots))
            .with_state(server.clone());
        let listening = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server.record.lock().unwrap().listener = Some(listening);
        server
    }

    /// The flags for it, quick ones.
    pub(crate) fn args(&self, iterations: u32, warmup: u32) -> BenchArgs {
        BenchArgs {
            common: self.common(iterations, warmup),
            cmd: r#"echo "benchmark""#.to_owned(),
            mode: Mode::Sequential,
            concurrency: None,
            live: 0,
        }
    }

    /// The same for restores, with the default commands.
    pub(crate) fn restore_args(&self, iterations: u32, warmup: u32) -> RestoreArgs {
        RestoreArgs {
            common: self.common(iterations, warmup),
            mutation_cmd: MUTATION.to_owned(),
            sanity_cmd: SANITY.to_owned(),
            expect_stdout: "restored-ok".to_owned(),
        }
    }

    fn common(&self, iterations: u32, warmup: u32) -> CommonArgs {
        let endpoint = self.endpoint.clone();
        let pool = PoolArgs { pool_aware: false, pool_wait_s: 10 };
        let (api_key, ca_cert) = (None, None);
        CommonArgs { endpoint, iterations, warmup, timeout: Duration::from_secs(10), pool, api_key, ca_cert }
    }

    /// The routes called so far, in order, without `/healthz`.
    pub(crate) fn calls(&self) -> String {
        self.record.lock().unwrap().calls.join(" ")
    }

    /// Sandboxes that were created and not destroyed.
    pub(crate) fn alive(&self) -> Vec<String> {
        self.record.lock().unwrap().alive.keys().cloned().collect()
    }

    /// Sandboxes that were alive at once, at most.
    pub(crate) fn most(&self) -> usize {
        self.record.lock().unwrap().most
    }

    /// How often `GET /healthz` was called.
    pub(crate) fn asked_for_health(&self) -> usize {
        self.record.lock().unwrap().asked_for_health
    }

    fn count(&self, route: &str) -> usize {
        self.record.lock().unwrap().calls.iter().filter(|call| *call == route).count()
    }

    /// Snapshots that were made and not deleted.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        self.record.lock().unwrap().snapshots.keys().cloned().collect()
    }

    async fn act(&self, route: &str, act: impl FnOnce(&mut Record) -> (u16, Value)) -> Response {
        let n = {
            let mut record = self.record.lock().unwrap();
            record.calls.push(route.to_owned());
            record.calls.iter().filter(|call| *call == route).count()
        };
        self.called.send_replace(());
        let answer = (self.script)(route, n);
        let (status, body) = match answer {
            Answer::Together(times) => {
                let mut called = self.called.subscribe();
                called.wait_for(|()| self.count(route) >= times).await.unwrap();
                act(&mut self.record.lock().unwrap())
            }
            Answer::Hang => std::future::pending().await,
            Answer::Slow(work) => {
                tokio::time::sleep(work).await;
                act(&mut self.record.lock().unwrap())
            }
            Answer::Interrupt => {
                let mut seen = signal(SignalKind::interrupt()).unwrap();
                signals::send(Signal::INT);
                seen.recv().await;
                act(&mut self.record.lock().unwrap())
            }
            Answer::Instead(status, ref body) => (status, body.clone()),
            Answer::But(status, ref body) => {
                act(&mut self.record.lock().unwrap());
                (status, body.clone())
            }
            Answer::Normal | Answer::Close => act(&mut self.record.lock().unwrap()),
        };
        let timing = matches!(route, "create" | "restore").then(|| (self.said.timing)(n)).flatten();
        let timing = timing.map(|timing| [("server-timing", timing)]);
        let status = StatusCode::from_u16(status).unwrap();
        let answered = match timing {
            Some(timing) => (status, timing, Json(body)).into_response(),
            None => (status, Json(body)).into_response(),
        };
        match answer {
            Answer::Close => {
                let listener = self.record.lock().unwrap().listener.take().unwrap();
                listener.abort();
                // The address is free once the task is gone, not before.
                let _ = listener.await;
                ([(CONNECTION, "close")], answered).into_response()
            }
            _ => answered,
        }
    }
}

async fn health(State(server): State<Server>) -> Json<Value> {
    let n = {
        let mut record = server.record.lock().unwrap();
        record.asked_for_health += 1;
        record.asked_for_health
    };
    let mut health = json!({
        "status": "ok", "degraded": [], "version": "0.1.0",
        "vmm": {"name": "qemu", "version": "10.0.2", "accelerator": "tcg", "reason": "no usable KVM"},
        "sandboxes": 0, "max_sandboxes": 64,
        "host": {"cpu": "a cpu", "cpus": 2, "mem_mib": 24038, "kernel": "6.18", "filesystem": "ext4",
            "storage": "vda"},
        "settings": {"MANTA_VMM": "auto"},
    });
    if let Some(pools) = (server.said.pools)(n) {
        health["pools"] = pools;
    }
    Json(health)
}

async fn create(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    assert_eq!(body, json!({}));
    server.act("create", |record| record.sandbox(Sandbox::default())).await
}

async fn exec(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        let sandbox = record.alive.get_mut(body["sandbox_id"].as_str().unwrap()).unwrap();
        let (stdout, exit_code) = match body["cmd"].as_str().unwrap() {
            MUTATION => {
                sandbox.mutated = true;
                ("", 0)
            }
            SANITY if sandbox.mutated => ("restored-ok", 0),
            SANITY => ("", 1),
            _ => ("benchmark\n", 0),
        };
        (200, json!({"stdout": stdout, "stderr": "", "exit_code": exit_code}))
    };
    server.act("exec", act).await
}

async fn destroy(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        assert!(record.alive.remove(body["sandbox_id"].as_str().unwrap()).is_some());
        (200, json!({"sandbox_id": body["sandbox_id"], "status": "destroyed"}))
    };
    server.act("destroy", act).await
}

async fn sandboxes(State(server): State<Server>) -> Response {
    let act = |record: &mut Record| {
        let info = |(id, sandbox): (&String, &Sandbox)| {
            let mut info = json!({"id": id, "state": "running", "vmm": "qemu", "created_unix_s": 1,
                "guest_address": "172.16.0.2", "host_address": "198.18.0.2"});
            if let Some(snapshot) = &sandbox.restored_from {
                info["snapshot_id"] = json!(snapshot);
            }
            info
        };
        (200, json!({"sandboxes": record.alive.iter().map(info).collect::<Vec<_>>()}))
    };
    server.act("sandboxes", act).await
}

async fn snapshot(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        let of = body["sandbox_id"].as_str().unwrap().to_owned();
        let mutated = record.alive[&of].mutated;
        record.created += 1;
        let id = SnapshotId::from_random([record.created; 10]).to_string();
        record.snapshots.insert(id.clone(), Snapshot { of, name: body["name"].clone(), mutated });
        (200, json!({"snapshot_id": id, "pause_us": 1500}))
    };
    server.act("snapshot", act).await
}

async fn restore(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        let id = body["snapshot_id"].as_str().unwrap();
        let mutated = record.snapshots[id].mutated;
        record.sandbox(Sandbox { mutated, restored_from: Some(id.to_owned()) })
    };
    server.act("restore", act).await
}

async fn delete(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| match record.snapshots.remove(body["snapshot_id"].as_str().unwrap()) {
        Some(_) => (200, json!({"snapshot_id": body["snapshot_id"], "status": "deleted"})),
        None => (404, json!({"error": "no such snapshot", "code": "snapshot_not_found"})),
    };
    server.act("delete", act).await
}

async fn snapshots(State(server): State<Server>) -> Response {
    let act = |record: &mut Record| {
        let info = |(id, snapshot): (&String, &Snapshot)| {
            json!({"id": id, "name": snapshot.name, "created_unix_ms": 1, "sandbox_id": snapshot.of,
                "vmm": "qemu", "vmm_version": "10.0.2", "vcpus": 1, "mem_mib": 256, "restorable": true,
                "disk_bytes": {"state": 13_000, "memory": 1_100_000, "disk": 4096}})
        };
        (200, json!({"snapshots": record.snapshots.iter().map(info).collect::<Vec<_>>()}))
    };
    server.act("snapshots", act).await
}
