//! One endpoint asked with one credential, and what its failures mean.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use super::config::{Endpoint, RegistryConfig};
use crate::error::OpenError;
use crate::keyring::Credential;
use crate::reference::{ImageReference, Version};
use crate::store::StoreConfig;

/// What an image's documents may be.
const ACCEPTED: &[&str] = &[
    IMAGE_MANIFEST_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    OCI_IMAGE_INDEX_MEDIA_TYPE,
];
/// How long a whole manifest may take.
const DOCUMENT_DEADLINE: Duration = Duration::from_secs(60);

/// Why an endpoint gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Unreachable(String),
    /// The answer was no answer of a registry.
    #[error("{0}")]
    Protocol(String),
    #[error("digest mismatch: expected {expected}, got {actual}")]
    Digest { expected: String, actual: String },
}

/// All endpoints of a store's configuration.
pub(crate) struct Registries {
    config: RegistryConfig,
    connect_timeout: Duration,
    read_timeout: Duration,
    attempts: u32,
    /// Clients without a credential serve every pull; they keep their connections.
    anonymous: Mutex<HashMap<Endpoint, Client>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Registries {
    pub(crate) fn new(config: &StoreConfig) -> Result<Self, OpenError> {
        config.registries.validate()?;
        Ok(Self {
            config: config.registries.clone(),
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            attempts: config.attempts.max(1),
            anonymous: Mutex::default(),
        })
    }

    pub(crate) fn endpoints(&self, image: &ImageReference) -> Vec<Endpoint> {
        self.config.endpoints(image)
    }

    /// Prepares to ask an endpoint for an image; nothing is sent yet.
    pub(crate) fn source(
        &self,
        endpoint: &Endpoint,
        image: &ImageReference,
        credential: Option<&Credential>,
    ) -> Result<Source, FetchError> {
        let client = match credential {
            Some(_) => self.client(endpoint)?,
            None => {
                let mut anonymous = self.anonymous.lock().expect("nobody panics while holding the clients");
                match anonymous.get(endpoint) {
                    Some(client) => client.clone(),
                    None => {
                        let client = self.client(endpoint)?;
                        anonymous.insert(endpoint.clone(), client.clone());
                        client
                    }
                }
            }
        };
        let auth = match credential {
            Some(credential) => RegistryAuth::Basic(credential.username.clone(), credential.password.clone()),
            None => RegistryAuth::Anonymous,
        };
        let repository = format!("{}{}", endpoint.prefix, image.repository());
        let name = |registry: &str| match image.version() {
            Version::Tag(tag) => Reference::with_tag(registry.to_owned(), repository.clone(), tag.clone()),
            Version::Digest(digest) => Reference::with_digest(registry.to_owned(), repository.clone(), digest.clone()),
        };
        let reference = if endpoint.mirror {
            // The mirror is told in `?ns=` whose image is meant.
            let mut reference = name(image.registry());
            reference.set_mirror_registry(endpoint.host.clone());
            reference
        } else {
            name(&endpoint.host)
        };
        Ok(Source {
            client,
            reference,
            auth,
            endpoint: endpoint.to_string(),
            attempts: self.attempts,
        })
    }

    fn client(&self, endpoint: &Endpoint) -> Result<Client, FetchError> {
        let config = |skip_verify| ClientConfig {
            protocol: if endpoint.plain_http {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            accept_invalid_certificates: skip_verify,
            platform_resolver: None,
            read_timeout: Some(self.read_timeout),
            connect_timeout: Some(self.connect_timeout),
            user_agent: concat!("kvmlet/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        Client::try_from(config(endpoint.skip_verify))
            // A host without any root certificate can still speak to a registry without TLS.
            .or_else(|error| {
                if endpoint.plain_http {
                    Client::try_from(config(true))
                } else {
                    Err(error)
                }
            })
            .map_err(|error| FetchError::Unreachable(format!("{endpoint}: cannot prepare TLS: {error}")))
    }
}

/// An endpoint with a credential, asked for one image.
#[derive(Clone)]
pub(crate) struct Source {
    pub(super) client: Client,
    pub(super) reference: Reference,
    auth: RegistryAuth,
    endpoint: String,
    pub(super) attempts: u32,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("endpoint", &self.endpoint)
            .field("reference", &self.reference)
            .finish_non_exhaustive()
    }
}

impl Source {
    /// The document that the image's name, or `digest`, means.
    pub(crate) async fn document(&self, digest: Option<&str>) -> Result<Bytes, FetchError> {
        let reference = match digest {
            Some(digest) => self.reference.clone_with_digest(digest.to_owned()),
            None => self.reference.clone(),
        };
        let fetch = || async {
            let pull = self.guarded(self.client.pull_manifest_raw(&reference, &self.auth, ACCEPTED));
            match tokio::time::timeout(DOCUMENT_DEADLINE, pull).await {
                Ok(answer) => answer.map(|(document, _)| document),
                Err(_) => Err(FetchError::Unreachable(format!("{}: no manifest within a minute", self.endpoint))),
            }
        };
        match fetch().await {
            // A connection from the pool may have been closed meanwhile: once more on a fresh one.
            Err(FetchError::Unreachable(_)) => fetch().await,
            answer => answer,
        }
    }

    /// Awaits a request: the client takes what a registry sends for a valid header and panics where it is not.
    pub(super) async fn guarded<T>(&self, request: impl Future<Output = Result<T, OciDistributionError>>) -> Result<T, FetchError> {
        match AssertUnwindSafe(request).catch_unwind().await {
            Ok(answer) => answer.map_err(|error| self.meaning(error)),
            Err(_) => Err(FetchError::Protocol(format!("{}: an answer that no registry gives", self.endpoint))),
        }
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    fn meaning(&self, error: OciDistributionError) -> FetchError {
        use OciDistributionError as E;
        let say = |what: &str| format!("{}: {what}", self.endpoint);
        match error {
            E::UnauthorizedError { .. } => FetchError::Unauthorized(say("401 Unauthorized")),
            E::AuthenticationFailure(reason) => FetchError::Unauthorized(say(&reason)),
            E::ServerError { code: 403, .. } => FetchError::Unauthorized(say("403 Forbidden")),
            E::ServerError { code: 404, .. } => FetchError::NotFound(say("404 Not Found")),
            E::ServerError {
                code: code @ (429 | 500..),
                ..
            } => FetchError::Unreachable(say(&format!("status {code}"))),
            E::RegistryError { envelope, .. } => {
                let told: Vec<_> = envelope.errors.iter().map(|error| error.message.clone()).collect();
                let told = say(&told.join(", "));
                match envelope.errors.first().map(|error| &error.code) {
                    Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => FetchError::Unauthorized(told),
                    Some(
                        OciErrorCode::ManifestUnknown
                        | OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::ManifestBlobUnknown,
                    ) => FetchError::NotFound(told),
                    Some(OciErrorCode::Toomanyrequests) => FetchError::Unreachable(told),
                    _ => FetchError::Protocol(told),
                }
            }
            E::DigestError(DigestError::VerificationError { expected, actual }) => FetchError::Digest { expected, actual },
            E::RequestError(error) => FetchError::Unreachable(say(&chain(&error))),
            E::IoError(error) => FetchError::Unreachable(say(&chain(&error))),
            error => FetchError::Protocol(say(&error.to_string())),
        }
    }
}

/// An error with all its causes: the outermost alone says only that a request failed.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
