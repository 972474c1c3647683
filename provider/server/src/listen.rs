//! An HTTPS listener: takes connections, serves each by a router, stops. The kubelet port and the webhook are both such.
//!
//! Owns limits on what a client may hold before it is known: a number of connections, and time for the handshake and
//! for a request's head.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
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

use crate::tls::{ServingCertificate, TlsError, anonymous, identity};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
const HANDSHAKE: Duration = Duration::from_secs(10);
const REQUEST_HEAD: Duration = Duration::from_secs(30);
/// How long connections have to end when the listener stops.
const DRAIN: Duration = Duration::from_secs(5);
/// The pause after a failed accept, which is mostly a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port, bound and not served yet.
pub struct Listener {
    /// As messages name it.
    name: &'static str,
    listener: TcpListener,
    /// Of the next connection.
    acceptor: Box<dyn FnMut() -> TlsAcceptor + Send>,
    router: Router,
    shutdown: CancellationToken,
    sessions: TaskTracker,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Listener {
    /// Will serve what comes to `listener`, and ask no client for a certificate. `name` is what messages call it.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(name: &'static str, listener: TcpListener, certificate: ServingCertificate, router: Router) -> Result<Self, TlsError> {
        let acceptor = anonymous(certificate)?;
        Ok(Self::by(name, listener, move || acceptor.clone(), router))
    }

    /// The same, whose connections are taken by what `acceptor` answers when they come. HTTP/1.1 is spoken, so it must offer no other by ALPN.
    pub(crate) fn by(
        name: &'static str,
        listener: TcpListener,
        acceptor: impl FnMut() -> TlsAcceptor + Send + 'static,
        router: Router,
    ) -> Self {
        Self {
            name,
            listener,
            acceptor: Box::new(acceptor),
            router,
            shutdown: CancellationToken::new(),
            sessions: TaskTracker::new(),
        }
    }

    /// Upgraded connections are the router's, which then tracks them and hears of the end by these.
    pub(crate) fn sharing(self, shutdown: CancellationToken, sessions: TaskTracker) -> Self {
        Self {
            shutdown,
            sessions,
            ..self
        }
    }

    /// The address it listens on, with the port the kernel chose if it was 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready, then ends the connections.
    pub async fn serve(mut self, stop: impl Future<Output = ()> + Send) {
        tokio::select! {
            () = self.accept_all() => {}
            () = stop => {}
        }
        let Self {
            name,
            listener,
            shutdown,
            sessions,
            ..
        } = self;
        drop(listener);
        shutdown.cancel();
        sessions.close();
        if timeout(DRAIN, sessions.wait()).await.is_err() {
            tracing::warn!(left = sessions.len(), "connections of the {name} did not end in time");
        }
    }

    /// Never returns.
    async fn accept_all(&mut self) {
        let name = self.name;
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept connection of the {name}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = serve_connection(stream, (self.acceptor)(), self.router.clone(), self.shutdown.clone());
            self.sessions.spawn(async move {
                connection
                    .await
                    .unwrap_or_else(|error| tracing::debug!(%error, %peer, "connection of the {name}"));
                drop(permit);
            });
        }
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
