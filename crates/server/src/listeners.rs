//! Where the server listens, TCP or a Unix socket or both, and who needs a key there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::ListenerExt as _;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::args::{ListenAddr, ServerArgs};
use crate::http::{Limits, UnixSocket, serve};
use crate::keys::LiveKeys;
use crate::routes::{AppState, router};
use crate::run::{ServerError, absolute};
use crate::tls::LiveTls;

/// Bound, so that clients may connect; nothing is accepted yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    tcp: Option<(TcpListener, SocketAddr)>,
    tls: Option<Arc<LiveTls>>,
    unix: Option<Unix>,
    keys: Arc<LiveKeys>,
    limits: Limits,
}

#[derive(Debug)]
struct Unix {
    path: PathBuf,
    socket: UnixSocket,
    listener: UnixListener,
}

/// The server at work.
#[derive(Debug)]
pub(crate) struct Serving {
    stop: CancellationToken,
    listeners: TaskTracker,
    /// Removed when the server has ended.
    _socket: Option<UnixSocket>,
}

impl Listeners {
    /// Reads the keys and binds what the settings name.
    pub(crate) async fn bind(args: &ServerArgs) -> Result<Self, ServerError> {
        let keys = LiveKeys::open(&absolute(&args.work_dir)?).map_err(ServerError::Keys)?;
        let tls = tls(args)?.map(Arc::new);
        let tcp = match args.listen_addr {
            ListenAddr::Tcp(address) => Some(bind_tcp(address, &keys, args.allow_unauthenticated).await?),
            ListenAddr::None if args.listen_unix.is_some() => None,
            ListenAddr::None => {
                let nothing = "MANTA_LISTEN_ADDR=none leaves nothing to listen on; set MANTA_LISTEN_UNIX";
                return Err(ServerError::Setting(nothing.to_owned()));
            }
        };
        let unix = match &args.listen_unix {
            Some(path) => {
                let path = absolute(path)?;
                let (socket, listener) = UnixSocket::listen(&path)
                    .map_err(|source| ServerError::ListenUnix { path: path.clone(), source })?;
                Some(Unix { path, socket, listener })
            }
            None => None,
        };
        let limits = Limits {
            connections: usize::try_from(args.max_connections).unwrap_or(usize::MAX),
            header_timeout: args.header_timeout,
            body_timeout: args.body_timeout,
        };
        Ok(Self { tcp, tls, unix, keys: Arc::new(keys), limits })
    }

    /// Where clients can reach it, a URL each, TCP first.
    pub(crate) fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let tcp = self.tcp.iter().map(|(_, address)| format!("{scheme}://{address}"));
        tcp.chain(self.unix.iter().map(|unix| format!("unix:{}", unix.path.display()))).collect()
    }

    /// Begins to accept.
    pub(crate) fn serve(self, state: AppState) -> Serving {
        let (stop, listeners) = (CancellationToken::new(), TaskTracker::new());
        let mut socket = None;
        if let Some((listener, address)) = self.tcp {
            info!(%address, tls = self.tls.is_some(), keys_required = self.keys.required(), "serving");
            // An answer is one small write, and nothing follows it that it could wait for.
            let listener = listener.tap_io(|stream| {
                let _ = stream.set_nodelay(true);
            });
            let router = router(state.clone(), Some(self.keys));
            listeners.spawn(serve(listener, self.tls, router, self.limits, stop.clone()));
        }
        if let Some(unix) = self.unix {
            info!(path = %unix.path.display(), "serving");
            listeners.spawn(serve(unix.listener, None, router(state, None), self.limits, stop.clone()));
            socket = Some(unix.socket);
        }
        listeners.close();
        Serving { stop, listeners, _socket: socket }
    }
}

impl Serving {
    /// Accepts nothing more, and waits for the answers under way, for as long as `grace`.
    pub(crate) async fn stop(self, grace: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(grace, self.listeners.wait()).await.is_err() {
            warn!("connections still open at the end were cut");
        }
    }
}

/// The certificate that the settings name.
///
/// # Errors
/// When only one half of it is named, or it cannot be used.
pub(crate) fn tls(args: &ServerArgs) -> Result<Option<LiveTls>, ServerError> {
    match (&args.tls_cert, &args.tls_key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => {
            LiveTls::open(absolute(cert)?, absolute(key)?).map(Some).map_err(ServerError::Tls)
        }
        _ => {
            Err(ServerError::Setting("MANTA_TLS_CERT and MANTA_TLS_KEY belong together; set both".to_owned()))
        }
    }
}

/// What an operator should know of an address that is served without TLS.
pub(crate) fn in_clear(args: &ServerArgs) -> Option<String> {
    match args.listen_addr {
        ListenAddr::Tcp(address) if !address.ip().is_loopback() && args.tls_cert.is_none() => Some(format!(
            "no TLS on {address}: API keys, commands and their output cross the network in clear text; set \
             MANTA_TLS_CERT and MANTA_TLS_KEY, or listen on 127.0.0.1 behind a proxy that has a certificate"
        )),
        _ => None,
    }
}

async fn bind_tcp(
    address: SocketAddr,
    keys: &LiveKeys,
    allow_unauthenticated: bool,
) -> Result<(TcpListener, SocketAddr), ServerError> {
    if !address.ip().is_loopback() && keys.is_empty() {
        if !allow_unauthenticated {
            return Err(ServerError::Unauthenticated(address));
        }
        if !keys.required() {
            warn!(%address, "MANTA_ALLOW_UNAUTHENTICATED: whoever reaches this address can do everything");
        }
    }
    if keys.is_empty() && keys.required() {
        warn!("no key is left in the file of keys: nobody is let in over TCP until one is made");
    }
    let listen = |source| ServerError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    Ok((listener, bound))
}
