//! The webhook's port: reviews at `/mutate` of pods that a label sends, at `/profile` of all others, at `/daemonsets` of DaemonSets, `/readyz` and `/healthz` for probes. Knows
//! namespaces and profiles only by what it is handed.

use std::{
    future::{self, Future},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{
        HeaderValue, StatusCode,
        header::{CONNECTION, CONTENT_TYPE},
    },
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use kvmlet_server::{Listener, ServingCertificate};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    daemon_sets,
    decide::{Decision, Unfit, decide},
    policy::{self, Labels},
    profile::follow::Known,
    review,
};

/// Largest body: the API server takes objects of up to 3 MiB, and a review has more around them.
const LARGEST: usize = 8 << 20;

/// A future of a namespace's labels.
pub type LabelsFuture<'a> = Pin<Box<dyn Future<Output = Result<Labels, String>> + Send + 'a>>;

/// Whether a namespace's labels are as the API server must have seen them.
pub type LookedFor<'a> = Box<dyn Fn(&Labels) -> bool + Send + 'a>;

/// Who knows the labels of namespaces.
pub trait Namespaces: Send + Sync + 'static {
    /// Whether they are known by now.
    fn is_ready(&self) -> bool;
    /// The labels of a namespace, which may have been labelled just now: those that `are_looked_for`, else the newest.
    fn labels<'a>(&'a self, namespace: &'a str, are_looked_for: LookedFor<'a>) -> LabelsFuture<'a>;
}

/// What all requests share.
struct Shared {
    namespaces: Arc<dyn Namespaces>,
    profiles: watch::Receiver<Known>,
    certificate: ServingCertificate,
    unfit: Unfit,
}

/// Makes the port's paths.
pub fn router(namespaces: Arc<dyn Namespaces>, profiles: watch::Receiver<Known>, certificate: ServingCertificate, unfit: Unfit) -> Router {
    let shared = Arc::new(Shared {
        namespaces,
        profiles,
        certificate,
        unfit,
    });
    Router::new()
        .route("/mutate", post(|shared, body| mutate(shared, body, true)))
        .route("/profile", post(|shared, body| mutate(shared, body, false)))
        .route("/daemonsets", post(daemon_set))
        .route("/readyz", get(ready))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(LARGEST))
        .with_state(shared)
}

/// The same, but each answer ends its connection once `leaving` is cancelled (RFC 9112, 9.6): on one that is kept the next review might come just as
/// the listener closes it, and the API server does not send it again.
pub fn ends_connections(router: Router, leaving: CancellationToken) -> Router {
    router.layer(map_response(move |mut response: Response| {
        if leaving.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        future::ready(response)
    }))
}

/// Listens on `address`. The API server shows no certificate to webhooks, so none is asked for.
pub async fn bind(address: SocketAddr, router: Router, certificate: ServingCertificate) -> std::io::Result<Listener> {
    let listener = TcpListener::bind(address).await?;
    Listener::new("webhook", listener, certificate, router).map_err(std::io::Error::other)
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    if shared.certificate.present().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "there is no serving certificate yet").into_response()
    } else if !shared.namespaces.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "namespaces are not known yet").into_response()
    } else if shared.profiles.borrow().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "profiles are not known yet").into_response()
    } else {
        "ok".into_response()
    }
}

/// Answers a review; `by_label` of a pod that a label sends, so that labels here that say otherwise are out of date.
async fn mutate(State(shared): State<Arc<Shared>>, body: Bytes, by_label: bool) -> Response {
    let request = match review::read(&body) {
        Ok(request) => request,
        Err(error) => return malformed(&error),
    };
    drop(body);
    let decision = match review::not_ours(&request) {
        Some(warning) => Decision {
            warnings: vec![warning],
            ..Decision::default()
        },
        None => {
            let pod = crate::decide::labels(&request.object);
            let name = request.namespace.as_str();
            let are_looked_for = Box::new(|namespace: &Labels| !by_label || policy::is_asked(&pod, namespace));
            match shared.namespaces.labels(name, are_looked_for).await {
                Ok(labels) => {
                    let profiles = shared.profiles.borrow().clone().unwrap_or_default();
                    decide(&request.object, (name, &labels), &profiles, shared.unfit)
                }
                Err(error) => {
                    let text = format!("read namespace {}: {error}", request.namespace);
                    warn!("{text}");
                    // The API server then does what failurePolicy says; nothing is let through unseen.
                    return (StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
                }
            }
        }
    };
    answer(&request, &decision)
}

/// Answers a review of a DaemonSet.
async fn daemon_set(body: Bytes) -> Response {
    match review::read(&body) {
        Ok(request) => answer(&request, &daemon_sets::decide(&request)),
        Err(error) => malformed(&error),
    }
}

fn malformed(error: &review::Malformed) -> Response {
    warn!(%error, "a review cannot be read");
    (StatusCode::BAD_REQUEST, error.to_string()).into_response()
}

fn answer(request: &review::Request, decision: &Decision) -> Response {
    debug!(namespace = request.namespace, operations = decision.patch.len(), warnings = ?decision.warnings, "decided");
    let answer = review::answer(&request.uid, decision).to_string();
    ([(CONTENT_TYPE, "application/json")], answer).into_response()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
