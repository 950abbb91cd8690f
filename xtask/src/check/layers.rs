//! Which crate may use which, as ARCHITECTURE.md draws it: dependencies point downwards only.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::place;
use crate::process::capture;

/// Every crate, from the top down, and the crates of this workspace that it may use.
const MAY_USE: &[(&str, &[&str])] = &[
    ("manta", &["manta-server", "manta-image", "manta-bench"]),
    ("manta-server", &["manta-engine", "manta-vmm", "manta-host", "manta-agent-proto", "manta-api"]),
    ("manta-engine", &["manta-vmm", "manta-host", "manta-agent-proto", "manta-api"]),
    ("manta-vmm", &["manta-host"]),
    ("manta-image", &["manta-host"]),
    ("manta-host", &[]),
    ("manta-bench", &["manta-client", "manta-api"]),
    ("manta-client", &["manta-api"]),
    ("manta-api", &[]),
    ("manta-agent", &["manta-agent-proto"]),
    ("manta-agent-proto", &[]),
    ("xtask", &[]),
];

/// One line for each dependency that points the wrong way. What only tests use does not count.
pub(super) fn broken() -> Result<Vec<String>> {
    let metadata = capture(place::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    Ok(uses(&metadata).into_iter().filter_map(|(krate, used)| judge(&krate, &used)).collect())
}

/// Pairs of a crate of the workspace and one that it uses.
fn uses(metadata: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let members: Vec<_> = packages.iter().map(|package| text(&package["name"])).collect();
    let mut pairs = Vec::new();
    for package in &packages {
        for dependency in list(&package["dependencies"]) {
            let name = text(&dependency["name"]);
            if dependency["kind"] != "dev" && members.contains(&name) {
                pairs.push((text(&package["name"]), name));
            }
        }
    }
    pairs
}

fn judge(krate: &str, used: &str) -> Option<String> {
    match MAY_USE.iter().find(|(name, _)| *name == krate) {
        Some((_, allowed)) if allowed.contains(&used) => None,
        Some(_) => Some(format!("{krate} must not use {used}")),
        None => Some(format!("{krate} has no place in xtask/src/check/layers.rs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_only_points_downwards() {
        for (position, (name, allowed)) in MAY_USE.iter().enumerate() {
            for used in *allowed {
                let below = MAY_USE[position..].iter().skip(1).any(|(other, _)| other == used);
                assert!(below, "{name} may use {used}, which is not below it");
            }
        }
    }

    #[test]
    fn an_upward_use_is_found_and_one_of_tests_is_not() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "manta-host", "dependencies": [
                { "name": "manta-engine", "kind": null },
                { "name": "manta-vmm", "kind": "dev" },
                { "name": "libc", "kind": null },
            ] },
            { "name": "manta-engine", "dependencies": [{ "name": "manta-host", "kind": null }] },
            { "name": "manta-vmm", "dependencies": [] },
        ] });
        let found: Vec<_> = uses(&metadata).iter().filter_map(|(krate, used)| judge(krate, used)).collect();
        assert_eq!(found, ["manta-host must not use manta-engine"]);
        assert!(judge("manta-new", "manta-api").is_some());
    }
}
