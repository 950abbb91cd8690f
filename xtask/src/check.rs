//! `cargo xtask check`: what needs no build products and no root. Formatting, lints, documentation, the
//! house rules of CONTRIBUTING.md ([`rules`]) and the direction of dependencies ([`layers`]).

mod layers;
mod rules;

use anyhow::{Context, Result, bail};

use crate::place;
use crate::process::{answers, run};
use crate::progress::{Step, skipped};

/// The documentation is for those who work on Manta: it shows private items, and links to them.
const RUSTDOC_LINTS: &str = "--deny warnings --allow rustdoc::private_intra_doc_links";

/// Runs every check; the first that fails ends it.
pub(crate) fn run_all() -> Result<()> {
    findings("house rules", "reading the checkout's files", rules::broken()?)?;
    findings("layers", "reading the crates' dependencies", layers::broken()?)?;
    cargo("format", &["fmt", "--all", "--check"], "run `cargo fmt --all`")?;
    cargo(
        "format of fuzz/",
        &["fmt", "--manifest-path=fuzz/Cargo.toml", "--check"],
        "run it without --check",
    )?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    cargo("lints", &lints, "clippy's messages are above")?;
    let docs = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    cargo("documentation", &docs, "rustdoc's messages are above")?;
    dependencies()
}

/// Licences and sources of all dependencies, by `deny.toml`. Not their advisories, which come from the internet.
fn dependencies() -> Result<()> {
    const NAME: &str = "dependencies";
    if !answers("cargo-deny") {
        skipped(NAME, "there is no cargo-deny; `cargo install cargo-deny --locked` takes minutes");
        return Ok(());
    }
    let args = ["deny", "--offline", "check", "licenses", "bans", "sources"];
    cargo(NAME, &args, "cargo-deny's messages are above")
}

fn findings(name: &'static str, doing: &str, broken: Vec<String>) -> Result<()> {
    let step = Step::begin(name, doing);
    if !broken.is_empty() {
        bail!("{name} broken:\n  {}", broken.join("\n  "));
    }
    step.done("kept");
    Ok(())
}

fn cargo(name: &'static str, args: &[&str], advice: &'static str) -> Result<()> {
    let step = Step::begin_talking(name, format_args!("cargo {}", args.join(" ")));
    run(place::cargo().args(args).env("RUSTDOCFLAGS", RUSTDOC_LINTS)).context(advice)?;
    step.done("fine");
    Ok(())
}
