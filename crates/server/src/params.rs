//! What a request says outside its body: ids in its path, its query, and whose it is. Either a value, or an answer that says what
//! is wrong with it.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use manta_api::{ErrorCode, SandboxId};
use manta_engine::Caller;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The sandbox that the path names.
pub(crate) struct SandboxPath(pub(crate) SandboxId);

/// Who asks: the holder of the key that was sent, where one was needed.
pub(crate) struct By(pub(crate) Caller);

/// The query; every field of `T` may be absent from it that `T` lets be.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = path.map_err(|rejection| bad(rejection.body_text()))?;
        id.parse().map(Self).map_err(|error: manta_api::IdError| bad(error.to_string()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for By {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get::<Caller>().cloned().unwrap_or_default()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let query = Query::try_from_uri(&parts.uri);
        query.map(|Query(params)| Self(params)).map_err(|rejection| bad(rejection.body_text()))
    }
}

fn bad(message: String) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}
