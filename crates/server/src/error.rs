//! The one place where errors become statuses, codes and public messages.

use std::time::Duration;

use axum::http::header::{self, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use manta_api::{ErrorBody, ErrorCode};
use manta_engine::{EngineError, Output};
use tracing::error;

use crate::metrics;
use crate::server_timing::ServerTiming;

/// After this a full host, or a used-up limit, is worth another try, unless it is known better.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An answer that is not 2xx.
#[derive(Debug)]
pub(crate) struct ApiError {
    body: Box<ErrorBody>,
    timing: Option<ServerTiming>,
    /// When it is worth another try, if that is known.
    retry_after: Option<Duration>,
}

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let (error, no) = (message.into(), None);
        let body =
            ErrorBody { error, code, stdout: None, stderr: None, stdout_truncated: no, stderr_truncated: no };
        Self { body: Box::new(body), timing: None, retry_after: None }
    }

    /// Also tells where the time went.
    pub(crate) fn timed(mut self, timing: ServerTiming) -> Self {
        self.timing = Some(timing);
        self
    }

    fn with_output(mut self, output: &Output, encode: impl Fn(&[u8]) -> String) -> Self {
        self.body.stdout = Some(encode(&output.stdout));
        self.body.stderr = Some(encode(&output.stderr));
        self.body.stdout_truncated = Some(output.stdout_truncated);
        self.body.stderr_truncated = Some(output.stderr_truncated);
        self
    }

    /// An engine error; `encode` turns what a command printed into text.
    pub(crate) fn from_engine(error: &EngineError, encode: impl Fn(&[u8]) -> String) -> Self {
        let (code, output) = match error {
            EngineError::NotFound(_) | EngineError::Gone { .. } => (ErrorCode::SandboxNotFound, None),
            EngineError::NotRunning { .. } => (ErrorCode::SandboxNotRunning, None),
            EngineError::Destroyed { output, .. } => (ErrorCode::SandboxDestroyed, Some(output)),
            EngineError::GuestGone { output, .. } => (ErrorCode::GuestGone, Some(output)),
            EngineError::GuestTimeout { output, .. } => (ErrorCode::GuestTimeout, Some(output)),
            EngineError::ExecTimeout { output, .. } => (ErrorCode::ExecTimeout, Some(output)),
            EngineError::SandboxBusy { .. } => (ErrorCode::SandboxBusy, None),
            EngineError::BadRequest(_) => (ErrorCode::BadRequest, None),
            EngineError::HostFull { .. } | EngineError::HostDescriptorsFull { .. } => {
                (ErrorCode::HostFull, None)
            }
            EngineError::HostMemoryFull { .. } => (ErrorCode::HostMemoryFull, None),
            EngineError::HostDiskFull { .. } => (ErrorCode::HostDiskFull, None),
            EngineError::KeySandboxLimit { .. } => (ErrorCode::KeySandboxLimit, None),
            EngineError::KeyRateLimit { .. } => (ErrorCode::KeyRateLimit, None),
            EngineError::Overloaded { .. } => (ErrorCode::Overloaded, None),
            EngineError::ShuttingDown => (ErrorCode::ShuttingDown, None),
            EngineError::JournalUnwritable { .. } => (ErrorCode::JournalUnwritable, None),
            EngineError::BootFailed { .. } => (ErrorCode::BootFailed, None),
            EngineError::SnapshotNotFound(_) => (ErrorCode::SnapshotNotFound, None),
            EngineError::SnapshotNameTaken(_) => (ErrorCode::SnapshotNameTaken, None),
            EngineError::SnapshotIncompatible { .. } => (ErrorCode::SnapshotIncompatible, None),
            EngineError::SnapshotDamaged { .. } => (ErrorCode::SnapshotDamaged, None),
            EngineError::SnapshotStorageFull(_) => (ErrorCode::SnapshotStorageFull, None),
            EngineError::SnapshotFailed { .. } => (ErrorCode::SnapshotFailed, None),
            EngineError::Host { .. } => {
                error!(%error, "internal error");
                return Self::new(ErrorCode::Internal, "the host failed; the server's log says how");
            }
        };
        let mut answer = Self::new(code, error.to_string());
        if let EngineError::KeyRateLimit { after, .. } = error {
            answer.retry_after = Some(*after);
        }
        match output {
            Some(output) => answer.with_output(output, encode),
            None => answer,
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::from_engine(&error, |bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.body.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        metrics::rejected(self.body.code);
        let mut response = (status, self.timing, axum::Json(&*self.body)).into_response();
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            let after = self.retry_after.unwrap_or(RETRY_AFTER);
            // In whole seconds, and not too early.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
