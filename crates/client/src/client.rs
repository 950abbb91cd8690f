//! The client itself: one request, one answer, one time limit.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use manta_api::{
    CreateRequest, CreateResponse, DestroyRequest, DestroyResponse, ErrorBody, ExecRequest, ExecResponse,
    Health, SandboxId, SandboxList, SnapshotCreateRequest, SnapshotCreateResponse, SnapshotDeleteRequest,
    SnapshotDeleteResponse, SnapshotId, SnapshotList, SnapshotRestoreRequest,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoint::Endpoint;
use crate::{ApiKey, Call, ClientError, ServerTiming, trust};

/// No answer is read beyond this many bytes: room for both outputs of a command at the server's
/// default limit (4 MiB each), were every byte of them escaped (sixfold).
pub const ANSWER_LIMIT: usize = 64 << 20;

/// Less than the 30 s after which the server closes an idle connection, if it is not told otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
const EXCERPT_CHARS: usize = 200;

/// A server, over connections that are kept open and shared by all clones of the client.
///
/// Dropping the future of a call drops its connection; the server may still act on the request.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    timeout: Duration,
    bearer: Option<HeaderValue>,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// A sandbox that was made, and what the server said of the time it took.
#[derive(Debug, Clone)]
pub struct Created {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Absent from older servers, and if it cannot be understood.
    pub server_timing: Option<ServerTiming>,
}

/// What came back.
struct Answer<T> {
    headers: HeaderMap,
    body: T,
}

impl Client {
    /// A client of the server at `endpoint` (`http://host[:port]`, or `https`), whose every request, from
    /// looking up the host to the last byte of the answer, may take `timeout`. Behind `https` it must be one that
    /// the authorities vouch for which this machine trusts.
    ///
    /// Nothing is sent yet. Calls must be made on a Tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`], [`ClientError::Trust`].
    pub fn new(endpoint: &str, timeout: Duration) -> Result<Self, ClientError> {
        Self::with_trust(endpoint, None, timeout)
    }

    /// The same, but behind `https` only the authorities in the file `ca_cert` (PEM) count.
    ///
    /// # Errors
    /// As of [`Self::new`].
    pub fn trusting(ca_cert: &Path, endpoint: &str, timeout: Duration) -> Result<Self, ClientError> {
        Self::with_trust(endpoint, Some(ca_cert), timeout)
    }

