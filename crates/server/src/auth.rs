//! Who may call: the one route that needs no key, the check before all others, and both in the OpenAPI document.
//! What a key is: `keys/`; what is refused where none is asked for: [`page`].

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use manta_api::{ErrorBody, ErrorCode};
use tracing::{Span, field};
use utoipa::ToSchema as _;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, Response as Documented, ResponseBuilder};

use crate::error::ApiError;
use crate::keys::{Holder, LiveKeys, Refused};
use crate::page;

/// Needs no key, so that a supervisor or a load balancer needs none.
const OPEN: (Method, &str) = (Method::GET, "/healthz");
const SCHEME: &str = "bearer";
const DESCRIPTION: &str = "A key made by `manta key create`. Needed once there is one, and always where the server \
    listens on more than loopback; not on its Unix socket.";
/// What is answered to those who are not let in.
const REFUSALS: [(&str, &str); 2] = [
    ("401", "`unauthorized`: no API key was sent, or none that counts"),
    ("403", "`forbidden`: without keys, over TCP: for a web page, or by a name other than `localhost`"),
];

/// The middleware: before a route is looked for, so that who has no key does not learn which there are.
pub(crate) async fn require_key(
    State(keys): State<Arc<LiveKeys>>,
    mut request: Request,
    next: Next,
) -> Response {
    if is_open(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    match keys.admit(bearer(request.headers())) {
        Ok(None) => match page::check(request.uri(), request.headers()) {
            Ok(()) => next.run(request).await,
            Err(what) => ApiError::new(ErrorCode::Forbidden, what).into_response(),
        },
        Ok(Some(Holder { record, caller })) => {
            Span::current().record("key_id", field::display(&record.id));
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(Refused::Unauthorized) => {
            let what = "send a valid API key: Authorization: Bearer KEY (made by `manta key create`)";
            ApiError::new(ErrorCode::Unauthorized, what).into_response()
        }
        Err(Refused::Unreadable) => {
            let what = "the keys cannot be read; the server's log says why";
            ApiError::new(ErrorCode::Internal, what).into_response()
        }
    }
}

/// Has the document say which routes need a key, and that they may answer 401, and 403 where none is asked for.
pub(crate) fn document(openapi: &mut OpenApi) {
    let mut bearer = Http::new(HttpAuthScheme::Bearer);
    bearer.description = Some(DESCRIPTION.to_owned());
    openapi.components.get_or_insert_default().add_security_scheme(SCHEME, SecurityScheme::Http(bearer));
    for (path, item) in &mut openapi.paths.paths {
        for (method, operation) in [(Method::GET, &mut item.get), (Method::POST, &mut item.post)] {
            let Some(operation) = operation.as_mut().filter(|_| !is_open(&method, path)) else { continue };
            operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(SCHEME, [])]);
            for (status, what) in REFUSALS {
                operation.responses.responses.insert(status.to_owned(), RefOr::T(refusal(what)));
            }
        }
    }
}

fn refusal(what: &str) -> Documented {
    let body = Ref::from_schema_name(ErrorBody::name());
    ResponseBuilder::new().description(what).content("application/json", Content::new(Some(body))).build()
}

fn is_open(method: &Method, path: &str) -> bool {
    (method, path) == (&OPEN.0, OPEN.1)
}

/// The key that was sent (RFC 6750, 2.1); none if there are several.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (sent.next(), sent.next()) else { return None };
    let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn sent(values: &[&'static str]) -> Option<Vec<u8>> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer(&headers).map(<[u8]>::to_vec)
    }

    #[test]
    fn one_header_with_one_bearer_token_is_a_key() {
        for value in ["Bearer k", "bearer k", "BEARER  k "] {
            assert_eq!(sent(&[value]).as_deref(), Some(&b"k"[..]), "{value:?}");
        }
        for values in
            [&[][..], &["Bearer"], &["k"], &["Basic aaaaaaa"], &["Bearer k", "Bearer k"], &["Bearer:k"]]
        {
            assert_eq!(sent(values), None, "{values:?}");
        }
    }

    #[test]
    fn nothing_but_health_is_open_and_that_only_to_be_read() {
        assert!(is_open(&Method::GET, "/healthz"));
        for (method, path) in [
            (Method::POST, "/healthz"),
            (Method::HEAD, "/healthz"),
            (Method::GET, "/healthz/"),
            (Method::GET, "//healthz"),
            (Method::GET, "/%68ealthz"),
            (Method::GET, "/metrics"),
            (Method::GET, "/openapi.json"),
            (Method::GET, "/"),
        ] {
            assert!(!is_open(&method, path), "{method} {path}");
        }
    }
}
