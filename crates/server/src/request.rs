//! Around every request: an id that its answer carries, and the log lines written while it is answered, but not those
//! of a sandbox's own task; and its count and time in the metrics. Knows no route.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use manta_api::SandboxId;
use manta_host::random::random_bytes;
use tracing::{Instrument, Span, debug, field, info_span};

use crate::metrics;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken over from a client, bytes.
const ID_MAX: usize = 64;
/// The route of requests that match none: a path would be the client's choice.
const NO_ROUTE: &str = "none";

/// The middleware.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(NO_ROUTE, MatchedPath::as_str);
    let id = request_id(request.headers());
    let request_id = id.to_str().unwrap_or_default();
    let span = info_span!("request", request_id, sandbox_id = field::Empty, key_id = field::Empty);
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, took) = (response.status(), began.elapsed());
    metrics::answered(route, status, took);
    span.in_scope(|| debug!(route, status = status.as_u16(), ?took, "answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Has the request's log lines carry which sandbox it is about.
pub(crate) fn about(id: &SandboxId) {
    Span::current().record("sandbox_id", field::display(id));
}

/// The client's, if it is a short plain word; else a random one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(REQUEST_ID).filter(|id| is_plain(id.as_bytes()));
    given.cloned().unwrap_or_else(|| {
        let random = random_bytes().map_or(0, u64::from_le_bytes);
        HeaderValue::try_from(format!("{random:016x}")).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

fn is_plain(id: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    (1..=ID_MAX).contains(&id.len()) && id.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id_for(given: &[u8]) -> HeaderValue {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
        request_id(&headers)
    }

    #[test]
    fn a_plain_id_is_kept_and_anything_else_replaced() {
        for plain in ["a", "0b5f-77.X_z", &"i".repeat(ID_MAX)] {
            assert_eq!(id_for(plain.as_bytes()), plain);
        }
        for other in ["", "two words", "a=b", "a\"", "é", &"i".repeat(ID_MAX + 1)] {
            let id = id_for(other.as_bytes());
            assert!(id.len() == 16 && is_plain(id.as_bytes()), "{other:?} gave {id:?}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
