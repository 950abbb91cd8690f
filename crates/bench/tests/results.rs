//! What is said and drawn of result files.

use std::fs;
use std::path::PathBuf;

use insta::assert_snapshot;
use manta_bench::results::{CompareArgs, PlotArgs, ResultsError, compare, plot};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Files that vanish with it.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn put(&self, name: &str, result: &Value) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, result.to_string()).expect("a file");
        path
    }

    fn compare(&self, results: &[(&str, Value)]) -> String {
        let files = results.iter().map(|(name, result)| self.put(name, result)).collect();
        compare(&CompareArgs { files }).expect("a table")
    }

    fn draw(&self, results: &[(&str, Value)]) -> String {
        let files = results.iter().map(|(name, result)| self.put(name, result)).collect();
        let out = self.0.path().join("x.svg");
        assert_eq!(plot(&PlotArgs { files, out: out.clone() }).expect("an image"), "");
        fs::read_to_string(out).expect("the image")
    }
}

/// As version 0.1.0 wrote it before there were modes: `count` creates around `create_ms`.
fn old(count: u64, create_ms: u64) -> Value {
    let sample = |n: u64| {
        // Without any order, and with an outlier now and then.
        let create = create_ms * 1_000_000 + n * 7_919_317 % 40_000_000 + (n % 9 / 8) * 150_000_000;
        let exec = 11_000_000 + n * 104_729_003 % 4_000_000;
        json!({"iteration": n, "tti_ns": create + exec, "create_ns": create, "exec_ns": exec,
            "destroy_ns": 30_000_000})
    };
    json!({
        "iterations_requested": count, "iterations_success": count,
        "samples": (1..=count).map(sample).collect::<Vec<_>>(),
        "conditions": {"cmd": "true", "server": {
            "vmm": {"name": "qemu", "version": "10.0.2", "accelerator": "tcg"},
            "settings": {"MANTA_VMM": "auto", "MANTA_ENABLE_SNAPSHOTS": "0"},
        }},
    })
}

/// As it is written now: a burst that waits longer and longer.
fn burst(count: u64) -> Value {
    let mut result = old(count, 90);
    for (n, sample) in (0_u64..).zip(result["samples"].as_array_mut().expect("samples")) {
        sample["started_ns"] = json!(n * 150_000);
        let waited = |of: &Value| json!(of.as_u64().expect("a time") + n * 20_000_000);
        (sample["tti_ns"], sample["create_ns"]) = (waited(&sample["tti_ns"]), waited(&sample["create_ns"]));
    }
    result["iterations_requested"] = json!(count + 1);
    result["mode"] = json!("burst");
    result["concurrency"] = json!(count + 1);
    result["live"] = json!(8);
    result["score"] = json!(93.25);
    result["conditions"]["server"]["settings"]["MANTA_ENABLE_SNAPSHOTS"] = json!("1");
    result
}

/// As `manta bench-restore` writes it.
fn restores(count: u64, restore_ms: u64) -> Value {
    let mut result = old(count, restore_ms);
    for sample in result["samples"].as_array_mut().expect("samples") {
        sample["restore_tti_ns"] = sample["tti_ns"].take();
        sample["restore_only_ns"] = sample["create_ns"].take();
        sample.as_object_mut().expect("a sample").retain(|name, _| name != "tti_ns" && name != "create_ns");
    }
    result["fixture"] = json!({"snapshot_id": "snap-x"});
    result
}

#[test]
fn the_table() {
    let files = Files::new();
    let results = [
        ("boot.json", old(50, 800)),
        ("boot-again.json", old(30, 801)),
        ("golden.json", burst(49)),
        ("few.json", old(9, 100)),
    ];
    assert_snapshot!(files.compare(&results));
}

#[test]
fn a_result_does_not_differ_from_itself_and_does_from_one_moved_by_a_tenth() {
    let files = Files::new();
    let same = files.compare(&[("a.json", old(50, 800)), ("b.json", old(50, 800))]);
    assert!(same.contains("B and A: no difference of the median TTI shown."), "{same}");
    assert!(!same.contains("differs") && !same.contains("WARNING"), "{same}");
    let slower = files.compare(&[("a.json", old(50, 800)), ("b.json", old(50, 880))]);
    assert!(slower.contains("B was slower than A: its median TTI by 80.00 ms"), "{slower}");
    let faster = files.compare(&[("a.json", restores(50, 880)), ("b.json", restores(50, 800))]);
    assert!(faster.contains("B was faster than A: its median TTI by 80.00 ms"), "{faster}");
    assert!(faster.contains("\nrestore\n") && faster.contains("50 of 50, restores, sequential"), "{faster}");
}

#[test]
fn the_accelerator_and_failures_are_warned_of() {
    let files = Files::new();
    let mut kvm = old(50, 100);
    kvm["conditions"]["server"]["vmm"]["accelerator"] = json!("kvm");
    kvm["iterations_requested"] = json!(60);
    let table = files.compare(&[("tcg.json", old(50, 800)), ("kvm.json", kvm)]);
    for line in [
        "   WARNING: never compare across accelerators.",
        "   WARNING: iterations failed; their times are not in these numbers.",
        r#"   differs: server/vmm/accelerator: A "tcg", B "kvm""#,
    ] {
        assert!(table.lines().any(|told| told == line), "{line} is not in\n{table}");
    }
}

#[test]
fn the_image() {
    let files = Files::new();
    let results =
        [("boot.json", old(12, 800)), ("<golden> & burst.json", burst(9)), ("c.json", restores(5, 90))];
    let image = files.draw(&results);
    assert_eq!(files.draw(&results), image, "the same files give the same image");
    assert_snapshot!(image);
}

#[test]
fn one_sample_alone_and_very_slow_ones_can_be_drawn() {
    let files = Files::new();
    for (result, unit) in [(old(1, 0), "TTI (ms)"), (old(20, 12_000), "TTI (s)")] {
        let image = files.draw(&[("a.json", result)]);
        assert!(image.contains(unit) && !image.contains("NaN") && !image.contains("inf"), "{image}");
    }
}

#[test]
fn files_that_are_no_results_are_told_apart() {
    let files = Files::new();
    let good = files.put("good.json", &old(10, 1));
    let error = |path: PathBuf| compare(&CompareArgs { files: vec![good.clone(), path] }).unwrap_err();
    let missing = error(files.0.path().join("missing.json"));
    assert!(matches!(missing, ResultsError::Read { .. }), "{missing:?}");
    let other = error(files.put("other.json", &json!({"name": "manta"})));
    assert!(matches!(other, ResultsError::Parse { .. }), "{other:?}");
    let empty = error(files.put("empty.json", &old(0, 1)));
    assert!(matches!(empty, ResultsError::Empty { .. }), "{empty:?}");
    let nowhere = files.0.path().join("nowhere/x.svg");
    let unwritten = plot(&PlotArgs { files: vec![good.clone()], out: nowhere }).unwrap_err();
    assert!(matches!(unwritten, ResultsError::Write { .. }), "{unwritten:?}");
}
