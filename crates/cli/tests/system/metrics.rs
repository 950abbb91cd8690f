//! Where the time goes, as the server tells it: `Server-Timing` headers and `GET /metrics`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::harness::{Answer, Host, Server, eventually, scaled};

/// Stages and total of an answer, milliseconds, and what was found in the pool.
struct Timing {
    stages: Vec<(String, f64)>,
    total: f64,
    pool: Option<String>,
}

fn timing(answer: &Answer) -> Timing {
    let header = answer.header("server-timing").unwrap_or_else(|| panic!("no timing: {}", answer.headers));
    let mut timing = Timing { stages: Vec::new(), total: f64::NAN, pool: None };
    for entry in header.split(", ") {
        match entry.split_once(';').expect("a parameter") {
            ("pool", value) => {
                let name = value.strip_prefix("desc=\"").and_then(|name| name.strip_suffix('"'));
                timing.pool = Some(name.expect("a quoted description").to_owned());
            }
            (name, value) => {
                let ms = value.strip_prefix("dur=").and_then(|ms| ms.parse().ok()).expect("a duration");
                timing.stages.push((name.to_owned(), ms));
            }
        }
    }
    let (last, total) = timing.stages.pop().expect("entries");
    assert_eq!(last, "total", "{header}");
    timing.total = total;
    let sum: f64 = timing.stages.iter().map(|(_, ms)| ms).sum();
    // The header has microseconds; the sum is of binary fractions.
    assert!(0.0 < sum && sum <= total + 1e-6, "{header}");
    timing
}

fn names(timing: &Timing) -> Vec<&str> {
    timing.stages.iter().map(|(name, _)| name.as_str()).collect()
}

/// What a scrape has: each sample by its name and labels as they are written, and the type of each metric.
#[derive(Debug)]
struct Scrape {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

impl Scrape {
    /// Every line must be as the text exposition format has it, and every sample's metric described before.
    fn of(server: &Server) -> Self {
        let answer = server.raw("GET", "/metrics", "", b"");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let (mut samples, mut types, mut help) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for line in answer.text.lines().filter(|line| !line.is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name, rest) = (words.next(), words.next(), words.next());
                let (name, rest) = (name.expect("a name").to_owned(), rest.expect("a text").to_owned());
                match kind {
                    Some("HELP") => assert!(help.insert(name), "described twice: {line}"),
                    Some("TYPE") => assert_eq!(types.insert(name, rest), None, "{line}"),
                    _ => panic!("not a comment of the format: {line}"),
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            let name = series.split('{').next().expect("a name");
            let metric = metric(name, &types);
            assert!(types.contains_key(metric) && help.contains(metric), "not described: {line}");
            assert_eq!(name.ends_with("_total"), types[metric] == "counter", "{line}");
            assert_eq!(samples.insert(series.to_owned(), value), None, "twice: {line}");
        }
        Self { samples, types }
    }

    /// The sum of this metric's samples that have all these labels.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of = |series: &str| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.iter().all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")))
        };
        self.samples.iter().filter(|(series, _)| of(series)).map(|(_, value)| value).sum()
    }
}

/// The metric that a sample belongs to: those of a histogram have suffixes.
fn metric<'a>(sample: &'a str, types: &BTreeMap<String, String>) -> &'a str {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.strip_suffix(suffix));
    base.filter(|base| types.get(*base).is_some_and(|kind| kind == "histogram")).unwrap_or(sample)
}

#[test]
fn answers_tell_where_the_time_went() {
    let _host = Host::enter();
    let server = Server::start();
    let created = server.raw("POST", "/create", "", b"");
    let id = created.body["sandbox_id"].as_str().expect("a sandbox").to_owned();
    let create = timing(&created);
    assert_eq!(
        names(&create),
        ["check", "queue", "claim", "network", "disk", "spawn", "start", "adopt"],
        "nothing waits in the pool of these tests"
    );
    assert_eq!(create.pool.as_deref(), Some("miss"));

    let ran = server.post("/exec", &json!({"sandbox_id": id, "cmd": "sleep 0.2"}));
    let exec = timing(&ran);
    assert_eq!((names(&exec), exec.pool.as_deref()), (vec!["queue", "agent", "run"], None));
    let (_, run) = exec.stages[2];
    assert!((150.0..exec.total).contains(&run), "the guest slept 200 ms, by its clock: {run}");

    let saved = server.post("/snapshot/create", &json!({"sandbox_id": id}));
    let snapshot = saved.body["snapshot_id"].as_str().expect("a snapshot").to_owned();
    assert_eq!(names(&timing(&saved)), ["queue", "draft", "park", "save", "pause", "resume", "commit"]);
    let restored = server.post("/snapshot/restore", &json!({"snapshot_id": snapshot}));
    let restore = timing(&restored);
    assert_eq!(names(&restore), ["check", "queue", "claim", "network", "disk", "spawn", "start", "adopt"]);
    assert_eq!(restore.pool.as_deref(), Some("miss"));

    let destroyed = server.destroy(&id);
    assert_eq!(names(&timing(&destroyed)), ["drain", "kill", "files"]);
    let again = server.destroy(&id);
    assert_eq!((again.status, again.header("server-timing")), (200, None), "nothing was left to do");
}

