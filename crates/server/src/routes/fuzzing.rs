//! What must hold for any body, any query and any bytes on a connection: every route's own types, behind the real
//! limits and keys, with nothing done when they are read. Called by the fuzz targets `bodies`, `names` and `http`, and
//! in tests.
#![allow(clippy::unwrap_used)] // none of the product

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::FutureExt;
use manta_agent_proto::Program;
use manta_api::{
    CreateRequest, DestroyRequest, ExecRequest, ExtendRequest, SnapshotCreateRequest, SnapshotDeleteRequest,
    SnapshotRestoreRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::events::EventParams;
use super::exec;
use crate::auth::require_key;
use crate::body::{Json, MAX_BODY, OptionalJson};
use crate::http::{Limits, connection};
use crate::keys::LiveKeys;
use crate::params::{Params, SandboxPath};
use crate::request::observe;

/// Longest of all limits together, on a clock that is paused.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Reads a body as that of the route which the first byte stands for: it is refused, or says the same when it is
/// written again; and what a command is made of has no NUL.
///
/// # Panics
/// When it does not.
pub fn body(input: &[u8]) {
    let Some((route, body)) = input.split_first() else { return };
    match route % 7 {
        0 => drop(read::<CreateRequest>(body)),
        1 => drop(read::<DestroyRequest>(body)),
        2 => drop(read::<ExtendRequest>(body)),
        3 => drop(read::<SnapshotCreateRequest>(body)),
        4 => drop(read::<SnapshotRestoreRequest>(body)),
        5 => drop(read::<SnapshotDeleteRequest>(body)),
        _ => {
            let Some(Ok(spec)) = read::<ExecRequest>(body).map(exec::spec) else { return };
            let mut texts = spec.cwd.into_iter().collect::<Vec<_>>();
            match spec.program {
                Program::Shell(line) => texts.push(line),
                Program::Argv(argv) => {
                    assert!(
                        argv.first().is_some_and(|program| !program.is_empty()),
                        "a program without a name"
                    );
                    texts.extend(argv);
                }
            }
            for (name, value) in spec.env {
                assert!(!name.is_empty() && !name.contains('='), "a variable without a name");
                texts.extend([name, value]);
            }
            assert!(texts.iter().all(|text| !text.contains('\0')), "a NUL");
        }
    }
}

fn read<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<T> {
    let extract = |body: Vec<u8>| {
        let request =
            Request::builder().header(CONTENT_TYPE, "application/json").body(Body::from(body)).unwrap();
        Json::<T>::from_request(request, &()).now_or_never().expect("a body that is there is read at once")
    };
    match extract(body.to_vec()) {
        Ok(Json(read)) => {
            let written = serde_json::to_vec(&read).unwrap();
            let Ok(Json(again)) = extract(written.clone()) else { panic!("what was written is refused") };
            assert_eq!(serde_json::to_vec(&again).unwrap(), written);
            Some(read)
        }
        Err(refused) => {
            let status = refused.into_response().status();
            assert!(status.is_client_error(), "{status}");
            None
        }
    }
}

/// Reads a path and a query as those of `GET /events`: they are refused, or taken.
///
/// # Panics
/// When that is neither.
pub fn query(text: &str) {
    let Ok(request) = Request::builder().uri(format!("/events?{text}")).body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    let read = Params::<EventParams>::from_request_parts(&mut parts, &()).now_or_never().expect("at once");
    if let Err(refused) = read {
        assert!(refused.into_response().status().is_client_error());
    }
}

/// Serves a connection on which these bytes arrive, in two parts: who has no key is answered by `GET /healthz` alone,
/// and nothing answers 5xx. The first byte says how long the first part is, and whether keys are asked for. The clock
/// must be paused.
///
/// # Panics
/// When it is otherwise, or when the connection does not end.
pub async fn http(input: &[u8]) {
    let Some((&first, bytes)) = input.split_first() else { return };
    let (one, other) = bytes.split_at((4 * usize::from(first)).min(bytes.len()));
    let locked = first % 2 == 1;
    let limits = Limits {
        connections: 1,
        header_timeout: Duration::from_secs(5),
        body_timeout: Duration::from_secs(10),
    };
    let (mut ours, theirs) = tokio::io::duplex(MAX_BODY);
    let client = async {
        ours.write_all(one).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The server may have heard enough.
        let _ = ours.write_all(other).await;
        let _ = ours.shutdown().await;
        let mut answers = Vec::new();
        ours.read_to_end(&mut answers).await.map(|_| answers)
    };
    let served = connection(theirs, routes(locked), limits, CancellationToken::new());
    let both = async { tokio::join!(served, client).1 };
    let answers = tokio::time::timeout(FOR_EVER, both).await.expect("a connection ends").unwrap_or_default();
    assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "no HTTP");
}

async fn done<E>(_: E) -> &'static str {
    "done"
}

/// The routes with what they take, doing nothing.
fn routes(locked: bool) -> Router {
    let router = Router::new()
        .route("/create", post(done::<OptionalJson<CreateRequest>>))
        .route("/exec", post(async |Json(request): Json<ExecRequest>| exec::spec(request).map(|_| "done")))
        .route("/destroy", post(done::<Json<DestroyRequest>>))
        .route("/sandboxes/{id}", get(done::<SandboxPath>))
        .route("/sandboxes/{id}/extend", post(async |_: SandboxPath, _: Json<ExtendRequest>| "done"))
        .route("/events", get(done::<Params<EventParams>>))
        .route("/snapshot/create", post(done::<Json<SnapshotCreateRequest>>))
        .route("/snapshot/restore", post(done::<Json<SnapshotRestoreRequest>>))
        .route("/snapshot/delete", post(done::<Json<SnapshotDeleteRequest>>))
        .route("/healthz", get(async || "healthy"))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    let router = router.layer(from_fn_with_state(Arc::new(LiveKeys::without_keys(locked)), require_key));
    let judged = move |request: Request, next: Next| async move {
        let open = request.method() == Method::GET && request.uri().path() == "/healthz";
        let response = next.run(request).await;
        let status = response.status();
        assert!(!status.is_server_error(), "{status}");
        assert!(open || !locked || status == StatusCode::UNAUTHORIZED, "{status} without a key");
        response
    };
    router.layer(from_fn(observe)).layer(from_fn(judged))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
        let seeds: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|seed| std::fs::read(seed.unwrap().path()).unwrap())
            .collect();
        assert!(!seeds.is_empty());
        seeds
    }

    #[test]
    fn bodies_and_queries_of_the_seeds_hold_it() {
        seeds("bodies").iter().for_each(|seed| body(seed));
        seeds("names").iter().for_each(|seed| query(&String::from_utf8_lossy(seed)));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_the_seeds_hold_it() {
        for seed in seeds("http") {
            http(&seed).await;
        }
    }
}
