//! Saving sandboxes, and making new ones of what was saved.

use std::time::Duration;

use axum::extract::State;
use manta_api::{
    CreateResponse, ErrorBody, SnapshotCreateRequest, SnapshotCreateResponse, SnapshotDeleteRequest,
    SnapshotDeleteResponse, SnapshotDeleteStatus, SnapshotList, SnapshotRestoreRequest,
};

use super::AppState;
use crate::body::Json;
use crate::error::ApiError;
use crate::params::By;
use crate::request::about;
use crate::server_timing::ServerTiming;

/// Saves a running sandbox: processes, memory and disk as they are at one moment. It goes on running, after a
/// short pause. Answers when the snapshot is on the disk.
#[utoipa::path(
    post,
    path = "/snapshot/create",
    request_body = SnapshotCreateRequest,
    responses(
        (status = 200, body = SnapshotCreateResponse, headers(
            ("Server-Timing" = String, description = "Where the time went: stages in order and their total, milliseconds (W3C Server Timing)"),
        )),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`sandbox_not_found`"),
        (status = 409, body = ErrorBody, description = "`sandbox_not_running` or `snapshot_name_taken`"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 500, body = ErrorBody),
        (status = 502, body = ErrorBody, description = "`snapshot_failed`; the sandbox runs on if it can"),
        (status = 503, body = ErrorBody, description = "`sandbox_busy` or `journal_unwritable`; see Retry-After"),
        (status = 507, body = ErrorBody, description = "`snapshot_storage_full`"),
    )
)]
pub(super) async fn create(
    State(state): State<AppState>,
    By(caller): By,
    Json(request): Json<SnapshotCreateRequest>,
) -> Result<(ServerTiming, axum::Json<SnapshotCreateResponse>), ApiError> {
    about(&request.sandbox_id);
    let taken = state.engine.snapshot(&caller, &request.sandbox_id, request.name.as_deref()).await;
    let (timing, (snapshot_id, pause)) = ServerTiming::split(taken, ApiError::from)?;
    let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
    Ok((timing, axum::Json(SnapshotCreateResponse { snapshot_id, pause_us })))
}

/// Makes a sandbox that goes on where a snapshot was taken. Answers when it takes commands.
#[utoipa::path(
    post,
    path = "/snapshot/restore",
    request_body = SnapshotRestoreRequest,
    responses(
        (status = 200, body = CreateResponse, headers(
            ("Server-Timing" = String, description = "Where the time went: stages in order and their total, milliseconds (W3C Server Timing)"),
        )),
        (status = 400, body = ErrorBody, description = "also when `timeout_s` is out of range"),
        (status = 404, body = ErrorBody, description = "`snapshot_not_found`"),
        (status = 409, body = ErrorBody, description = "`snapshot_incompatible` or `snapshot_damaged`, or \
            `sandbox_not_running`: destroyed before it was ready"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 429, body = ErrorBody, description = "`key_sandbox_limit` or `key_rate_limit`; see Retry-After"),
        (status = 500, body = ErrorBody),
        (status = 502, body = ErrorBody, description = "`boot_failed`"),
        (status = 503, body = ErrorBody, description = "`host_full`, `host_memory_full`, `host_disk_full`, `overloaded`, `journal_unwritable` or `shutting_down`; see Retry-After"),
    )
)]
pub(super) async fn restore(
    State(state): State<AppState>,
    By(caller): By,
    Json(request): Json<SnapshotRestoreRequest>,
) -> Result<(ServerTiming, axum::Json<CreateResponse>), ApiError> {
    let timeout = request.timeout_s.map(Duration::from_secs);
    let restored = state.engine.restore(&caller, &request.snapshot_id, timeout).await;
    let (timing, sandbox_id) = ServerTiming::split(restored, ApiError::from)?;
    about(&sandbox_id);
    Ok((timing, axum::Json(CreateResponse { sandbox_id })))
}

/// Lists snapshots, oldest first, and which of them this server can restore.
#[utoipa::path(
    get,
    path = "/snapshot/list",
    responses((status = 200, body = SnapshotList), (status = 500, body = ErrorBody))
)]
pub(super) async fn list(State(state): State<AppState>) -> Result<axum::Json<SnapshotList>, ApiError> {
    Ok(axum::Json(SnapshotList { snapshots: state.engine.snapshots().await? }))
}

/// Deletes a snapshot. Sandboxes restored from it live on.
#[utoipa::path(
    post,
    path = "/snapshot/delete",
    request_body = SnapshotDeleteRequest,
    responses(
        (status = 200, body = SnapshotDeleteResponse),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody, description = "`snapshot_not_found`"),
        (status = 408, body = ErrorBody),
        (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody),
        (status = 500, body = ErrorBody),
    )
)]
pub(super) async fn delete(
    State(state): State<AppState>,
    Json(request): Json<SnapshotDeleteRequest>,
) -> Result<axum::Json<SnapshotDeleteResponse>, ApiError> {
    state.engine.delete_snapshot(&request.snapshot_id).await?;
    let status = SnapshotDeleteStatus::Deleted;
    Ok(axum::Json(SnapshotDeleteResponse { snapshot_id: request.snapshot_id, status }))
}
