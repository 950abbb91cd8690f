//! A server that speaks the interface on the loopback, has no microVMs, and does as it is scripted.

#![expect(clippy::unwrap_used, reason = "Clippy's exemption for tests does not reach their helpers")]
#![allow(dead_code, reason = "each file of tests uses its part of it")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONNECTION;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use manta_api::SandboxId;
use manta_bench::BenchArgs;
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

/// What the server does with a request.
pub(crate) enum Answer {
    /// What it is asked.
    Normal,
    /// Nothing, and says this.
    Instead(u16, Value),
    /// What it is asked, after interrupting this process and seeing that it noticed.
    Interrupt,
    /// What it is asked, and it is that much work.
    Slow(Duration),
    /// Nothing, ever.
    Hang,
    /// What it is asked, for the last time: closes the connection and takes no other.
    Close,
}

/// The answer to the n-th request (from 1) of a route.
pub(crate) type Script = fn(route: &str, n: usize) -> Answer;

#[derive(Default)]
struct Record {
    calls: Vec<String>,
    alive: BTreeSet<String>,
    created: u8,
    listener: Option<JoinHandle<()>>,
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    script: Script,
    record: Arc<Mutex<Record>>,
}

impl Server {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { endpoint, script, record: Arc::default() };
        let router = Router::new()
            .route("/healthz", get(health))
            .route("/create", post(create))
            .route("/exec", post(exec))
            .route("/destroy", post(destroy))
            .with_state(server.clone());
        let listening = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        server.record.lock().unwrap().listener = Some(listening);
        server
    }

    /// The flags for it, quick ones.
    pub(crate) fn args(&self, iterations: u32, warmup: u32) -> BenchArgs {
        BenchArgs {
            endpoint: self.endpoint.clone(),
            iterations,
            warmup,
            cmd: r#"echo "benchmark""#.to_owned(),
            timeout: Duration::from_secs(10),
        }
    }

    /// The routes called so far, in order, without `/healthz`.
    pub(crate) fn calls(&self) -> String {
        self.record.lock().unwrap().calls.join(" ")
    }

    /// Sandboxes that were created and not destroyed.
    pub(crate) fn alive(&self) -> Vec<String> {
        self.record.lock().unwrap().alive.iter().cloned().collect()
    }

    async fn act(&self, route: &str, act: impl FnOnce(&mut Record) -> (u16, Value)) -> Response {
        let n = {
            let mut record = self.record.lock().unwrap();
            record.calls.push(route.to_owned());
            record.calls.iter().filter(|call| *call == route).count()
        };
        let answer = (self.script)(route, n);
        let (status, body) = match answer {
            Answer::Hang => std::future::pending().await,
            Answer::Slow(work) => {
                tokio::time::sleep(work).await;
                act(&mut self.record.lock().unwrap())
            }
            Answer::Interrupt => {
                let mut seen = signal(SignalKind::interrupt()).unwrap();
                kill_process(getpid(), Signal::INT).unwrap();
                seen.recv().await;
                act(&mut self.record.lock().unwrap())
            }
            Answer::Instead(status, ref body) => (status, body.clone()),
            Answer::Normal | Answer::Close => act(&mut self.record.lock().unwrap()),
        };
        let answered = (StatusCode::from_u16(status).unwrap(), Json(body));
        match answer {
            Answer::Close => {
                let listener = self.record.lock().unwrap().listener.take().unwrap();
                listener.abort();
                // The address is free once the task is gone, not before.
                let _ = listener.await;
                ([(CONNECTION, "close")], answered).into_response()
            }
            _ => answered.into_response(),
        }
    }
}

async fn health() -> Json<Value> {
    Json(json!({
        "status": "ok", "degraded": [], "version": "0.1.0",
        "vmm": {"name": "qemu", "version": "10.0.2", "accelerator": "tcg", "reason": "no usable KVM"},
        "sandboxes": 0, "max_sandboxes": 64,
        "host": {"cpu": "a cpu", "cpus": 2, "mem_mib": 24038, "kernel": "6.18", "filesystem": "ext4",
            "storage": "vda"},
        "settings": {"MANTA_VMM": "auto"},
    }))
}

async fn create(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    assert_eq!(body, json!({}));
    let act = |record: &mut Record| {
        record.created += 1;
        let id = SandboxId::from_random([record.created; 10]).to_string();
        record.alive.insert(id.clone());
        (200, json!({"sandbox_id": id}))
    };
    server.act("create", act).await
}

async fn exec(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        assert!(record.alive.contains(body["sandbox_id"].as_str().unwrap()));
        assert!(body["cmd"].is_string());
        (200, json!({"stdout": "benchmark\n", "stderr": "", "exit_code": 0}))
    };
    server.act("exec", act).await
}

async fn destroy(State(server): State<Server>, Json(body): Json<Value>) -> Response {
    let act = |record: &mut Record| {
        assert!(record.alive.remove(body["sandbox_id"].as_str().unwrap()));
        (200, json!({"sandbox_id": body["sandbox_id"], "status": "destroyed"}))
    };
    server.act("destroy", act).await
}
