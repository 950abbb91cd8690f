//! The house rules that a program can check, on every text file that git knows or would add.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::place;
use crate::process::capture;

const LINES_MAX: usize = 499;
/// This file names what it forbids.
const SELF: &str = file!();

/// One line for each broken rule.
pub(super) fn broken() -> Result<Vec<String>> {
    let names = capture(
        Command::new("git")
            // The checkout may be another user's.
            .args(["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(place::root()),
    )
    .context("cannot list the files of the checkout")?;
    let root = place::root();
    let mut broken = Vec::new();
    for name in names.split('\0').filter(|name| !name.is_empty() && *name != SELF) {
        // What is no text, or is deleted and not committed yet, has no lines to judge.
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            broken.extend(judge(name, &text, &root.to_string_lossy()));
        }
    }
    Ok(broken)
}

/// The rules that one file breaks. `checkout` is where the files are on this machine.
fn judge(name: &str, text: &str, checkout: &str) -> Vec<String> {
    let machine_paths = ["/home/", "/Users/", checkout];
    let path = Path::new(name);
    let rust = path.extension().is_some_and(|extension| extension == "rs");
    let mut broken = Vec::new();
    if rust && !text.starts_with("//!") {
        broken.push(format!("{name}: does not open with `//!`, what it owns and what it does not"));
    }
    if rust && text.lines().count() > LINES_MAX {
        broken.push(format!("{name}: more than {LINES_MAX} lines; split it"));
    }
    let unsafe_allowed = path.file_name().is_some_and(|file| file == "sys.rs");
    for (number, line) in text.lines().enumerate() {
        let mut report = |what: &str| broken.push(format!("{name}:{}: {what}", number + 1));
        if rust && has_word(line, &["TODO", "FIXME", "XXX"]) {
            report("unfinished work belongs into an issue");
        }
        if rust && line.trim_start().starts_with("#[ignore") {
            report("a test that does not run is no test");
        }
        let code = line.split("//").next().unwrap_or_default();
        if rust && !unsafe_allowed && opens_unsafe(code) {
            report("unsafe code belongs into a sys.rs");
        }
        if machine_paths.iter().any(|path| starts_path(line, path)) {
            report("a path of one machine");
        }
    }
    broken
}

/// Whether one of `words` stands in the line by itself.
fn has_word(line: &str, words: &[&str]) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| words.contains(&word))
}

/// Whether a line has the keyword `unsafe`, and not the word in a text.
fn opens_unsafe(code: &str) -> bool {
    code.match_indices("unsafe").any(|(at, word)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        before.is_none_or(|c| c.is_whitespace() || "{([=".contains(c))
            && after.is_none_or(|c| " {(".contains(c))
    })
}

/// Whether `path` occurs where an absolute path begins.
fn starts_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| c.is_whitespace() || "\"'`(=:".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_by_the_rules_passes() {
        let text = "//! Owns one thing.\n// unsafe is only spoken of here\nlet x = \"https://a.example/home/x,cache=unsafe,\";\n";
        assert_eq!(judge("crates/a/src/lib.rs", text, "/checkout"), Vec::<String>::new());
    }

    #[test]
    fn every_rule_is_noticed_with_its_place() {
        let cases = [
            ("fn main() {}\n", "a.rs: does not open"),
            ("//! A.\n// TODO: more\n", "a.rs:2: unfinished"),
            ("//! A.\n    #[ignore]\n", "a.rs:2: a test"),
            ("//! A.\nlet x = unsafe { 1 };\n", "a.rs:2: unsafe"),
            ("//! A.\nlet x = \"/home/me/x\";\n", "a.rs:2: a path"),
            ("//! A.\n// see /checkout/notes\n", "a.rs:2: a path"),
        ];
        for (text, expected) in cases {
            let broken = judge("a.rs", text, "/checkout");
            assert!(
                matches!(broken.as_slice(), [one] if one.starts_with(expected)),
                "{text:?} gave {broken:?}"
            );
        }
        let long = format!("//! A.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(judge("a.rs", &long, "/checkout").len(), 1);
    }

    #[test]
    fn unsafe_is_allowed_in_sys_rs_and_in_other_languages() {
        assert!(judge("crates/host/src/sys.rs", "//! A.\nunsafe { x() }\n", "/checkout").is_empty());
        assert!(judge("docs/a.md", "unsafe { TODO }\n", "/checkout").is_empty());
    }
}
