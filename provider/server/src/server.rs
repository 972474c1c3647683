//! The kubelet port: binds, puts guard and paths together. How connections come and go is `listen`'s.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{Authenticator, Authorizer};
use crate::backend::Backend;
use crate::guard::Guard;
use crate::listen::Listener;
use crate::routes::{Shared, router};
use crate::tls::{ClientAuthority, Door, ServingCertificate, TlsError};

/// A remote command ends when its client sent nothing, not even a ping, for so long.
pub const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

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
#[derive(Debug)]
pub struct Server(Listener);

impl Server {
    /// Listens on `address`.
    pub async fn bind<B: Backend>(address: SocketAddr, config: ServerConfig, backend: B) -> Result<Self, BindError> {
        let mut door = Door::new(config.certificate, config.client_authority)?;
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
        let listener = Listener::by("kubelet port", listener, move || door.acceptor(), router);
        Ok(Self(listener.sharing(shutdown, sessions)))
    }

    /// The address it listens on, with the port the kernel chose if it was 0.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until `stop` is ready, then ends the connections.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) {
        self.0.serve(stop).await;
    }
}
