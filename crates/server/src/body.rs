//! Request bodies: JSON of one type, or an answer that says what is wrong with it.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header::CONTENT_TYPE;
use manta_api::ErrorCode;
use serde::de::DeserializeOwned;

use crate::error::ApiError;
use crate::http::BodyLimits;

/// Longest request body, bytes: standard input of a command is in there.
pub(crate) const MAX_BODY: usize = 8 * 1024 * 1024;

/// A body that must be there.
pub(crate) struct Json<T>(pub(crate) T);

/// A body that may be absent.
pub(crate) struct OptionalJson<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match bytes(request, state).await? {
            Some(bytes) => parse(&bytes).map(Self),
            None => Err(ApiError::new(ErrorCode::BadRequest, "the request has no body; send a JSON object")),
        }
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Ok(Self(match bytes(request, state).await? {
            Some(bytes) => parse(&bytes)?,
            None => T::default(),
        }))
    }
}

async fn bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Option<Bytes>, ApiError> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let limits = request.extensions().get::<BodyLimits>().cloned();
    let bytes = in_time(limits, Bytes::from_request(request, state)).await?.map_err(|rejection| {
        if rejection.status().as_u16() == 413 {
            ApiError::new(ErrorCode::BodyTooLarge, format!("the body is longer than {MAX_BODY} bytes"))
        } else {
            ApiError::new(ErrorCode::BadRequest, format!("the body could not be read: {rejection}"))
        }
    })?;
    if bytes.is_empty() {
        return Ok(None);
    }
    // Also a second wall against web pages (`page.rs` is the first): for this type a browser asks beforehand, and
    // nobody answers.
    let json = content_type.as_ref().and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
    });
    if json {
        Ok(Some(bytes))
    } else {
        Err(ApiError::new(
            ErrorCode::UnsupportedMediaType,
            "send the body with Content-Type: application/json",
        ))
    }
}

/// What `read` gives, unless that takes too long or the server ends meanwhile.
async fn in_time<T>(limits: Option<BodyLimits>, read: impl Future<Output = T>) -> Result<T, ApiError> {
    let Some(BodyLimits { timeout, stop }) = limits else { return Ok(read.await) };
    tokio::select! {
        biased;
        read = tokio::time::timeout(timeout, read) => read.map_err(|_| {
            ApiError::new(ErrorCode::BodyTimeout, format!("the body did not arrive within {timeout:?}"))
        }),
        () = stop.cancelled() => Err(ApiError::new(ErrorCode::ShuttingDown, "the server is shutting down")),
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // An array would do for serde: its elements, in the order of the fields.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::new(ErrorCode::BadRequest, "the body must be a JSON object"));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("the body is not what this route takes: {error}"))
    })
}
