//! Certificates, a running port, and HTTP over TLS to it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kvmlet_server::{
    Attributes, Authenticator, AuthorizeError, Authorizer, BoxFuture, ClientAuthority, Decision, Identity, Server, ServerConfig,
    ServingCertificate,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fake::Fake;

/// The longest any single step of a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for `future`, and fails with `what` when it does not come.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// Waits until so many are served.
pub(crate) async fn reach(sessions: &mut watch::Receiver<usize>, number: usize, what: &str) {
    soon(what, sessions.wait_for(|count| *count == number)).await.expect("told");
}

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) type Keyed = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).expect("signs itself").der().clone();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, user: &str, group: &str, usage: ExtendedKeyUsagePurpose) -> Keyed {
        self.sign(user, group, usage, |_| {})
    }

    /// A client's whose time is over.
    pub(crate) fn expired(&self, user: &str) -> Keyed {
        self.sign(user, "system:masters", ExtendedKeyUsagePurpose::ClientAuth, |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        })
    }

    /// A client's whose time has not begun: this host's clock is slow, or the signer's is fast.
    pub(crate) fn early(&self, user: &str) -> Keyed {
        self.sign(user, "system:masters", ExtendedKeyUsagePurpose::ClientAuth, |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2999, 1, 1), date_time_ymd(3000, 1, 1));
        })
    }

    fn sign(&self, user: &str, group: &str, usage: ExtendedKeyUsagePurpose, change: impl FnOnce(&mut CertificateParams)) -> Keyed {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["node-1".into(), "127.0.0.1".into()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("signs").der().clone();
        (vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    pub(crate) fn client(&self, user: &str) -> Keyed {
        self.issue(user, "system:masters", ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn server(&self) -> Keyed {
        self.issue("system:node:node-1", "system:nodes", ExtendedKeyUsagePurpose::ServerAuth)
    }
}

/// The authority everybody here trusts.
pub(crate) static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("kvmlet tests"));

/// `admin` may do all, `reader` may get, `broken` cannot be decided on.
struct ByName;

impl Authorizer for ByName {
    fn authorize<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>> {
        assert_eq!(attributes.node, "node-1");
        assert!(identity.groups.contains(&"system:authenticated".to_owned()));
        Box::pin(async move {
            match identity.user.as_str() {
                "admin" => Ok(Decision::Allow),
                "reader" if attributes.verb == "get" => Ok(Decision::Allow),
                "broken" => Err(AuthorizeError("API server is away".into())),
                _ => Ok(Decision::Deny),
            }
        })
    }
}

/// The token `token-of-X` is that of `X`; `broken` cannot be asked about.
impl Authenticator for ByName {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>> {
        Box::pin(async move {
            if token == "broken" {
                return Err(AuthorizeError("API server is away".into()));
            }
            Ok(token.strip_prefix("token-of-").map(|user| Identity {
                user: user.to_owned(),
                groups: vec!["system:authenticated".to_owned()],
                ..Identity::default()
            }))
        })
    }
}

/// A port being served.
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: ServingCertificate,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

pub(crate) fn config() -> ServerConfig {
    let (chain, key) = AUTHORITY.server();
    ServerConfig {
        node: "node-1".into(),
        certificate: ServingCertificate::new(chain, key).expect("own certificate"),
        client_authority: ClientAuthority::new(vec![AUTHORITY.certificate.clone()]).expect("an authority"),
        authenticator: Arc::new(ByName),
        authorizer: Arc::new(ByName),
        node_logs: None,
    }
}

impl Port {
    pub(crate) async fn serve(fake: Fake) -> Self {
        Self::serve_with(fake, config().certificate).await
    }

    /// With a serving certificate of its own.
    pub(crate) async fn serve_with(fake: Fake, certificate: ServingCertificate) -> Self {
        let config = ServerConfig { certificate, ..config() };
        Self::serve_config(fake, config).await
    }

    /// With settings of its own.
    pub(crate) async fn serve_config(fake: Fake, config: ServerConfig) -> Self {
        let certificate = config.certificate.clone();
        let server = Server::bind("127.0.0.1:0".parse().expect("address"), config, fake)
            .await
            .expect("binds");
        let address = server.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server.serve(async {
            // A test that ends early drops the sender.
            let _ = stopped.await;
        }));
        Self {
            address,
            certificate,
            stop: Some(stop),
            serving,
        }
    }

    /// Stops it, and waits until it has.
    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        soon("the end of the server", self.serving).await.expect("serves without panic");
    }

    pub(crate) async fn tls(&self, client: Option<Keyed>) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(AUTHORITY.certificate.clone()).expect("own authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match client {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("own certificate"),
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("node-1").expect("name");
        soon("the TLS handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }

    /// Sends one request as `client` on a connection of its own.
    pub(crate) async fn request(
        &self,
        client: Option<Keyed>,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error>> {
        let stream = self.tls(client).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(soon("an answer", sender.send_request(request)).await?)
    }

    /// Sends one request without a body, and reads the whole answer.
    pub(crate) async fn ask(&self, client: Option<Keyed>, method: Method, path: &str) -> (StatusCode, String) {
        let request = Request::builder().method(method).uri(path).header("host", "node-1");
        let request = request.body(Empty::new()).expect("valid request");
        let response = self.request(client, request).await.expect("an answer");
        let status = response.status();
        let body = soon("the body", response.into_body().collect()).await.expect("a body").to_bytes();
        (status, String::from_utf8(body.into()).expect("text"))
    }

    /// GET as `admin`.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let (status, text) = self.ask(Some(AUTHORITY.client("admin")), Method::GET, path).await;
        (status.as_u16(), text)
    }
}
