//! The messages: what is asked of the agent and what it answers. JSON inside their frames, so that
//! a field can be added without breaking an agent that sleeps in an old snapshot.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Begins to use a link. The host sends it first; the agent answers with its own, which repeats `session`. The host
/// ignores every byte before that answer. Different versions end the session.
///
/// Without `resume` it opens a session of that name, and the agent drops whatever it did for the previous one:
/// running commands are killed, but for those of a session that was parked ([`Request::Park`]), which run on without
/// anybody to read their output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`] of the sender.
    pub version: u32,
    /// Random, chosen by the host: tells this hello's answer from a stale one.
    pub session: u64,
    /// Host: the session to go on with. Agent: the same if it does, else none, and a new session has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// Where a session goes on over another link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Its name: [`Hello::session`] of the hello that opened it.
    pub session: u64,
    /// Frames of it that the sender has received, hellos and acknowledgements not counted. The other end sends
    /// those that follow once more.
    pub received: u64,
}

/// Opens a stream; answered by exactly one [`Reply`] on the same stream id, which ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Answered by [`Reply::Done`].
    Ping,
    /// Makes the guest this sandbox and no other. Idempotent. [`Reply::Adopted`].
    Adopt(Adopt),
    /// Before a snapshot: writes what is cached to the disk, sends what is due, and then no more: [`Reply::Done`] is
    /// the last frame until the host's next one. Until then the session waits for another link as long as it takes.
    Park,
    /// Runs a command; its output comes as data frames on the same stream, then [`Reply::Exit`].
    Exec(Exec),
}

/// What makes a guest unlike every other that began as the same snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// Random bytes of the host's, at least 32: credited to the kernel's generator, which is reseeded.
    pub entropy: Vec<u8>,
    /// The time by the host's wall clock when this was sent, nanoseconds since 1970.
    pub unix_ns: u64,
    /// Who the guest is from now on; unchanged when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// Names and addresses of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name, also entered in `/etc/hosts`.
    pub hostname: String,
    /// `/etc/machine-id` (`machine-id(5)`): 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`: a UUID, in lower case with hyphens.
    pub boot_id: String,
    /// Its network.
    pub network: Network,
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
    /// The guest is who it is to be.
    Adopted {
        /// Its wall clock now, nanoseconds since 1970: shows how far behind the request arrived.
        unix_ns: u64,
    },
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
    use super::{Adopt, Exec, ExecExit, Identity, Network, Program, Reply, Request};
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
                let network = Network {
                    address: address.into(),
                    prefix_len,
                    gateway: gateway.into(),
                    dns: dns.iter().map(|last| [10, 0, 0, *last].into()).collect(),
                };
                let boot_id = hostname.clone();
                let identity = Identity { machine_id: hostname.clone(), hostname, boot_id, network };
                let identity = (prefix_len > 100).then_some(identity);
                Request::Adopt(Adopt { entropy: dns, unix_ns: address.into(), identity })
            },
        );
        prop_oneof![Just(Request::Ping), Just(Request::Park), network, exec]
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
        prop_oneof![
            Just(Reply::Done),
            any::<u64>().prop_map(|unix_ns| Reply::Adopted { unix_ns }),
            exit,
            any::<String>().prop_map(|message| Reply::Failed { message }),
        ]
    }
}
