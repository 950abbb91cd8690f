//! Serving connections: how many at once, how long each part of a request may take, and their orderly end.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::stream::LimitedWrites;
use crate::tls::LiveTls;

/// Longest request head, bytes; longer ones are answered 431.
const HEAD_MAX: usize = 32 * 1024;

/// What clients may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections open at once, of each listener; more wait in the kernel's queue.
    pub(crate) connections: usize,
    /// For a TLS handshake, for a request's head to arrive, and for the next one on a connection that is kept open.
    pub(crate) header_timeout: Duration,
    /// For a request's body to arrive, and for an answer to be taken.
    pub(crate) body_timeout: Duration,
}

/// Goes with each request, for whoever reads its body.
#[derive(Debug, Clone)]
pub(crate) struct BodyLimits {
    /// How long that may take.
    pub(crate) timeout: Duration,
    /// No body is waited for after this.
    pub(crate) stop: CancellationToken,
}

/// Serves what `listener` accepts, with `tls` if there is one, until `stop`; then ends when all connections have: at once where no request is
/// being answered, else with the answer.
pub(crate) async fn serve<L: Listener>(
    mut listener: L,
    tls: Option<Arc<LiveTls>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let accept = async {
        // Never closed, so there is always a permit in the end.
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let (stream, _) = listener.accept().await;
            let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
            connections.spawn(async move {
                match tls {
                    Some(tls) => secured(stream, &tls, router, limits, stop).await,
                    None => connection(stream, router, limits, stop).await,
                }
                drop(permit);
            });
        }
    };
    stop.run_until_cancelled(accept).await;
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Nobody else waits for the handshake, nor does the end: there is no request yet.
async fn secured<S>(stream: S, tls: &LiveTls, router: Router, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match stop.run_until_cancelled(tls.accept(stream, limits.header_timeout)).await {
        Some(Ok(stream)) => connection(stream, router, limits, stop).await,
        Some(Err(error)) => debug!(%error, "no TLS handshake"),
        None => {}
    }
}

/// Serves one connection to its end.
pub(crate) async fn connection<S>(stream: S, router: Router, limits: Limits, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = LimitedWrites::new(stream, limits.body_timeout);
    let writing = stream.writing();
    let in_service = AtomicUsize::new(0);
    let router = TowerToHyperService::new(router);
    let body_limits = BodyLimits { timeout: limits.body_timeout, stop: stop.clone() };
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(body_limits.clone());
        let served = InService::begin(&in_service);
        let answered = router.call(request);
        async move {
            let answer = answered.await;
            drop(served);
            answer
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_header_size(HEAD_MAX)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        // First what has arrived, so that a request that was sent in time is answered.
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            // hyper would wait for the rest of a head; nobody would answer that.
            if in_service.load(Ordering::Relaxed) == 0 && !writing.load(Ordering::Relaxed) {
                return;
            }
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
}

/// A request that was read up to its body, and has no answer yet.
struct InService<'a>(&'a AtomicUsize);

impl<'a> InService<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InService<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
