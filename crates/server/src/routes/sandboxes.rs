//! Making, listing, extending and destroying sandboxes.

use std::time::Duration;

use axum::extract::State;
use manta_api::{
    CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, DestroyStatus, ErrorBody, ExtendRequest,
    SandboxInfo, SandboxList,
};

use super::AppState;
use crate::body::{Json, OptionalJson};
use crate::error::ApiError;
use crate::params::{By, SandboxPath};
use crate::request::about;
use crate::server_timing::ServerTiming;

/// Makes a sandbox. Answers when it takes commands.
#[utoipa::path(
    post,
    path = "/create",
    request_body = Option<CreateRequest>,
    responses(
        (status = 200, body = CreateResponse, headers(
            ("Server-Timing" = String, description = "Where the time went: stages in order and their total, milliseconds (W3C Server Timing)"),
        )),
        (status = 400, body = ErrorBody, description = "also when `timeout_s` is out of range"),
        (status = 409, body = ErrorBody, description = "`sandbox_not_running`: destroyed before it was ready"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 429, body = ErrorBody, description = "`key_sandbox_limit` or `key_rate_limit`; see Retry-After"),
        (status = 500, body = ErrorBody),
        (status = 502, body = ErrorBody, description = "`boot_failed`"),
        (status = 503, body = ErrorBody, description = "`host_full`, `host_memory_full`, `host_disk_full`, `overloaded`, `journal_unwritable` or `shutting_down`; see Retry-After"),
    )
)]
pub(super) async fn create(
    State(state): State<AppState>,
    By(caller): By,
    OptionalJson(CreateRequest { timeout_s }): OptionalJson<CreateRequest>,
) -> Result<(ServerTiming, axum::Json<CreateResponse>), ApiError> {
    let created = state.engine.create(&caller, timeout_s.map(Duration::from_secs)).await;
    let (timing, sandbox_id) = ServerTiming::split(created, ApiError::from)?;
    about(&sandbox_id);
    Ok((timing, axum::Json(CreateResponse { sandbox_id })))
}

/// Destroys a sandbox. Answers when its guest is dead and its files are gone; again when they already were.
///
/// Running commands get a short while to finish, then answer `sandbox_destroyed`. The sandbox's network slot goes behind the answer.
#[utoipa::path(
    post,
    path = "/destroy",
    request_body = DestroyRequest,
    responses(
        (status = 200, body = DestroyResponse, headers(
            ("Server-Timing" = String, description = "Where the time went: stages in order and their total, milliseconds (W3C Server Timing)"),
        )),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`sandbox_not_found`"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
    )
)]
pub(super) async fn destroy(
    State(state): State<AppState>,
    By(caller): By,
    Json(request): Json<DestroyRequest>,
) -> Result<(ServerTiming, axum::Json<DestroyResponse>), ApiError> {
    let sandbox_id = request.sandbox_id;
    about(&sandbox_id);
    let timings = state.engine.destroy(&caller, &sandbox_id).await?;
    let status = DestroyStatus::Destroyed;
    Ok((timings.into(), axum::Json(DestroyResponse { sandbox_id, status })))
}

/// Lists sandboxes, oldest first.
#[utoipa::path(get, path = "/sandboxes", responses((status = 200, body = SandboxList)))]
pub(super) async fn list(State(state): State<AppState>) -> axum::Json<SandboxList> {
    axum::Json(SandboxList { sandboxes: state.engine.list() })
}

/// Shows one sandbox. Of one that is gone the message says why, for some time.
#[utoipa::path(
    get,
    path = "/sandboxes/{id}",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, body = SandboxInfo),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`sandbox_not_found`"),
    )
)]
pub(super) async fn info(
    State(state): State<AppState>,
    SandboxPath(id): SandboxPath,
) -> Result<axum::Json<SandboxInfo>, ApiError> {
    about(&id);
    Ok(axum::Json(state.engine.info(&id).await?))
}

/// Sets a running sandbox's lifetime: from now on that long, whatever was said before.
#[utoipa::path(
    post,
    path = "/sandboxes/{id}/extend",
    params(("id" = String, Path, description = "The sandbox")),
    request_body = ExtendRequest,
    responses(
        (status = 200, body = SandboxInfo),
        (status = 400, body = ErrorBody, description = "also when `timeout_s` is out of range"),
        (status = 404, body = ErrorBody, description = "`sandbox_not_found`"),
        (status = 409, body = ErrorBody, description = "`sandbox_not_running`"),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
    )
)]
pub(super) async fn extend(
    State(state): State<AppState>,
    SandboxPath(id): SandboxPath,
    Json(request): Json<ExtendRequest>,
) -> Result<axum::Json<SandboxInfo>, ApiError> {
    about(&id);
    Ok(axum::Json(state.engine.extend(&id, Duration::from_secs(request.timeout_s)).await?))
}
