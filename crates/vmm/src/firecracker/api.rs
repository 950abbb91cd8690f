//! A client of Firecracker's API: HTTP over its Unix socket, one request at a time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::StatusCode;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::requests::Request;
use crate::console::excerpt;

/// Longest answer taken, bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// Why Firecracker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The connection could not be made.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The connection broke, which it does when Firecracker ends.
    #[error("the connection broke")]
    Connection(#[source] hyper::Error),
    /// The request could not be built.
    #[error("cannot put the request together")]
    Request(#[source] hyper::http::Error),
    /// No answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The answer is not one.
    #[error("unreadable answer")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Firecracker said no.
    #[error("Firecracker refused ({status}): {fault}")]
    Fault {
        /// HTTP status.
        status: u16,
        /// Its `fault_message`.
        fault: String,
    },
}

/// A connection. Ends with its last use.
#[derive(Debug)]
pub(super) struct Api {
    sender: SendRequest<Full<Bytes>>,
}

impl Api {
    pub(super) async fn new(stream: UnixStream) -> Result<Self, ApiError> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(ApiError::Connection)?;
        tokio::spawn(async move {
            // A broken connection fails the request under way, which reports it.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to Firecracker ended");
            }
        });
        Ok(Self { sender })
    }

    /// Makes a request, and gives the answer: null if there is none in it.
    pub(super) async fn send(&mut self, request: &Request) -> Result<Value, ApiError> {
        let exchange = timeout(request.timeout, self.exchange(request));
        let (status, body) = exchange.await.map_err(|_| ApiError::Timeout(request.timeout))??;
        if status.is_success() {
            return Ok(serde_json::from_slice(&body).unwrap_or_default());
        }
        let fault = match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Object(fields)) => {
                fields.get("fault_message").and_then(Value::as_str).map(str::to_owned)
            }
            _ => None,
        };
        let fault = fault.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(ApiError::Fault { status: status.as_u16(), fault: excerpt(&fault) })
    }

    async fn exchange(&mut self, request: &Request) -> Result<(StatusCode, Bytes), ApiError> {
        let request = hyper::Request::builder()
            .method(&request.method)
            .uri(request.path)
            .header("Host", "localhost")
            .header("Content-Type", "application/json")
            .body(if request.body.is_null() { Full::default() } else { Full::from(request.body.to_string()) })
            .map_err(ApiError::Request)?;
        // Until the connection's task has taken notice of the previous answer, it takes no request.
        self.sender.ready().await.map_err(ApiError::Connection)?;
        let answer = self.sender.send_request(request).await.map_err(ApiError::Connection)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(ApiError::Answer)?;
        Ok((status, body.to_bytes()))
    }
}
