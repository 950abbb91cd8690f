//! Running commands.

use std::time::Duration;

use axum::extract::State;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use manta_agent_proto::Program;
use manta_api::{ErrorBody, ErrorCode, ExecRequest, ExecResponse, OutputEncoding};
use manta_engine::ExecSpec;

use super::AppState;
use crate::body::Json;
use crate::error::ApiError;
use crate::params::By;
use crate::request::about;
use crate::server_timing::ServerTiming;

/// Runs a command in a sandbox and answers with its output and exit status.
///
/// A command that cannot be started is a normal answer with exit status 126 or 127. When the client
/// goes away the command is killed.
#[utoipa::path(
    post,
    path = "/exec",
    request_body = ExecRequest,
    responses(
        (status = 200, body = ExecResponse, headers(
            ("Server-Timing" = String, description = "Where the time went: stages in order and their total, milliseconds (W3C Server Timing)"),
        )),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`sandbox_not_found`"),
        (status = 409, body = ErrorBody, description = "`sandbox_not_running` or `sandbox_destroyed`"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 503, body = ErrorBody, description = "`sandbox_busy`; see Retry-After"),
        (status = 502, body = ErrorBody, description = "`guest_gone`, with the output so far"),
        (status = 504, body = ErrorBody, description = "`exec_timeout` or `guest_timeout`, with the output so far"),
    )
)]
pub(super) async fn exec(
    State(state): State<AppState>,
    By(caller): By,
    Json(request): Json<ExecRequest>,
) -> Result<(ServerTiming, axum::Json<ExecResponse>), ApiError> {
    about(&request.sandbox_id);
    let (sandbox_id, encode) = (request.sandbox_id.clone(), encoder(request.encoding));
    let ran = state.engine.exec(&caller, &sandbox_id, spec(request)?).await;
    let (timing, ran) = ServerTiming::split(ran, |error| ApiError::from_engine(&error, encode))?;
    let answer = ExecResponse {
        stdout: encode(&ran.output.stdout),
        stderr: encode(&ran.output.stderr),
        exit_code: ran.exit_code,
        stdout_truncated: ran.output.stdout_truncated,
        stderr_truncated: ran.output.stderr_truncated,
        duration_us: ran.duration_us,
    };
    Ok((timing, axum::Json(answer)))
}

/// The command.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn spec(request: ExecRequest) -> Result<ExecSpec, ApiError> {
    Ok(ExecSpec {
        program: program(&request)?,
        env: environment(&request)?,
        cwd: request.cwd.map(|cwd| no_nul("cwd", cwd)).transpose()?,
        stdin: request.stdin.unwrap_or_default().into(),
        timeout: request.timeout_ms.map(Duration::from_millis),
    })
}

fn encoder(encoding: OutputEncoding) -> fn(&[u8]) -> String {
    match encoding {
        OutputEncoding::Utf8 => |bytes| String::from_utf8_lossy(bytes).into_owned(),
        OutputEncoding::Base64 => |bytes| BASE64_STANDARD.encode(bytes),
    }
}

/// What to run: exactly one of `cmd` and `argv`.
fn program(request: &ExecRequest) -> Result<Program, ApiError> {
    match (&request.cmd, &request.argv, request.use_shell) {
        (Some(_), Some(_), _) => Err(bad("send either cmd or argv, not both")),
        (None, None, _) => Err(bad("send cmd (a shell line) or argv (a program and its arguments)")),
        (Some(_), None, Some(false)) => Err(bad("cmd always runs in a shell; to run without one send argv")),
        (None, Some(_), Some(true)) => Err(bad("argv runs without a shell; to use one send cmd")),
        (Some(cmd), None, _) => Ok(Program::Shell(no_nul("cmd", cmd.clone())?)),
        (None, Some(argv), _) => {
            if argv.first().is_none_or(String::is_empty) {
                return Err(bad("argv must begin with a program"));
            }
            let argv = argv.iter().map(|word| no_nul("argv", word.clone())).collect::<Result<_, _>>()?;
            Ok(Program::Argv(argv))
        }
    }
}

fn environment(request: &ExecRequest) -> Result<Vec<(String, String)>, ApiError> {
    let valid = |name: &str| !name.is_empty() && !name.contains(['=', '\0']);
    if let Some(name) = request.env.keys().find(|name| !valid(name)) {
        return Err(bad(format!("env: {name:?} is not the name of a variable")));
    }
    request.env.iter().map(|(name, value)| Ok((name.clone(), no_nul("env", value.clone())?))).collect()
}

fn no_nul(field: &str, text: String) -> Result<String, ApiError> {
    if text.contains('\0') { Err(bad(format!("{field} contains a NUL character"))) } else { Ok(text) }
}

fn bad(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}
