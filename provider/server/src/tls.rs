//! TLS of the port: TLS 1.2 at least, a serving certificate that can be replaced while connections last, and client
//! certificates of one authority, which can be replaced too.
//!
//! A client without a certificate gets through the handshake, so that it reads `401 Unauthorized` instead of an alert
//! (and as it may have a bearer token instead); one with a certificate of another authority does not.

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::auth::Identity;

/// Why the port's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate chain is empty, or the key is not the certificate's or of no known kind.
    #[error("load serving certificate and key")]
    ServingCertificate(#[source] rustls::Error),
    /// A certificate of the client authority is malformed.
    #[error("load client certificate authority")]
    ClientAuthority(#[source] rustls::Error),
    /// There is no certificate of a client authority.
    #[error("verify client certificates")]
    ClientVerifier(#[from] rustls::server::VerifierBuilderError),
    /// The cryptography provider has no TLS 1.2 or 1.3.
    #[error("choose TLS versions")]
    Versions(#[source] rustls::Error),
}

/// The serving certificate, shared with whoever renews it. New connections see a new one at once; while there is none, handshakes fail.
#[derive(Debug, Clone)]
pub struct ServingCertificate(Arc<ArcSwapOption<CertifiedKey>>);

impl ServingCertificate {
    /// Serves `chain`, the leaf first.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let serving = Self::none();
        serving.replace(chain, key)?;
        Ok(serving)
    }

    /// None yet.
    pub fn none() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }

    /// What is served, if anything is.
    pub fn present(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }

    /// Serves another certificate from now on. On an error the old one stays.
    pub fn replace(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), TlsError> {
        self.0.store(Some(Arc::new(certified(chain, key)?)));
        Ok(())
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, TlsError> {
    if chain.is_empty() {
        return Err(TlsError::ServingCertificate(rustls::Error::NoCertificatesPresented));
    }
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(TlsError::ServingCertificate)
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.present()
    }
}

/// The authority of client certificates, shared with whoever renews it. New connections are judged by a new one at once; those that are
/// there stay.
#[derive(Debug, Clone)]
pub struct ClientAuthority(Arc<ArcSwap<Judge>>);

/// What judges client certificates.
#[derive(Debug)]
struct Judge(Arc<dyn ClientCertVerifier>);

impl ClientAuthority {
    /// Of these certificates.
    ///
    /// # Errors
    /// When there is none, or one is malformed.
    pub fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(judge(certificates)?))))
    }

    /// Of others from now on. On an error the old ones stay.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn replace(&self, certificates: Vec<CertificateDer<'static>>) -> Result<(), TlsError> {
        self.0.store(Arc::new(judge(certificates)?));
        Ok(())
    }
}

fn judge(certificates: Vec<CertificateDer<'static>>) -> Result<Judge, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(TlsError::ClientAuthority)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).allow_unauthenticated();
    Ok(Judge(verifier.build()?))
}

/// Takes connections by what is there when they come.
pub(crate) struct Door {
    serving: ServingCertificate,
    authority: ClientAuthority,
    judge: Arc<Judge>,
    acceptor: TlsAcceptor,
}

impl Door {
    pub(crate) fn new(serving: ServingCertificate, authority: ClientAuthority) -> Result<Self, TlsError> {
        let judge = authority.0.load_full();
        let acceptor = acceptor(serving.clone(), judge.0.clone())?;
        Ok(Self {
            serving,
            authority,
            judge,
            acceptor,
        })
    }

    /// For the next connection. One configuration serves while the authority is the same, as sessions are resumed within it; of
    /// another authority no session is resumed.
    pub(crate) fn acceptor(&mut self) -> TlsAcceptor {
        if !Arc::ptr_eq(&self.judge, &self.authority.0.load()) {
            match Self::new(self.serving.clone(), self.authority.clone()) {
                Ok(door) => *self = door,
                Err(error) => tracing::error!(%error, "use another authority of client certificates"),
            }
        }
        self.acceptor.clone()
    }
}

/// Takes connections of clients that are asked for no certificate.
pub(crate) fn anonymous(serving: ServingCertificate) -> Result<TlsAcceptor, TlsError> {
    acceptor(serving, WebPkiClientVerifier::no_client_auth())
}

fn acceptor(serving: ServingCertificate, verifier: Arc<dyn ClientCertVerifier>) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(serving));
    // Upgrades exist in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Who a verified client certificate names; nobody if it has no common name.
pub(crate) fn identity(chain: Option<&[CertificateDer<'_>]>) -> Option<Identity> {
    let leaf = chain?.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = certificate.subject();
    let user = subject
        .iter_common_name()
        .find_map(|name| name.as_str().ok())
        .filter(|name| !name.is_empty())?;
    let organisations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    let groups = organisations.chain(["system:authenticated"]).map(str::to_owned).collect();
    Some(Identity {
        user: user.to_owned(),
        groups,
        ..Identity::default()
    })
}
