//! `GET /metrics`: what the engine and the routes recorded, for Prometheus. Owns the server's metrics, their names
//! and help texts, and the recorder; those of the engine are the engine's.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use manta_api::{ErrorBody, ErrorCode};
use manta_engine::Engine;
use manta_host::{facts, usage};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::task::spawn_blocking;
use tokio::time::MissedTickBehavior;
use tracing::{error, warn};

use crate::error::ApiError;
use crate::routes::AppState;

/// Upper bounds of the buckets, seconds: from a claim of a waiting sandbox to the default limits of a boot and a
/// command, three a decade, so that a percentile is known within a factor of 2.5.
const BUCKETS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];
/// Recorded times are kept one by one until they are put into their buckets: at each scrape, and this often.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// Version 0.0.4 of the text exposition format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers, by route and status.
const HTTP_REQUESTS: &str = "manta_http_requests_total";
/// Requests that were turned away, by code.
const REJECTIONS: &str = "manta_rejections_total";
/// The codes of those: who may not call, or not so much, or finds the host full.
const REJECTED: [(ErrorCode, &str); 11] = [
    (ErrorCode::Unauthorized, "unauthorized"),
    (ErrorCode::Forbidden, "forbidden"),
    (ErrorCode::KeySandboxLimit, "key_sandbox_limit"),
    (ErrorCode::KeyRateLimit, "key_rate_limit"),
    (ErrorCode::HostFull, "host_full"),
    (ErrorCode::HostMemoryFull, "host_memory_full"),
    (ErrorCode::HostDiskFull, "host_disk_full"),
    (ErrorCode::SnapshotStorageFull, "snapshot_storage_full"),
    (ErrorCode::Overloaded, "overloaded"),
    (ErrorCode::SandboxBusy, "sandbox_busy"),
    (ErrorCode::JournalUnwritable, "journal_unwritable"),
];
/// From a request's head to its answer's.
const HTTP_REQUEST_SECONDS: &str = "manta_http_request_seconds";
/// Always 1; its labels tell what is running.
const BUILD_INFO: &str = "manta_build_info";
/// The names that Prometheus' own clients give to these.
const START_TIME: &str = "process_start_time_seconds";
const RESIDENT_MEMORY: &str = "process_resident_memory_bytes";
const THREADS: &str = "process_threads";
const OPEN_FDS: &str = "process_open_fds";
const MAX_FDS: &str = "process_max_fds";
const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// What was recorded so far. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Has all metrics recorded from now on; once in a process, before anything keeps a metric.
    pub(crate) fn install() -> Result<Self, BuildError> {
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS)?.install_recorder()?;
        manta_engine::describe_metrics();
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        gauge!(START_TIME).set(now.as_secs_f64());
        Ok(Self(recorder))
    }

    /// Bounds what is kept when nobody scrapes; runs until it is dropped.
    pub(crate) async fn keep_up(self) {
        let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.0.run_upkeep();
        }
    }

    /// All metrics as they are now. Blocking, about a millisecond.
    fn render(&self, engine: &Engine) -> String {
        engine.measure();
        let cpu = measure_process();
        let mut text = self.0.render();
        if let Some(cpu) = cpu {
            // By hand: the recorder's counters are whole numbers.
            let _ = write!(
                text,
                "# HELP {CPU_SECONDS} Processor time used by the server, in seconds; without its VMMs.\n\
                 # TYPE {CPU_SECONDS} counter\n{CPU_SECONDS} {}\n",
                cpu.as_secs_f64()
            );
        }
        text
    }
}

fn describe() {
    describe_counter!(HTTP_REQUESTS, Unit::Count, "Answered HTTP requests, by route and status.");
    describe_counter!(
        REJECTIONS,
        Unit::Count,
        "Requests turned away before any work began: no valid key, a limit reached, no room."
    );
    for (_, code) in REJECTED {
        counter!(REJECTIONS, "code" => code).increment(0);
    }
    describe_histogram!(
        HTTP_REQUEST_SECONDS,
        Unit::Seconds,
        "Time from an HTTP request's head to its answer's head, in seconds."
    );
    describe_gauge!(BUILD_INFO, Unit::Count, "Always 1; the labels tell what is running.");
    describe_gauge!(START_TIME, Unit::Seconds, "When the server started, in seconds since 1970.");
    describe_gauge!(RESIDENT_MEMORY, Unit::Bytes, "Memory of the server in RAM, in bytes; without its VMMs.");
    describe_gauge!(THREADS, Unit::Count, "Threads of the server.");
    describe_gauge!(OPEN_FDS, Unit::Count, "Open file descriptors of the server.");
    describe_gauge!(MAX_FDS, Unit::Count, "How many file descriptors the server may have open.");
}

/// A request was answered. `route` is none of the client's choosing.
pub(crate) fn answered(route: &str, status: StatusCode, took: Duration) {
    let status = status.as_str().to_owned();
    counter!(HTTP_REQUESTS, "route" => route.to_owned(), "status" => status).increment(1);
    histogram!(HTTP_REQUEST_SECONDS, "route" => route.to_owned()).record(took);
}

/// A request is answered with this error; counted if that turned it away.
pub(crate) fn rejected(code: ErrorCode) {
    if let Some((_, code)) = REJECTED.iter().find(|(other, _)| *other == code) {
        counter!(REJECTIONS, "code" => *code).increment(1);
    }
}

/// Has the gauges tell what this process uses; gives its processor time.
fn measure_process() -> Option<Duration> {
    let used = usage::usage().inspect_err(|error| warn!(%error, "cannot tell what the server uses")).ok()?;
    gauge!(RESIDENT_MEMORY).set(used.resident_bytes as f64);
    gauge!(THREADS).set(used.threads as f64);
    gauge!(OPEN_FDS).set(used.descriptors as f64);
    gauge!(MAX_FDS).set(facts::open_files().soft.map_or(f64::INFINITY, |limit| limit as f64));
    Some(used.cpu)
}

/// Metrics for Prometheus: stages and operations, sandboxes, pools, HTTP requests, this process.
#[utoipa::path(
    get,
    path = "/metrics",
    responses(
        (status = 200, body = String, content_type = "text/plain; version=0.0.4",
            description = "Prometheus' text exposition format"),
        (status = 500, body = ErrorBody),
    )
)]
pub(crate) async fn metrics(State(state): State<AppState>) -> Result<impl IntoResponse, ApiError> {
    let (recorded, engine) = (state.metrics.clone(), Arc::clone(&state.engine));
    let rendered = spawn_blocking(move || recorded.render(&engine)).await;
    let text = rendered.map_err(|panicked| {
        error!(%panicked, "internal error");
        ApiError::new(ErrorCode::Internal, "the metrics could not be rendered; the server's log says how")
    })?;
    Ok(([(CONTENT_TYPE, TEXT)], text))
}
