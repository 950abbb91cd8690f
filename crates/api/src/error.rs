//! Errors as clients see them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong and what to do, for people.
    pub error: String,
    /// The same for programs; stable.
    pub code: ErrorCode,
    /// Standard output so far, of a command that was cut off: with `exec_timeout`, `sandbox_destroyed`,
    /// `guest_gone` and `guest_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// As `stdout`, for standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// With `stdout`: it went over the server's limit, the rest was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout_truncated: Option<bool>,
    /// With `stderr`: it went over the server's limit, the rest was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_truncated: Option<bool>,
}

/// Stable error codes, with their HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is not what the route takes.
    BadRequest,
    /// 401 with `WWW-Authenticate`: no API key was sent, or none that counts.
    Unauthorized,
    /// 403: a server that asks for no key was called by a web page, or by a name other than `localhost`; over TCP only.
    Forbidden,
    /// 404: no such route.
    NotFound,
    /// 405: the route exists, not with this method.
    MethodNotAllowed,
    /// 404: no such sandbox.
    SandboxNotFound,
    /// 404: no such snapshot.
    SnapshotNotFound,
    /// 409: the sandbox is not in a state that allows this.
    SandboxNotRunning,
    /// 409: the sandbox was destroyed while the request ran.
    SandboxDestroyed,
    /// 409: another snapshot has the name.
    SnapshotNameTaken,
    /// 409: the snapshot was made by another VMM, of other artifacts or on another machine; the text says
    /// what differs.
    SnapshotIncompatible,
    /// 409: a file of the snapshot is missing or is not as it was written; the text says which.
    SnapshotDamaged,
    /// 408: the body did not arrive in time.
    BodyTimeout,
    /// 413: the body is too large.
    BodyTooLarge,
    /// 415: the body is not JSON.
    UnsupportedMediaType,
    /// 503 with `Retry-After`: no room for another sandbox.
    HostFull,
    /// 503 with `Retry-After`: as much memory as allowed is committed to sandboxes.
    HostMemoryFull,
    /// 503 with `Retry-After`: too little of the host's disk is free.
    HostDiskFull,
    /// 429 with `Retry-After`: the API key has as many sandboxes as it may.
    KeySandboxLimit,
    /// 429 with `Retry-After`: the API key makes sandboxes faster than it may.
    KeyRateLimit,
    /// 503 with `Retry-After`: others wait to have a microVM started, too, and this one's turn did not come in time.
    Overloaded,
    /// 503 with `Retry-After`: too many commands run in the sandbox.
    SandboxBusy,
    /// 503 with `Retry-After`: the server is going down.
    ShuttingDown,
    /// 503 with `Retry-After`: the server cannot write its journal, so it begins nothing new; what runs, runs on.
    JournalUnwritable,
    /// 502: the microVM did not come up.
    BootFailed,
    /// 502: the guest died or its agent broke off while the request ran.
    GuestGone,
    /// 504: the guest's agent did not answer in time.
    GuestTimeout,
    /// 504: the command outlived its time limit and was killed; the output so far is in the body.
    ExecTimeout,
    /// 507: as many snapshots, or bytes in them, as the server may keep, or no room on its disk; delete some.
    SnapshotStorageFull,
    /// 502: the sandbox could not be saved.
    SnapshotFailed,
    /// 500: a failure of the server itself; its log says more.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound | Self::SandboxNotFound | Self::SnapshotNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::BodyTimeout => 408,
            Self::SandboxNotRunning
            | Self::SandboxDestroyed
            | Self::SnapshotNameTaken
            | Self::SnapshotIncompatible
            | Self::SnapshotDamaged => 409,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Internal => 500,
            Self::BootFailed | Self::GuestGone | Self::SnapshotFailed => 502,
            Self::KeySandboxLimit | Self::KeyRateLimit => 429,
            Self::HostFull
            | Self::HostMemoryFull
            | Self::HostDiskFull
            | Self::Overloaded
            | Self::SandboxBusy
            | Self::ShuttingDown
            | Self::JournalUnwritable => 503,
            Self::GuestTimeout | Self::ExecTimeout => 504,
            Self::SnapshotStorageFull => 507,
        }
    }
}