#[test]
fn an_error_tells_where_the_time_went_too() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let overdue = server.post("/exec", &json!({"sandbox_id": id, "cmd": "sleep 9", "timeout_ms": 300}));
    assert_eq!(overdue.body["code"], "exec_timeout", "{overdue:?}");
    let exec = timing(&overdue);
    assert_eq!(names(&exec), ["queue", "agent", "run"]);
    assert!(exec.total >= 300.0);
    let scrape = Scrape::of(&server);
    let failed = [("operation", "exec"), ("outcome", "error")];
    assert_eq!(scrape.value("manta_operation_seconds_count", &failed), 1.0);
}

#[test]
fn metrics_count_each_operation_once_and_gauges_go_back() {
    let _host = Host::enter();
    let server = Server::start();
    let before = Scrape::of(&server);
    let id = server.create();
    assert_eq!(server.stdout(&id, "printf 12345"), "12345");
    let during = Scrape::of(&server);
    assert_eq!(during.value("manta_sandboxes", &[("state", "running")]), 1.0);
    server.destroy(&id).ok();
    let after = Scrape::of(&server);
    assert_eq!(after.value("manta_sandboxes", &[]), 0.0);

    let grown = |name: &str, labels: &[(&str, &str)]| after.value(name, labels) - before.value(name, labels);
    for (operation, stages) in [
        ("create", &["check", "queue", "claim", "network", "disk", "spawn", "start", "adopt"][..]),
        ("exec", &["queue", "agent", "run"]),
        ("destroy", &["drain", "kill", "files"]),
    ] {
        for outcome in ["ok", "error"] {
            let count =
                grown("manta_operation_seconds_count", &[("operation", operation), ("outcome", outcome)]);
            assert_eq!(count, f64::from(outcome == "ok"), "{operation} {outcome}");
        }
        for stage in stages {
            let labels = [("operation", operation), ("stage", *stage)];
            assert_eq!(grown("manta_stage_seconds_count", &labels), 1.0, "{operation} {stage}");
            let last = [("operation", operation), ("stage", *stage), ("le", "+Inf")];
            assert_eq!(grown("manta_stage_seconds_bucket", &last), 1.0, "{operation} {stage}");
        }
        let labels = [("route", &*format!("/{operation}")), ("status", "200")];
        assert_eq!(grown("manta_http_requests_total", &labels), 1.0, "{operation}");
    }
    let create = [("operation", "create"), ("pool", "miss")];
    assert_eq!(grown("manta_operation_seconds_count", &create), 1.0);
    assert_eq!(grown("manta_exec_output_bytes_total", &[]), 5.0);
    let claims = |result| grown("manta_pool_claims_total", &[("pool", "vmms"), ("result", result)]);
    assert_eq!((claims("hit"), claims("miss")), (0.0, 1.0), "the pool of these tests is empty");
    let claims = |result| grown("manta_pool_claims_total", &[("pool", "slots"), ("result", result)]);
    assert_eq!(claims("hit") + claims("miss"), 1.0);
    assert_eq!(after.value("manta_pool_target", &[("pool", "slots")]), 2.0);
    eventually("the slots are full again", scaled(20), || {
        Scrape::of(&server).value("manta_pool_depth", &[("pool", "slots")]) >= 2.0
    });

    for counter in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_threads"] {
        assert!(after.value(counter, &[]) > 0.0, "{counter}");
    }
    assert!(after.value("process_open_fds", &[]) < after.value("process_max_fds", &[]));
    assert_eq!(after.value("manta_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(after.types["manta_stage_seconds"], "histogram");
}

#[test]
fn what_a_client_makes_up_becomes_no_label() {
    let _host = Host::enter();
    let server = Server::start();
    for path in ["/made-up", "/exec/made-up", "/metrics?made-up=1"] {
        server.raw("GET", path, "x-request-id: made-up\r\n", b"");
    }
    server.raw("BREW", "/create", "", b"");
    let scrape = Scrape::of(&server);
    assert!(!scrape.samples.keys().any(|series| series.contains("made-up")), "{scrape:#?}");
    let count = |labels: &[(&str, &str)]| scrape.value("manta_http_requests_total", labels);
    assert_eq!(count(&[("route", "none"), ("status", "404")]), 2.0);
    assert_eq!(count(&[("route", "/create"), ("status", "405")]), 1.0);
    assert_eq!(count(&[("route", "/metrics"), ("status", "200")]), 1.0);
}

#[test]
fn a_request_has_an_id_and_its_log_lines_carry_it() {
    let _host = Host::enter();
    let server = Server::start();
    let id = server.create();
    let body = json!({"sandbox_id": id, "cmd": "true"}).to_string();
    let headers = "content-type: application/json\r\nx-request-id: my-own.1\r\n";
    let ran = server.raw("POST", "/exec", headers, body.as_bytes());
    assert_eq!(ran.header("x-request-id"), Some("my-own.1"));
    let log = server.log();
    let line = log.lines().find(|line| line.contains("my-own.1")).expect("a line about it");
    assert!(line.contains(&id), "which sandbox it was about: {line}");

    let odd = server.raw("GET", "/healthz", "x-request-id: two words\r\n", b"");
    let [one, other] = [&odd, &server.raw("GET", "/healthz", "", b"")]
        .map(|answer| answer.header("x-request-id").expect("an id").to_owned());
    assert!(one != other && one.len() == 16 && !one.contains(' '), "{one} {other}");
}
