//! Making, listing and destroying sandboxes.

use axum::extract::State;
use manta_api::{
    CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, DestroyStatus, ErrorBody, SandboxList,
};

use super::AppState;
use crate::body::{Json, OptionalJson};
use crate::error::ApiError;
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
        (status = 400, body = ErrorBody),
        (status = 409, body = ErrorBody, description = "`sandbox_not_running`: destroyed before it was ready"),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 500, body = ErrorBody),
        (status = 502, body = ErrorBody, description = "`boot_failed`"),
        (status = 503, body = ErrorBody, description = "`host_full`, `overloaded` or `shutting_down`; see Retry-After"),
    )
)]
pub(super) async fn create(
    State(state): State<AppState>,
    OptionalJson(CreateRequest {}): OptionalJson<CreateRequest>,
) -> Result<(ServerTiming, axum::Json<CreateResponse>), ApiError> {
    let (timing, sandbox_id) = ServerTiming::split(state.engine.create().await, ApiError::from)?;
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
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
    )
)]
pub(super) async fn destroy(
    State(state): State<AppState>,
    Json(request): Json<DestroyRequest>,
) -> Result<(ServerTiming, axum::Json<DestroyResponse>), ApiError> {
    let sandbox_id = request.sandbox_id;
    about(&sandbox_id);
    let timings = state.engine.destroy(&sandbox_id).await?;
    let status = DestroyStatus::Destroyed;
    Ok((timings.into(), axum::Json(DestroyResponse { sandbox_id, status })))
}

/// Lists sandboxes, oldest first.
#[utoipa::path(get, path = "/sandboxes", responses((status = 200, body = SandboxList)))]
pub(super) async fn list(State(state): State<AppState>) -> axum::Json<SandboxList> {
    axum::Json(SandboxList { sandboxes: state.engine.list() })
}
