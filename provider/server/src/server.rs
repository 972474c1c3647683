//! The listener: binds, takes TLS connections, serves each, stops.
//!
//! Owns limits on what a client may hold before it is known: a number of connections, and time for the handshake and
//! for a request's head.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::auth::{Authenticator, Authorizer};
use crate::backend::Backend;
use crate::guard::Guard;
use crate::routes::{Shared, router};
use crate::tls::{ClientAuthority, Door, ServingCertificate, TlsError, identity};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
const REQUEST_HEAD: Duration = Duration::from_secs(30);
/// A remote command ends when its client sent nothing, not even a ping, for so long.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// How long connections have to end when the server stops.
const DRAIN: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which is mostly a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the port needs besides its backend.
pub struct ServerConfig {
    /// The node's name, which rights are asked for.
    pub node: String,
    /// What the port shows.
    pub certificate: ServingCertificate,
    /// The authority of client certificates.
    pub client_authority: ClientAuthority,
    /// Who knows tokens.
    pub authenticator: Arc<dyn Authenticator>,
    /// Who decides.
    pub authorizer: Arc<dyn Authorizer>,
    /// The host's log directory, where it may be read.
    pub node_logs: Option<PathBuf>,
}

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The certificates are of no use.
    #[error("set up TLS of the kubelet port")]
    Tls(#[from] TlsError),
    /// Somebody else listens there.
    #[error("kubelet port {0} is already in use: another kubelet, or another kvmlet, may be running on this host")]
    InUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("listen on kubelet port {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The kubelet port, bound and not served yet.
pub struct Server {
    listener: TcpListener,
    door: Door,
    router: Router,
    shutdown: CancellationToken,
    sessions: TaskTracker,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `address`.
    pub async fn bind<B: Backend>(address: SocketAddr, config: ServerConfig, backend: B) -> Result<Self, BindError> {
        let door = Door::new(config.certificate, config.client_authority)?;
        let listener = TcpListener::bind(address).await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse(address),
            _ => BindError::Listen { address, source },
        })?;
        let (shutdown, sessions) = (CancellationToken::new(), TaskTracker::new());
        let shared = Arc::new(Shared {
            backend,
            shutdown: shutdown.clone(),
            sessions: sessions.clone(),
            idle: IDLE,
        });
        let guard = Guard {
            node: config.node.into(),
            authenticator: config.authenticator,
            authorizer: config.authorizer,
        };
        let router = router(shared, guard, config.node_logs);
        Ok(Self {
            listener,
            door,
            router,
            shutdown,
            sessions,
        })
    }

    /// The address it listens on, with the port the kernel chose if it was 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready, then ends the connections.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        let Self {
            listener,
            mut door,
            router,
            shutdown,
            sessions,
        } = self;
        let accepting = accept_all(&listener, &mut door, &router, &shutdown, &sessions);
        tokio::select! {
            () = accepting => {}
            () = stop => {}
        }
        drop(listener);
        shutdown.cancel();
        sessions.close();
        if timeout(DRAIN, sessions.wait()).await.is_err() {
            tracing::warn!(left = sessions.len(), "connections of the kubelet port did not end in time");
        }
    }
}

/// Never returns.
async fn accept_all(listener: &TcpListener, door: &mut Door, router: &Router, shutdown: &CancellationToken, sessions: &TaskTracker) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept connection of the kubelet port");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = serve_connection(stream, door.acceptor(), router.clone(), shutdown.clone());
        sessions.spawn(async move {
            connection
                .await
                .unwrap_or_else(|error| tracing::debug!(%error, %peer, "connection of the kubelet port"));
            drop(permit);
        });
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("TLS handshake: {0}")]
    Handshake(io::Error),
    #[error("TLS handshake took too long")]
    HandshakeTimeout,
    #[error("HTTP: {0}")]
    Http(hyper::Error),
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) -> Result<(), ConnectionError> {
    // Interactive streams send small pieces; without this each waits for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let handshake = timeout(HANDSHAKE, acceptor.accept(stream));
    let stream = tokio::select! {
        stream = handshake => stream.map_err(|_| ConnectionError::HandshakeTimeout)?.map_err(ConnectionError::Handshake)?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let identity = identity(stream.get_ref().1.peer_certificates());
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        if let Some(identity) = &identity {
            request.extensions_mut().insert(identity.clone());
        }
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(ConnectionError::Http)
}
