//! The flags of `manta bench`, with the specified defaults.

use std::time::Duration;

use clap::Args;

pub(crate) const DEFAULT_CMD: &str = r#"echo "benchmark""#;

/// Measure TTI: from sending `POST /create` to having the output of the first `POST /exec`.
///
/// Needs a running server. Prints a JSON object on standard output and a table on standard error.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The server, `http://host[:port]`.
    #[arg(long, value_name = "URL", default_value = "http://localhost:8080")]
    pub endpoint: String,
    /// Measured runs, each with a sandbox of its own.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub iterations: u32,
    /// Runs before those, not recorded.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warmup: u32,
    /// The command of `POST /exec`, run by `/bin/sh -lc`. A run counts only if it exits with 0.
    #[arg(long, value_name = "LINE", default_value = DEFAULT_CMD)]
    pub cmd: String,
    /// Time limit of each HTTP request, such as 90s or 1m30s.
    #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = parse_timeout)]
    pub timeout: Duration,
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
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &[&str]) -> Result<BenchArgs, String> {
        let line = std::iter::once("bench").chain(line.iter().copied());
        Command::try_parse_from(line).map(|command| command.args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_the_specified_ones() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.endpoint, "http://localhost:8080");
        assert_eq!((args.iterations, args.warmup), (50, 5));
        assert_eq!(args.cmd, "echo \"benchmark\"");
        assert_eq!(args.timeout, Duration::from_secs(90));
    }

    #[test]
    fn flags_replace_them() {
        let line = "--endpoint http://a:1 --iterations 10 --warmup 0 --timeout 1m30s --cmd".split(' ');
        let args = parse(&line.chain(["uname -a"]).collect::<Vec<_>>()).unwrap();
        assert_eq!(args.endpoint, "http://a:1");
        assert_eq!((args.iterations, args.warmup), (10, 0));
        assert_eq!(args.cmd, "uname -a");
        assert_eq!(args.timeout, Duration::from_secs(90));
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_flag() {
        for (flag, value) in [
            ("--iterations", "0"),
            ("--iterations", "-1"),
            ("--warmup", "x"),
            ("--timeout", "0s"),
            ("--timeout", "90"),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).unwrap_err();
            assert!(error.contains(flag) && error.contains(value), "{error}");
        }
    }
}
