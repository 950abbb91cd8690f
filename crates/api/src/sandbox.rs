//! Bodies of `/create`, `/exec`, `/destroy` and `/sandboxes`, one of them or all.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{SandboxId, SnapshotId};

/// `POST /create`; the body may be absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The sandbox is destroyed after this long, seconds from when it is handed out. Default and maximum are the
    /// server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub timeout_s: Option<u64>,
}

/// The new sandbox, ready for its first command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateResponse {
    /// The sandbox.
    pub sandbox_id: SandboxId,
}

/// `POST /exec`: a command, either as a shell line or as a program with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Run by `/bin/sh -lc`. Exactly one of `cmd` and `argv`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// A program, looked up in `PATH`, and its arguments, without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// With `cmd` only `true` and with `argv` only `false` makes sense; may be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_shell: Option<bool>,
    /// The command and its process group are killed after this long, milliseconds. Default and
    /// maximum are the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Working directory; `/root` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Added to the environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Standard input, as text; empty when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// How the answer carries output.
    #[serde(default, skip_serializing_if = "is_default")]
    pub encoding: OutputEncoding,
}

/// How output bytes become JSON strings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputEncoding {
    /// As text; what is not UTF-8 is replaced by U+FFFD.
    #[default]
    Utf8,
    /// Base64, exact.
    Base64,
}

/// A command that ran, whatever became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResponse {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status; 128 + n after signal n; 127 when the program was not found, 126 when it could
    /// not be started.
    pub exit_code: i32,
    /// Standard output went over the server's limit; the rest was dropped.
    #[serde(default)]
    pub stdout_truncated: bool,
    /// Standard error went over the server's limit; the rest was dropped.
    #[serde(default)]
    pub stderr_truncated: bool,
    /// From start to exit as measured in the guest, microseconds.
    #[serde(default)]
    pub duration_us: u64,
}

/// `POST /sandboxes/{id}/extend`. The answer is the sandbox's entry, as of `GET /sandboxes/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtendRequest {
    /// The sandbox is destroyed after this long, seconds from now, whatever was said before. The maximum is the
    /// server's.
    #[schema(minimum = 1)]
    pub timeout_s: u64,
}

/// `POST /destroy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DestroyRequest {
    /// The sandbox.
    pub sandbox_id: SandboxId,
}

/// The sandbox is gone; also when it was destroyed before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DestroyResponse {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Always `destroyed`.
    pub status: DestroyStatus,
}

/// See [`DestroyResponse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DestroyStatus {
    /// The microVM and everything it used on the host are gone.
    Destroyed,
}

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Booting; not handed out yet.
    Creating,
    /// Takes commands.
    Running,
    /// Being destroyed.
    Stopping,
    /// Gone.
    Stopped,
    /// Its microVM died on its own; only destroy makes sense.
    Failed,
}

/// One sandbox, as `GET /sandboxes` and `GET /sandboxes/{id}` show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxInfo {
    /// The sandbox.
    pub id: SandboxId,
    /// Where it is in its life.
    pub state: SandboxState,
    /// The name of the API key it was made with; absent when it was made without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Why it failed, when it did, or why it is being destroyed, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `qemu` or `firecracker`.
    pub vmm: String,
    /// The snapshot it was restored from, be it the golden one; absent when it was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<SnapshotId>,
    /// When its creation began, seconds since 1970.
    pub created_unix_s: u64,
    /// When it will be destroyed, seconds since 1970; absent when its lifetime has no limit, or has not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unix_s: Option<u64>,
    /// The VMM process; absent unless the sandbox runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// The guest's address inside its own network, the same for every sandbox.
    #[schema(value_type = String, example = "172.16.0.2")]
    pub guest_address: Ipv4Addr,
    /// The address that stands for the sandbox on the host.
    #[schema(value_type = String, example = "198.18.0.2")]
    pub host_address: Ipv4Addr,
}

/// `GET /sandboxes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// Oldest first.
    pub sandboxes: Vec<SandboxInfo>,
}

fn is_default(encoding: &OutputEncoding) -> bool {
    *encoding == OutputEncoding::default()
}
