//! The flags of `manta bench-restore`, with the specified defaults.

use clap::Args;

use crate::args::CommonArgs;

const MUTATION: &str = "mkdir -p /opt/manta && printf restored-ok > /opt/manta/state.txt";
const SANITY: &str = "cat /opt/manta/state.txt";
const EXPECTED: &str = "restored-ok";

/// Measure restores of a user snapshot: `POST /snapshot/restore` alone, and up to the output of the first
/// `POST /exec`.
///
/// Makes the snapshot itself, from a sandbox it changes, and removes both. Needs a running server. Prints a
/// JSON object on standard output and a table on standard error.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// What every benchmark is told.
    #[command(flatten)]
    pub common: CommonArgs,
    /// What is done, once, to the sandbox before its snapshot is taken. Must exit with 0.
    #[arg(long, value_name = "LINE", default_value = MUTATION)]
    pub mutation_cmd: String,
    /// The command of `POST /exec` in each restored sandbox. A run counts only if it exits with 0.
    #[arg(long, value_name = "LINE", default_value = SANITY)]
    pub sanity_cmd: String,
    /// What that command must print, newlines at the end aside. Nothing: whatever it likes.
    #[arg(long, value_name = "TEXT", default_value = EXPECTED)]
    pub expect_stdout: String,
}
