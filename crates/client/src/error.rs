//! How a call can fail. Each error says what was called.

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::client::legacy;
use manta_api::ErrorBody;
use thiserror::Error;

use crate::{Call, EndpointError, TrustError};

/// Why a call gave no result.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address is none; nothing was sent.
    #[error("{endpoint:?} is not the address of a server, as in http://localhost:8080")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        source: EndpointError,
    },
    /// No `https` server could prove to be the one; nothing was sent.
    #[error("cannot tell which servers to trust{}", ca_cert.as_ref().map(|path| format!(": {}", path.display())).unwrap_or_default())]
    Trust {
        /// The file that was to tell; none: the machine.
        ca_cert: Option<PathBuf>,
        /// Why not.
        source: TrustError,
    },
    /// The API key cannot be sent; nothing was.
    #[error("the API key has characters that none has")]
    ApiKey,
    /// The request could not be written as JSON; nothing was sent.
    #[error("{call}: cannot write the request as JSON")]
    Encode {
        /// What was called.
        call: Call,
        /// Which value.
        source: serde_json::Error,
    },
    /// The request is not valid HTTP; nothing was sent.
    #[error("{call}: cannot build the request")]
    Request {
        /// What was called.
        call: Call,
        /// Which part.
        source: hyper::http::Error,
    },
    /// Nobody listens there, or the name does not resolve; nothing was sent.
    #[error("{call}: cannot connect to {endpoint}")]
    Connect {
        /// What was called.
        call: Call,
        /// The server's address.
        endpoint: String,
        /// Why.
        source: legacy::Error,
    },
    /// The connection broke before an answer came. The server may have acted on the request.
    #[error("{call}: the connection to {endpoint} broke before the answer")]
    Exchange {
        /// What was called.
        call: Call,
        /// The server's address.
        endpoint: String,
        /// Why.
        source: legacy::Error,
    },
    /// No complete answer in time. The server may have acted, or be acting still, on the request.
    #[error("{call}: no complete answer within {timeout:?}")]
    Timeout {
        /// What was called.
        call: Call,
        /// The client's time limit for a whole request.
        timeout: Duration,
    },
    /// The connection broke within the body of the answer.
    #[error("{call}: HTTP {status}, and its body broke off")]
    Body {
        /// What was called.
        call: Call,
        /// HTTP status.
        status: u16,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The body of the answer goes over the client's limit.
    #[error("{call}: HTTP {status}, and its body is over {limit} bytes")]
    TooLarge {
        /// What was called.
        call: Call,
        /// HTTP status.
        status: u16,
        /// [`ANSWER_LIMIT`](crate::ANSWER_LIMIT).
        limit: usize,
    },
    /// The server refused or failed, and says why.
    #[error("{call}: HTTP {status}: {}", body.error)]
    Api {
        /// What was called.
        call: Call,
        /// HTTP status.
        status: u16,
        /// The server's account: text, stable code, partial output.
        body: ErrorBody,
    },
    /// The answer is not one that this version of Manta gives on this route.
    #[error("{call}: HTTP {status} with a body that is not Manta's: {excerpt:?}")]
    Decode {
        /// What was called.
        call: Call,
        /// HTTP status.
        status: u16,
        /// How the body begins.
        excerpt: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}
