//! A registry in this process that misbehaves as told.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode, Uri, header};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use kvmlet_image::{Mirror, RegistryConfig, RegistryHost};

use super::{Image, sha256};

/// What to do wrong.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Wants this `Basic` value.
    pub basic: Option<String>,
    /// Answers a bearer challenge with this token.
    pub token: Option<String>,
    /// Cuts the connection after so many bytes of each blob.
    pub cut_after: Option<usize>,
    /// Knows no ranges.
    pub no_ranges: bool,
    /// Sends other bytes for this digest.
    pub corrupt: Option<String>,
    /// Answers so, whatever is asked.
    pub status: Option<u16>,
    /// Waits for ever within each blob.
    pub hang: bool,
}

/// The registry; it ends with the runtime.
#[derive(Clone)]
pub struct Registry {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    behaviour: Mutex<Behaviour>,
    manifests: Mutex<HashMap<String, Vec<u8>>>,
    blobs: Mutex<HashMap<String, Bytes>>,
    requests: Mutex<Vec<String>>,
    hanging: AtomicUsize,
}

impl Registry {
    pub async fn start(behaviour: Behaviour) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            behaviour: Mutex::new(behaviour),
            manifests: Mutex::default(),
            blobs: Mutex::default(),
            requests: Mutex::default(),
            hanging: AtomicUsize::new(0),
        });
        let app = axum::Router::new().fallback(answer).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    /// Serves an image under a name and tag, `library/nginx:latest`, and under its digest.
    pub fn add(&self, name: &str, image: &Image) {
        self.shared
            .blobs
            .lock()
            .unwrap()
            .extend(image.blobs.iter().map(|(digest, blob)| (digest.clone(), blob.clone().into())));
        self.add_manifest(name, &image.manifest);
    }

    pub fn add_manifest(&self, name: &str, manifest: &[u8]) {
        let repository = name.split(':').next().unwrap();
        let mut manifests = self.shared.manifests.lock().unwrap();
        manifests.insert(name.to_owned(), manifest.to_vec());
        manifests.insert(format!("{repository}:{}", sha256(manifest)), manifest.to_vec());
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.shared.behaviour.lock().unwrap() = behaviour;
    }

    /// How many requests had this in their path.
    pub fn asked(&self, part: &str) -> usize {
        self.shared
            .requests
            .lock()
            .unwrap()
            .iter()
            .filter(|path| path.contains(part))
            .count()
    }

    /// Waits until a blob hangs.
    pub async fn hangs(&self) {
        tokio::time::timeout(Duration::from_secs(30), async {
            while self.shared.hanging.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a blob is asked for");
    }

    /// As the only mirror of docker.io.
    pub fn as_mirror(&self) -> RegistryConfig {
        mirrors(&[self.address])
    }
}

/// Mirrors of docker.io in this order, without docker.io itself.
pub fn mirrors(addresses: &[SocketAddr]) -> RegistryConfig {
    let mirror = |address| Mirror {
        endpoint: format!("http://{address}"),
        send_credentials: true,
        ..Mirror::default()
    };
    let mirrors = addresses.iter().map(mirror).collect();
    let host = RegistryHost {
        mirrors,
        mirrors_only: true,
        ..RegistryHost::default()
    };
    RegistryConfig {
        hosts: [("docker.io".to_owned(), host)].into(),
    }
}

fn plain(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    let path = uri.path().to_owned();
    shared.requests.lock().unwrap().push(path.clone());
    let behaviour = shared.behaviour.lock().unwrap().clone();
    if let Some(status) = behaviour.status {
        return plain(StatusCode::from_u16(status).unwrap(), "told to");
    }
    if path == "/token" {
        return plain(StatusCode::OK, serde_json::json!({"token": behaviour.token}).to_string());
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let challenge = match (&behaviour.basic, &behaviour.token) {
        (Some(want), _) if authorization != Some(&format!("Basic {want}")) => Some("Basic realm=\"test\"".to_owned()),
        (_, Some(token)) if authorization != Some(&format!("Bearer {token}")) => {
            Some(format!("Bearer realm=\"http://{}/token\",service=\"test\"", shared.address))
        }
        _ => None,
    };
    if let Some(challenge) = challenge {
        let builder = Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header(header::WWW_AUTHENTICATE, challenge);
        return builder.body(Body::empty()).unwrap();
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    if rest.is_empty() {
        return plain(StatusCode::OK, "{}");
    }
    if let Some((repository, version)) = rest.split_once("/manifests/") {
        let found = shared.manifests.lock().unwrap().get(&format!("{repository}:{version}")).cloned();
        return match found {
            Some(manifest) => plain(StatusCode::OK, manifest),
            None => plain(
                StatusCode::NOT_FOUND,
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
            ),
        };
    }
    let digest = rest.split_once("/blobs/").map(|(_, digest)| digest.to_owned()).unwrap_or_default();
    let Some(mut blob) = shared.blobs.lock().unwrap().get(&digest).cloned() else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    if behaviour.corrupt.as_ref() == Some(&digest) {
        let mut bytes = blob.to_vec();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        blob = bytes.into();
    }
    send(&shared, &behaviour, &headers, blob)
}

fn send(shared: &Arc<Shared>, behaviour: &Behaviour, headers: &HeaderMap, mut blob: Bytes) -> Response<Body> {
    let range = headers
        .get(header::RANGE)
        .and_then(|value| value.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-'));
    let mut status = StatusCode::OK;
    if let (Some(from), false) = (range, behaviour.no_ranges) {
        blob = blob.slice(from.parse::<usize>().unwrap()..);
        status = StatusCode::PARTIAL_CONTENT;
    }
    let response = Response::builder().status(status).header(header::CONTENT_LENGTH, blob.len());
    let body = if behaviour.hang {
        shared.hanging.fetch_add(1, Ordering::SeqCst);
        let first = blob.slice(..blob.len() / 2);
        Body::from_stream(stream::iter([Ok::<_, std::io::Error>(first)]).chain(stream::pending()))
    } else if let Some(cut) = behaviour.cut_after.filter(|cut| *cut < blob.len()) {
        let cut_off = Err(std::io::Error::other("cut"));
        // The error must not overtake the bytes before it.
        let later = stream::once(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cut_off
        });
        Body::from_stream(stream::iter([Ok(blob.slice(..cut))]).chain(later))
    } else {
        Body::from(blob)
    };
    response.body(body).unwrap()
}
