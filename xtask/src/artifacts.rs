//! What `up`, `test` and `lab` all need first: the release build and the guest artifacts.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::place;
use crate::process::{capture, run};
use crate::progress::Step;

/// Builds `manta` and `manta-agent`.
pub(crate) fn build_release() -> Result<()> {
    let step = Step::begin_talking("build", "cargo build --release");
    run(place::cargo().args(["build", "--release", "--package", "manta", "--package", "manta-agent"]))
        .context("the compiler's messages are above")?;
    step.done("target/release has manta and manta-agent");
    Ok(())
}

/// Makes the guest kernel, the rootfs and the agent's copy; what is up to date is left alone.
pub(crate) fn build_image() -> Result<()> {
    let step = Step::begin_talking("image", "manta image build");
    run(Command::new(place::release("manta")).args(["image", "build"]).current_dir(place::root()))
        .context("cannot make the guest artifacts")?;
    step.done("guest-artifacts is up to date");
    Ok(())
}

/// Builds the whole-system tests, the executable of `crates/cli/tests/system`, and says where it is.
pub(crate) fn build_system_tests() -> Result<PathBuf> {
    let step = Step::begin("system tests", "cargo test --no-run");
    let messages = capture(place::cargo().args([
        "test",
        "--workspace",
        "--test=system",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]))?;
    let program = executable(&messages, "system").context("cargo named no test executable")?;
    step.done("the whole-system tests are built");
    Ok(program)
}

/// The executable of a target in Cargo's JSON messages.
fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == target);
    programs.find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"manta\"},\"executable\":\"/t/manta\"}\n\
                        not json\n\
                        {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"system\"},\"executable\":\"/t/system-1\"}\n";
        assert_eq!(executable(messages, "system"), Some("/t/system-1".into()));
        assert_eq!(executable(messages, "other"), None);
    }
}
