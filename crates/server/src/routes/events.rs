//! The event log, as lines of JSON.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use futures_util::stream::unfold;
use manta_api::{ErrorBody, Event, SandboxId};
use manta_engine::EventReader;
use serde::Deserialize;

use super::AppState;
use crate::error::ApiError;
use crate::params::Params;

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventParams {
    since: Option<u64>,
    #[serde(default)]
    follow: Follow,
    sandbox_id: Option<SandboxId>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Follow {
    #[default]
    #[serde(rename = "0")]
    No,
    #[serde(rename = "1")]
    Yes,
}

/// Tells what happened to sandboxes, one JSON object a line, in order. The last 100,000 events are kept, over restarts; whoever asks
/// for older ones, or does not read fast enough, gets a line with `event` `lost` in their place.
#[utoipa::path(
    get,
    path = "/events",
    params(
        ("since" = Option<u64>, Query, description = "Only events with a higher `seq`; all that are kept when absent"),
        ("follow" = Option<String>, Query, description = "`1`: go on with new events until the client hangs up or the \
            server ends; `0` when absent"),
        ("sandbox_id" = Option<SandboxId>, Query, description = "Only events of this sandbox"),
    ),
    responses(
        (status = 200, body = Event, content_type = "application/x-ndjson"),
        (status = 400, body = ErrorBody),
    )
)]
pub(super) async fn events(
    State(state): State<AppState>,
    Params(EventParams { since, follow, sandbox_id }): Params<EventParams>,
) -> Result<impl IntoResponse, ApiError> {
    let reader = state.engine.events(since, follow == Follow::Yes, sandbox_id);
    // Read as the client takes it, and dropped when it hangs up.
    let lines = unfold(reader, async |mut reader| Some((lines(&mut reader).await?, reader)));
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)))
}

/// The next lines; none when there are no more.
async fn lines(reader: &mut EventReader) -> Option<Result<Bytes, serde_json::Error>> {
    let mut lines = Vec::new();
    for event in reader.next().await? {
        if let Err(error) = serde_json::to_writer(&mut lines, &*event) {
            return Some(Err(error));
        }
        lines.push(b'\n');
    }
    Some(Ok(lines.into()))
}