    fn with_trust(endpoint: &str, ca_cert: Option<&Path>, timeout: Duration) -> Result<Self, ClientError> {
        let endpoint: Endpoint = endpoint
            .parse()
            .map_err(|source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source })?;
        let mut connector = HttpConnector::new();
        // Requests are small and waited for: Nagle's algorithm would only hold them back.
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = trust::connector(connector, endpoint.is_https(), ca_cert)
            .map_err(|source| ClientError::Trust { ca_cert: ca_cert.map(Path::to_owned), source })?;
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build(connector);
        Ok(Self { endpoint, timeout, bearer: None, http })
    }

    /// The same client, connections included, that sends `key` with each request.
    ///
    /// # Errors
    /// [`ClientError::ApiKey`].
    pub fn with_api_key(&self, key: &ApiKey) -> Result<Self, ClientError> {
        let bearer = key.bearer().map_err(|_| ClientError::ApiKey)?;
        Ok(Self { bearer: Some(bearer), ..self.clone() })
    }

    /// The same client, connections included, with another time limit.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The server's address, `http://host[:port]` or `https`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint.to_string()
    }

    /// `POST /create`: a sandbox, ready for its first command.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`. After `Exchange`, `Timeout`, `Body` or `Decode` a sandbox
    /// may exist whose id is known only to the server.
    pub async fn create(&self) -> Result<Created, ClientError> {
        self.make(Call::Create, &CreateRequest::default()).await
    }

    /// `POST /exec`: runs a command to its end. An exit code other than 0 is not an error.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecResponse, ClientError> {
        self.post(Call::Exec, request).await
    }

    /// `POST /destroy`: the guest is dead and its files are gone when this returns; its network slot goes behind.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`. Destroying is idempotent: it may be tried again.
    pub async fn destroy(&self, id: &SandboxId) -> Result<DestroyResponse, ClientError> {
        self.post(Call::Destroy, &DestroyRequest { sandbox_id: id.clone() }).await
    }

    /// `POST /snapshot/create`: saves a running sandbox, which goes on running, under a name if one is given.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`. After `Exchange`, `Timeout`, `Body` or `Decode` a snapshot may
    /// exist: [`Client::snapshots`] has it, by its sandbox.
    pub async fn snapshot(
        &self,
        id: &SandboxId,
        name: Option<String>,
    ) -> Result<SnapshotCreateResponse, ClientError> {
        self.post(Call::SnapshotCreate, &SnapshotCreateRequest { sandbox_id: id.clone(), name }).await
    }

    /// `POST /snapshot/restore`: a new sandbox that begins where the snapshot was taken.
    ///
    /// # Errors
    /// As of [`Client::create`]; [`Client::sandboxes`] has the sandbox whose id got lost, by its snapshot.
    pub async fn restore(&self, id: &SnapshotId) -> Result<Created, ClientError> {
        let request = SnapshotRestoreRequest { snapshot_id: id.clone(), timeout_s: None };
        self.make(Call::SnapshotRestore, &request).await
    }

    /// `POST /snapshot/delete`: sandboxes restored from it are not touched.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`. A snapshot that is not there is one: `snapshot_not_found`.
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<SnapshotDeleteResponse, ClientError> {
        self.post(Call::SnapshotDelete, &SnapshotDeleteRequest { snapshot_id: id.clone() }).await
    }

    /// `GET /snapshot/list`: the snapshots that exist.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`.
    pub async fn snapshots(&self) -> Result<SnapshotList, ClientError> {
        self.get(Call::Snapshots).await
    }

    /// `GET /sandboxes`: those that exist.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`.
    pub async fn sandboxes(&self) -> Result<SandboxList, ClientError> {
        self.get(Call::Sandboxes).await
    }

    /// `GET /healthz`: whether the server works, and under which conditions.
    ///
    /// # Errors
    /// Any [`ClientError`] but `Endpoint`.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.get(Call::Health).await
    }

    async fn make(&self, call: Call, body: &impl Serialize) -> Result<Created, ClientError> {
        let Answer { headers, body } = self.call::<CreateResponse>(call, encode(call, body)?).await?;
        Ok(Created { sandbox_id: body.sandbox_id, server_timing: ServerTiming::of(&headers) })
    }

    async fn post<T: DeserializeOwned>(&self, call: Call, body: &impl Serialize) -> Result<T, ClientError> {
        self.call(call, encode(call, body)?).await.map(|answer| answer.body)
    }

    async fn get<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        self.call(call, Vec::new()).await.map(|answer| answer.body)
    }

    async fn call<T: DeserializeOwned>(&self, call: Call, body: Vec<u8>) -> Result<Answer<T>, ClientError> {
        let (status, Answer { headers, body }) =
            tokio::time::timeout(self.timeout, self.exchange(call, body))
                .await
                .map_err(|_| ClientError::Timeout { call, timeout: self.timeout })??;
        let answer = if status.is_success() {
            serde_json::from_slice(&body)
        } else {
            match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(body) => return Err(ClientError::Api { call, status: status.as_u16(), body }),
                Err(error) => Err(error),
            }
        };
        answer.map(|body| Answer { headers, body }).map_err(|source| {
            let excerpt = String::from_utf8_lossy(&body).chars().take(EXCERPT_CHARS).collect();
            ClientError::Decode { call, status: status.as_u16(), excerpt, source }
        })
    }

    async fn exchange(&self, call: Call, body: Vec<u8>) -> Result<(StatusCode, Answer<Bytes>), ClientError> {
        let request = Request::builder()
            .method(call.method())
            .uri(format!("{}{}", self.endpoint, call.path()))
            .header(CONTENT_TYPE, "application/json");
        let request = match &self.bearer {
            Some(bearer) => request.header(AUTHORIZATION, bearer),
            None => request,
        };
        let request =
            request.body(Full::from(body)).map_err(|source| ClientError::Request { call, source })?;
        let answer = self.http.request(request).await.map_err(|source| {
            let endpoint = self.endpoint();
            if source.is_connect() {
                ClientError::Connect { call, endpoint, source }
            } else {
                ClientError::Exchange { call, endpoint, source }
            }
        })?;
        let (head, body) = answer.into_parts();
        let status = head.status;
        let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|source| {
            let status = status.as_u16();
            if source.is::<LengthLimitError>() {
                ClientError::TooLarge { call, status, limit: ANSWER_LIMIT }
            } else {
                ClientError::Body { call, status, source }
            }
        })?;
        Ok((status, Answer { headers: head.headers, body: body.to_bytes() }))
    }
}

fn encode(call: Call, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|source| ClientError::Encode { call, source })
}
