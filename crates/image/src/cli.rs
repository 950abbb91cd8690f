//! `manta image`: the command line.

use std::env;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::build::{BuildOptions, build};
use crate::cache::default_cache_dir;
use crate::error::ImageError;
use crate::progress::Progress;

/// Arguments of `manta image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make the guest's kernel, root file system and agent, those that are missing or out of date
    Build(BuildArgs),
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Directory to put the artifacts in
    #[arg(long, value_name = "DIR", default_value = "guest-artifacts")]
    out: PathBuf,
    /// Directory that keeps what was built before [default: manta in XDG_CACHE_HOME, or ~/.cache/manta]
    #[arg(long, value_name = "DIR", env = "MANTA_CACHE_DIR", hide_env_values = true)]
    cache: Option<PathBuf>,
    /// The agent's static binary [default: manta-agent beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Build the root file system anew, with Debian's updates, even when its recipe has not changed
    #[arg(long)]
    refresh: bool,
}

/// Runs `manta image`.
///
/// # Errors
/// See [`ImageError`].
pub fn main(args: ImageArgs) -> Result<(), ImageError> {
    let ImageCommand::Build(args) = args.command;
    let beside_this = || env::current_exe().unwrap_or_default().with_file_name("manta-agent");
    let options = BuildOptions {
        out: args.out,
        cache: args.cache.or_else(default_cache_dir).ok_or(ImageError::NoCacheDir)?,
        agent: args.agent.unwrap_or_else(beside_this),
        refresh: args.refresh,
    };
    let artifacts = build(&options, &Progress::stderr())?;
    for path in [&artifacts.kernel, &artifacts.rootfs, &artifacts.agent, &artifacts.manifest] {
        println!("{}", path.display());
    }
    Ok(())
}
