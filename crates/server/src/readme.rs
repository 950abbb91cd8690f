//! The table of settings in the README, made from [`crate::ServerArgs`]; a test keeps the two equal.

use std::path::Path;

use clap::{Args, Command};

use crate::ServerArgs;

const BEGIN: &str = "<!-- settings: generated, see crates/server/src/readme.rs -->\n";
const END: &str = "<!-- end of settings -->\n";

fn table() -> String {
    let command = ServerArgs::augment_args(Command::new("server"));
    let mut table = String::from("| variable | default | what it does |\n|---|---|---|\n");
    for arg in command.get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        let default: Vec<_> = arg.get_default_values().iter().filter_map(|value| value.to_str()).collect();
        let default = if default.is_empty() { String::new() } else { format!("`{}`", default.join(",")) };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        table.push_str(&format!("| `{name}` | {default} | {help} |\n"));
    }
    table
}

#[test]
fn the_readme_lists_the_settings_as_they_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the table's begin");
    let (found, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("MANTA_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert_eq!(found, table(), "run with MANTA_UPDATE_GOLDEN=1 to bring the README up to date");
}
