//! The routes, and the OpenAPI document made from them.

mod events;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod sandboxes;
mod snapshots;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use manta_api::ErrorCode;
use manta_engine::Engine;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth;
use crate::body::MAX_BODY;
use crate::error::ApiError;
use crate::health::Conditions;
use crate::keys::LiveKeys;
use crate::metrics::Metrics;
use crate::request;

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct AppState {
    pub(crate) engine: Arc<Engine>,
    pub(crate) conditions: Arc<Conditions>,
    pub(crate) metrics: Metrics,
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Manta",
    description = "Isolated Linux sandboxes, one microVM each: create, run commands, snapshot, restore, destroy.",
    license(name = "Apache-2.0", identifier = "Apache-2.0")
))]
struct Document;

fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(sandboxes::create))
        .routes(routes!(exec::exec))
        .routes(routes!(sandboxes::destroy))
        .routes(routes!(sandboxes::list))
        .routes(routes!(sandboxes::info))
        .routes(routes!(sandboxes::extend))
        .routes(routes!(events::events))
        .routes(routes!(snapshots::create))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::delete))
        .routes(routes!(crate::health::healthz))
        .routes(routes!(crate::metrics::metrics))
}

/// The OpenAPI document, pretty-printed JSON.
#[must_use]
pub fn openapi() -> String {
    let (_, mut document) = documented().split_for_parts();
    auth::document(&mut document);
    document.to_pretty_json().unwrap_or_default() + "\n"
}

/// The whole HTTP interface; with `keys`, for those who have one.
pub(crate) fn router(state: AppState, keys: Option<Arc<LiveKeys>>) -> Router {
    let document = openapi();
    let (router, _) = documented().split_for_parts();
    let router = router
        .route(
            "/openapi.json",
            axum::routing::get(move || async move { ([("content-type", "application/json")], document) }),
        )
        .fallback(|| async {
            ApiError::new(ErrorCode::NotFound, "no such route; GET /openapi.json lists them")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(ErrorCode::MethodNotAllowed, "this route does not take this method")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let router = match keys {
        Some(keys) => router.layer(axum::middleware::from_fn_with_state(keys, auth::require_key)),
        None => router,
    };
    router.layer(axum::middleware::from_fn(request::observe)).with_state(state)
}
