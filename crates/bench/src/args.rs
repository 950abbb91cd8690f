//! The flags that both benchmarks have, with the specified defaults.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use manta_client::ApiKey;

use crate::PoolArgs;

/// How often, where, and for how long at most.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// The server, `http://host[:port]` or `https://host[:port]`.
    #[arg(long, value_name = "URL", default_value = "http://localhost:8080")]
    pub endpoint: String,
    /// The server's API key, if it wants one; better in the environment, where other users do not see it.
    #[arg(long, env = "MANTA_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Option<ApiKey>,
    /// With https: trust only the authorities in this file, PEM; default: those that the machine trusts.
    #[arg(long, env = "MANTA_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// Measured runs, each with a sandbox of its own.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub iterations: u32,
    /// Runs before those, not recorded.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warmup: u32,
    /// Time limit of each HTTP request, such as 90s or 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = parse_timeout)]
    pub timeout: Duration,
    /// About the server's pools.
    #[command(flatten)]
    pub pool: PoolArgs,
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(timeout) if timeout.is_zero() => Err("no request completes in no time".to_owned()),
        Ok(timeout) => Ok(timeout),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser, Subcommand};
    use insta::assert_snapshot;

    use super::*;
    use crate::command::Look;
    use crate::restore::RestoreArgs;
    use crate::{BenchArgs, BenchCommand, Mode};

    #[derive(Debug, Parser)]
    #[command(term_width = 100)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[derive(Debug, Subcommand)]
    enum Command {
        Bench(BenchCommand),
        BenchRestore(RestoreArgs),
    }

    fn parse(line: &[&str]) -> Result<Command, String> {
        let line = std::iter::once("manta").chain(line.iter().copied());
        Cli::try_parse_from(line).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    fn bench(line: &[&str]) -> BenchArgs {
        let Ok(Command::Bench(BenchCommand { look: None, measure })) = parse(&[&["bench"], line].concat())
        else {
            panic!("{line:?}")
        };
        measure
    }

    fn bench_restore(line: &[&str]) -> RestoreArgs {
        let Ok(Command::BenchRestore(args)) = parse(&[&["bench-restore"], line].concat()) else {
            panic!("{line:?}")
        };
        args
    }

    #[test]
    fn the_defaults_are_the_specified_ones() {
        let (create, restore) = (bench(&[]), bench_restore(&[]));
        for args in [&create.common, &restore.common] {
            assert_eq!(args.endpoint, "http://localhost:8080");
            assert_eq!((args.iterations, args.warmup), (50, 5));
            assert_eq!(args.timeout, Duration::from_secs(90));
            assert_eq!((args.pool.pool_aware, args.pool.pool_wait_s), (false, 60));
        }
        assert_eq!(create.cmd, "echo \"benchmark\"");
        assert_eq!((create.mode, create.concurrency, create.live), (Mode::Sequential, None, 0));
        assert_eq!(restore.mutation_cmd, "mkdir -p /opt/manta && printf restored-ok > /opt/manta/state.txt");
        assert_eq!(restore.sanity_cmd, "cat /opt/manta/state.txt");
        assert_eq!(restore.expect_stdout, "restored-ok");
    }

    #[test]
    fn flags_replace_them() {
        let line = "--endpoint http://a:1 --iterations 10 --warmup 0 --timeout 1m40s --cmd".split(' ');
        let args = bench(&line.chain(["uname -a"]).collect::<Vec<_>>());
        assert_eq!(args.common.endpoint, "http://a:1");
        assert_eq!((args.common.iterations, args.common.warmup), (10, 0));
        assert_eq!(args.cmd, "uname -a");
        assert_eq!(args.common.timeout, Duration::from_secs(100));
        let args = bench(&["--mode", "burst", "--concurrency", "7", "--live", "3"]);
        assert_eq!((args.mode, args.concurrency, args.live), (Mode::Burst, Some(7), 3));
        let args = bench(&["--pool-aware", "--pool-wait-s", "5"]);
        assert_eq!((args.common.pool.pool_aware, args.common.pool.pool_wait_s), (true, 5));
        let args = bench_restore(&["--mutation-cmd=a", "--sanity-cmd=b", "--expect-stdout="]);
        assert_eq!([&args.mutation_cmd[..], &args.sanity_cmd[..], &args.expect_stdout[..]], ["a", "b", ""]);
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_flag() {
        for (flag, value) in [
            ("--iterations", "0"),
            ("--iterations", "-1"),
            ("--warmup", "x"),
            ("--timeout", "0s"),
            ("--timeout", "90"),
            ("--pool-wait-s", "-1"),
        ] {
            for command in ["bench", "bench-restore"] {
                let error = parse(&[command, &format!("{flag}={value}")]).unwrap_err();
                assert!(error.contains(flag) && error.contains(value), "{error}");
            }
        }
        for (flag, value) in [("--mode", "fast"), ("--concurrency", "0"), ("--live", "-1")] {
            let error = parse(&["bench", &format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn looking_at_results_takes_files_and_nothing_of_measuring() {
        let look = |line: &[&str]| -> Result<Look, String> {
            match parse(&[&["bench"], line].concat())? {
                Command::Bench(BenchCommand { look: Some(look), .. }) => Ok(look),
                other => panic!("{other:?}"),
            }
        };
        let Ok(Look::Compare(args)) = look(&["compare", "a.json", "b.json"]) else { panic!() };
        assert_eq!(args.files.len(), 2);
        let Ok(Look::Plot(args)) = look(&["plot", "a.json", "--out", "a.svg"]) else { panic!() };
        assert_eq!((args.files.len(), args.out.to_str()), (1, Some("a.svg")));
        for wrong in [
            &["compare", "a.json"][..],
            &["plot", "a.json"],
            &["plot", "--out", "a.svg"],
            &["--iterations", "3", "compare", "a.json", "b.json"],
        ] {
            look(wrong).expect_err("not a command line");
        }
    }

    #[test]
    fn the_help_says_what_is_measured_and_how() {
        let mut cli = Cli::command();
        let mut help = ["bench", "bench-restore"].map(|name| {
            let command = cli.find_subcommand_mut(name).unwrap();
            command.render_long_help().to_string()
        });
        let bench = cli.find_subcommand_mut("bench").unwrap();
        for look in ["compare", "plot"] {
            let command = bench.find_subcommand_mut(look).unwrap();
            help[0].push_str(&format!("\n{}", command.render_long_help()));
        }
        assert_snapshot!(help.join("\n"));
    }
}
