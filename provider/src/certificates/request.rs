//! One CertificateSigningRequest: a new key, the request, and the wait for its answer. The key never leaves this host.

use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    pair::{Pair, PairError},
    plan::{Answer, Flaw, Kind, NODES, Template, answer, flaw},
};

/// How long one request is waited for before there is another (certificateWaitTimeout of client-go's certificate_manager.go).
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// After this long somebody is told that an approval is waited for: that of a client certificate comes from a controller, at once.
const SOON: Duration = Duration::from_secs(10);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request cannot be made up, because of a name that is none.
    #[error("make the request: {0}")]
    Make(#[from] rcgen::Error),
    /// The API server did not take it.
    #[error("create the request: {0}")]
    Create(#[source] Box<kube::Error>),
    /// It was denied, or its signer failed.
    #[error("request {name} is refused: {why}")]
    Refused {
        /// Which.
        name: String,
        /// What its condition says.
        why: String,
    },
    /// Nobody has approved it, or the signer does not work.
    #[error("request {0} is neither approved nor denied after {minutes} minutes", minutes = PATIENCE.as_secs() / 60)]
    Unanswered(String),
    /// Somebody deleted it.
    #[error("request {0} is gone")]
    Gone(String),
    /// What was issued is no certificate of the key.
    #[error("use the answer to request {name}")]
    Answer {
        /// Which.
        name: String,
        /// What is wrong.
        #[source]
        source: PairError,
    },
    /// What was issued is not what was asked for.
    #[error("the answer to request {name} will not do")]
    Flaw {
        /// Which.
        name: String,
        /// What is wrong.
        #[source]
        source: Flaw,
    },
}

/// A new key, PEM, and a request for it, PKCS #10 in PEM.
fn make(template: &Template) -> Result<(String, String), rcgen::Error> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::OrganizationName, NODES);
    parameters.distinguished_name.push(DnType::CommonName, &template.user);
    for name in &template.names {
        parameters.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    let addresses = template.addresses.iter().copied().map(SanType::IpAddress);
    parameters.subject_alt_names.extend(addresses);
    let key = KeyPair::generate()?;
    let request = parameters.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// The object; `seconds` is how long the certificate shall live, which its signer may cut.
fn object(kind: Kind, request: String, seconds: Option<i32>) -> CertificateSigningRequest {
    CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: kind.signer().into(),
            usages: Some(kind.usages().map(str::to_owned).to_vec()),
            expiration_seconds: seconds,
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    }
}

/// Asks for a certificate, and waits for it. `late` is called when somebody seems to have to approve it.
pub async fn obtain(client: Client, kind: Kind, template: &Template, seconds: Option<i32>, late: impl Fn()) -> Result<Pair, RequestError> {
    let (key, request) = make(template)?;
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let created = api.create(&PostParams::default(), &object(kind, request, seconds)).await;
    let name = created.map_err(|error| RequestError::Create(Box::new(error)))?.name_any();
    info!(request = name, "the node has asked for a {kind}");
    let certificate = {
        let mut deciding = std::pin::pin!(issued(&api, &name));
        match timeout(SOON, &mut deciding).await {
            Ok(certificate) => certificate?,
            Err(_) => {
                warn!("the {kind} waits for its approval: kubectl certificate approve {name}");
                late();
                let left = timeout(PATIENCE - SOON, deciding).await;
                left.map_err(|_| RequestError::Unanswered(name.clone()))??
            }
        }
    };
    let certificate = String::from_utf8_lossy(&certificate);
    let pair = Pair::new(&certificate, &key).map_err(|source| RequestError::Answer {
        name: name.clone(),
        source,
    })?;
    match flaw(&pair.facts, template, Timestamp::now()) {
        Some(source) => Err(RequestError::Flaw { name, source }),
        None => Ok(pair),
    }
}

async fn issued(api: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, RequestError> {
    let mut versions = std::pin::pin!(watcher::watch_object(api.clone(), name).default_backoff());
    while let Some(version) = versions.next().await {
        match version {
            Ok(Some(request)) => match answer(&request) {
                Answer::None => {}
                Answer::Issued(certificate) => return Ok(certificate),
                Answer::Refused(why) => return Err(RequestError::Refused { name: name.into(), why }),
            },
            Ok(None) => break,
            Err(error) => warn!(%error, "watch request {name}"),
        }
    }
    Err(RequestError::Gone(name.into()))
}
