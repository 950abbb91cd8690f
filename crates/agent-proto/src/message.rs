//! The messages: what is asked of the agent and what it answers. JSON inside their frames, so that
//! a field can be added without breaking an agent that sleeps in an old snapshot.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Opens a session. The host sends it first; the agent drops whatever it did for the previous
/// session (running commands are killed), then answers with its own, which repeats `session`.
/// The host ignores every byte before that answer. Different versions end the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Random, chosen by the host: tells this session's answer from a stale one.
    pub session: u64,
}

/// Opens a stream; answered by exactly one [`Reply`] on the same stream id, which ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Done`].
    Ping,
    /// Sets address, default route, name servers and host name. Idempotent. [`Reply::Done`].
    Configure(Network),
    /// Runs a command; its output comes as data frames on the same stream, then [`Reply::Exit`].
    Exec(Exec),
}

/// The guest's network, as the host made it outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guest's own address.
    pub address: Ipv4Addr,
    /// Length of its network prefix, bits.
    pub prefix_len: u8,
    /// Default route.
    pub gateway: Ipv4Addr,
    /// Name servers for `/etc/resolv.conf`.
    pub dns: Vec<Ipv4Addr>,
    /// Host name, also entered in `/etc/hosts`.
    pub hostname: String,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// `/bin/sh -lc STRING`.
    Shell(String),
    /// A program and its arguments; looked up in `PATH`. Never empty.
    Argv(Vec<String>),
}

/// A command and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub program: Program,
    /// Working directory; the agent's default (`/root`) when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the agent's default environment, replacing equal names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// The whole process group is killed after this long, milliseconds.
    pub timeout_ms: u64,
    /// Bytes of standard output to send, and of standard error; the rest is read and dropped.
    pub output_limit: u64,
    /// Whether the host will send standard input (ended by [`crate::Frame::Eof`]); else it is empty.
    #[serde(default)]
    pub stdin: bool,
}

/// How a stream ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, nothing to say.
    Done,
    /// The command ended; all its output was sent before this.
    Exit(ExecExit),
    /// The request could not be carried out at all.
    Failed {
        /// Why, for people.
        message: String,
    },
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExit {
    /// Exit status; 128 + n when signal n ended it; 127 when the program was not found and 126 when
    /// it could not be started (standard error says why).
    pub exit_code: i32,
    /// The time-out ended it. Output up to then was sent.
    #[serde(default)]
    pub timed_out: bool,
    /// Standard output went over the limit.
    #[serde(default)]
    pub stdout_truncated: bool,
    /// Standard error went over the limit.
    #[serde(default)]
    pub stderr_truncated: bool,
    /// From start to exit as the guest saw it, microseconds.
    #[serde(default)]
    pub duration_us: u64,
}

/// Any message, for property tests.
#[cfg(test)]
pub(crate) mod arbitrary {
    use super::{Exec, ExecExit, Network, Program, Reply, Request};
    use proptest::prelude::*;

    pub(crate) fn request() -> impl Strategy<Value = Request> {
        let program = prop_oneof![
            any::<String>().prop_map(Program::Shell),
            prop::collection::vec(any::<String>(), 1..4).prop_map(Program::Argv),
        ];
        let env = prop::collection::vec((any::<String>(), any::<String>()), 0..3);
        let exec = (program, any::<Option<String>>(), env, any::<(u64, u64, bool)>()).prop_map(
            |(program, cwd, env, (timeout_ms, output_limit, stdin))| {
                Request::Exec(Exec { program, cwd, env, timeout_ms, output_limit, stdin })
            },
        );
        let network = any::<(u32, u8, u32, Vec<u8>, String)>().prop_map(
            |(address, prefix_len, gateway, dns, hostname)| {
                Request::Configure(Network {
                    address: address.into(),
                    prefix_len,
                    gateway: gateway.into(),
                    dns: dns.into_iter().map(|last| [10, 0, 0, last].into()).collect(),
                    hostname,
                })
            },
        );
        prop_oneof![Just(Request::Ping), network, exec]
    }

    pub(crate) fn reply() -> impl Strategy<Value = Reply> {
        let exit = any::<(i32, bool, bool, bool, u64)>().prop_map(
            |(exit_code, timed_out, stdout_truncated, stderr_truncated, duration_us)| {
                Reply::Exit(ExecExit {
                    exit_code,
                    timed_out,
                    stdout_truncated,
                    stderr_truncated,
                    duration_us,
                })
            },
        );
        prop_oneof![Just(Reply::Done), exit, any::<String>().prop_map(|message| Reply::Failed { message }),]
    }
}
