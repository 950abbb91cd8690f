//! The interface as such: health, listing, the OpenAPI document, and the benchmark as a client.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Host, Server};

#[test]
fn health_tells_the_conditions_of_a_measurement() {
    let _host = Host::enter();
    let server = Server::start();
    let health = server.get("/healthz");
    assert_eq!(health["status"], "ok", "{health:#}");
    assert_eq!(health["degraded"], json!([]));
    assert_eq!(health["vmm"]["name"], std::env::var("MANTA_TEST_VMM").unwrap_or_else(|_| "qemu".into()));
    for (group, fields) in [
        ("vmm", &["version", "accelerator", "reason"][..]),
        ("host", &["cpu", "kernel", "filesystem", "storage"]),
        ("settings", &["MANTA_MEM_MIB", "MANTA_VCPUS", "MANTA_HOST_IFACE"]),
    ] {
        for field in fields {
            let value = &health[group][field];
            assert!(value.as_str().is_some_and(|text| !text.is_empty()), "{group}.{field}: {value}");
        }
    }
    assert_eq!(health["settings"]["MANTA_HOST_IFACE"], "up0", "the default route's interface is found");
}

#[test]
fn a_sandbox_is_listed_with_its_process_and_addresses() {
    let _host = Host::enter();
    let server = Server::start();
    let (first, second) = (server.create(), server.create());
    let infos = [&first, &second].map(|id| server.info(id).expect("listed"));
    assert!(infos.iter().all(|info| info["state"] == "running"), "{infos:#?}");
    assert_ne!(infos[0]["host_address"], infos[1]["host_address"]);
    assert_eq!(infos[0]["guest_address"], infos[1]["guest_address"], "clones are alike inside");
    let mut listed: Vec<_> = infos.iter().map(|info| info["pid"].as_u64().expect("a pid")).collect();
    let mut found: Vec<_> = server.vmms().into_iter().map(u64::from).collect();
    listed.sort_unstable();
    found.sort_unstable();
    assert_eq!(listed, found);
    let guest = server.stdout(&first, "ip -4 -o addr show scope global | awk '{print $4}'");
    assert_eq!(guest.split('/').next(), infos[0]["guest_address"].as_str());
    server.destroy(&first).ok();
    assert!(server.info(&first).is_none());
    assert_eq!(server.info(&second).expect("listed")["state"], "running");
}

#[test]
fn doctor_tells_what_is_missing_and_what_to_do() {
    let _host = Host::enter();
    let doctor = |settings: &[(&'static str, std::ffi::OsString)]| {
        let mut command = Command::new(crate::harness::binary());
        command.args(["doctor", "--json"]).envs(crate::harness::artifacts()).envs(settings.iter().cloned());
        let run = command.output().expect("run doctor");
        let report: Value = serde_json::from_slice(&run.stdout).expect("one JSON object on stdout");
        (run.status.success(), report)
    };
    let (works, report) = doctor(&[]);
    assert!(works, "{report:#}");
    assert!(
        ["usable", "unusable", "absent"].contains(&report["kvm"]["verdict"].as_str().expect("a verdict"))
    );
    let expected = std::env::var("MANTA_TEST_VMM").unwrap_or_else(|_| "qemu".into());
    assert_eq!(report["vmm"], expected, "it chooses what the server runs on");
    let finding = |report: &Value, check: &str| {
        let findings = report["findings"].as_array().expect("findings");
        findings.iter().find(|finding| finding["check"] == check).expect(check).clone()
    };
    for check in
        ["kvm", "namespaces", "network", "egress", "kernel", "rootfs", "agent", "work dir", "cgroups"]
    {
        finding(&report, check);
    }
    assert_eq!(finding(&report, "network")["level"], "ok");
    assert_eq!(finding(&report, "egress")["found"], "up0");

    let (works, report) = doctor(&[("MANTA_KERNEL_PATH", "/no/such/file".into())]);
    assert!(!works);
    let kernel = finding(&report, "kernel");
    assert_eq!(kernel["level"], "error");
    assert!(kernel["advice"].as_str().expect("advice").contains("manta image build"), "{kernel}");
}

#[test]
fn the_openapi_document_is_the_golden_one() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../openapi/manta.json");
    let generated = manta_server::openapi();
    if std::env::var_os("MANTA_UPDATE_GOLDEN").is_some() {
        std::fs::write(golden, &generated).expect("write the golden file");
    }
    // Not there in the emulated KVM host, where only binaries are; the native run compares.
    let Ok(expected) = std::fs::read_to_string(golden) else {
        assert!(std::env::var_os("MANTA_TEST_BIN").is_some(), "{golden} is missing");
        return;
    };
    assert!(generated == expected, "the interface changed: review it, then run with MANTA_UPDATE_GOLDEN=1");
    let paths: Vec<_> = serde_json::from_str::<Value>(&generated).expect("JSON")["paths"]
        .as_object()
        .expect("paths")
        .keys()
        .cloned()
        .collect();
    let snapshots = ["create", "delete", "list", "restore"].map(|route| format!("/snapshot/{route}"));
    let others = ["/create", "/destroy", "/events", "/exec", "/healthz", "/metrics", "/sandboxes"];
    let one = ["/sandboxes/{id}", "/sandboxes/{id}/extend"];
    let [others, one] =
        [&others[..], &one].map(|paths| paths.iter().map(ToString::to_string).collect::<Vec<_>>());
    let expected = [&others[..], &one, &snapshots];
    assert_eq!(paths, expected.concat());
}

#[test]
fn the_benchmark_measures_this_server_and_leaves_nothing() {
    let _host = Host::enter();
    let server = Server::start();
    let binary = crate::harness::binary();
    let endpoint = format!("http://localhost:{}", server.address.port());
    let bench = |cmd: &str| {
        Command::new(&binary)
            .args(["bench", "--iterations", "2", "--warmup", "0", "--endpoint", &endpoint, "--cmd", cmd])
            .output()
            .expect("run the benchmark")
    };
    let run = bench("echo benchmark");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let result: Value = serde_json::from_slice(&run.stdout).expect("one JSON object on stdout");
    assert_eq!((&result["iterations_requested"], &result["iterations_success"]), (&json!(2), &json!(2)));
    let ns = |name: &str| result[name].as_u64().unwrap_or_else(|| panic!("{name}: {result:#}"));
    assert!(0 < ns("min_ns") && ns("min_ns") <= ns("p50_ns") && ns("p50_ns") <= ns("p95_ns"));
    assert!(ns("p95_ns") <= ns("p99_ns") && ns("p99_ns") <= ns("max_ns"));
    assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));

    let failed = bench("exit 1");
    assert!(!failed.status.success(), "a command that always fails must not count as success");
    assert_eq!(server.get("/sandboxes"), json!({"sandboxes": []}));
}
