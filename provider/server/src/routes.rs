//! The paths of the port, and the handlers that need no file of their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use futures_util::stream::unfold;
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backend::{Backend, Figures, FiguresPage, LogTarget};
use crate::counted::count;
use crate::exec;
use crate::guard::{Guard, check};
use crate::logs::{LogOptions, open};
use crate::{node_logs, port_forward};

/// What handlers share.
pub(crate) struct Shared<B> {
    pub(crate) backend: B,
    /// Ends upgraded connections when the server stops.
    pub(crate) shutdown: CancellationToken,
    /// The upgraded connections.
    pub(crate) sessions: TaskTracker,
    pub(crate) idle: Duration,
}

impl<B> Shared<B> {
    /// What ends an upgraded connection besides its client: a time of silence, and the end of the server.
    pub(crate) fn limits(&self) -> (Duration, CancellationToken) {
        (self.idle, self.shutdown.clone())
    }
}

/// All paths behind the guard.
pub(crate) fn router<B: Backend>(shared: Arc<Shared<B>>, guard: Guard, node_logs: Option<PathBuf>) -> Router {
    Router::new()
        .route("/healthz", get(healthy))
        .route("/healthz/ping", get(healthy))
        .route("/pods", get(pods::<B>))
        .route("/pods/", get(pods::<B>))
        .route("/runningpods", get(running_pods::<B>))
        .route("/runningpods/", get(running_pods::<B>))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs::<B>))
        .route("/exec/{namespace}/{pod}/{third}", get(exec::by_name::<B>).post(exec::by_name::<B>))
        .route(
            "/exec/{namespace}/{pod}/{third}/{container}",
            get(exec::by_uid::<B>).post(exec::by_uid::<B>),
        )
        .route(
            "/attach/{namespace}/{pod}/{third}",
            get(exec::attach_by_name::<B>).post(exec::attach_by_name::<B>),
        )
        .route(
            "/attach/{namespace}/{pod}/{third}/{container}",
            get(exec::attach_by_uid::<B>).post(exec::attach_by_uid::<B>),
        )
        .route(
            "/portForward/{namespace}/{pod}",
            get(port_forward::by_name::<B>).post(port_forward::by_name::<B>),
        )
        .route(
            "/portForward/{namespace}/{pod}/{uid}",
            get(port_forward::by_uid::<B>).post(port_forward::by_uid::<B>),
        )
        .route("/metrics", get(metrics::<B>))
        .route("/metrics/{kind}", get(more_metrics::<B>))
        .route("/stats/summary", get(summary::<B>))
        .route("/configz", get(configz::<B>))
        .route("/logs", get(node_logs::serve))
        .route("/logs/", get(node_logs::serve))
        .route("/logs/{*path}", get(node_logs::serve))
        .fallback(unknown)
        .with_state(shared.clone())
        .layer(node_logs::root(node_logs))
        .layer(from_fn_with_state(guard, check))
        .layer(from_fn_with_state(shared, count::<B>))
}

async fn healthy() -> &'static str {
    "ok"
}

async fn unknown() -> Response {
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

async fn metrics<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> Response {
    figures(&shared.backend, FiguresPage::Metrics).await
}

async fn more_metrics<B: Backend>(State(shared): State<Arc<Shared<B>>>, Path(kind): Path<String>) -> Response {
    let page = match kind.as_str() {
        "resource" => FiguresPage::Resource,
        "cadvisor" => FiguresPage::Cadvisor,
        "probes" => FiguresPage::Probes,
        _ => return unknown().await,
    };
    figures(&shared.backend, page).await
}

async fn summary<B: Backend>(State(shared): State<Arc<Shared<B>>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let only = form_urlencoded::parse(query.as_bytes()).any(|(key, value)| key == "only_cpu_and_memory" && value == "true");
    figures(&shared.backend, FiguresPage::Summary { only_cpu_and_memory: only }).await
}

async fn configz<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> Response {
    figures(&shared.backend, FiguresPage::Configz).await
}

async fn figures<B: Backend>(backend: &B, page: FiguresPage) -> Response {
    match backend.figures(page).await {
        Ok(Figures::Text(text)) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        Ok(Figures::Json(json)) => ([(header::CONTENT_TYPE, "application/json")], json.to_string()).into_response(),
        Err(error) => {
            tracing::error!(error, ?page, "read figures");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response()
        }
    }
}

async fn pods<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> Response {
    pod_list(shared.backend.pods().await)
}

async fn running_pods<B: Backend>(State(shared): State<Arc<Shared<B>>>) -> Response {
    pod_list(shared.backend.running_pods().await)
}

fn pod_list(items: Vec<Pod>) -> Response {
    let list = List { items, ..List::default() };
    match serde_json::to_vec(&list) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode pod list");
            (StatusCode::INTERNAL_SERVER_ERROR, "encode pod list\n").into_response()
        }
    }
}

async fn container_logs<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Response {
    let options = match LogOptions::from_query(query.as_deref().unwrap_or_default(), Timestamp::now()) {
        Ok(options) => options,
        Err(error) => return (error.status(), error.to_string()).into_response(),
    };
    let target = LogTarget {
        namespace,
        pod,
        container,
        previous: options.previous,
    };
    let source = match shared.backend.log_source(target).await {
        Ok(source) => source,
        Err(error) => return (error.status(), error.to_string()).into_response(),
    };
    let body = match open(source, options).await {
        Ok(body) => body,
        Err(error) => {
            tracing::warn!(%error, "open container log");
            return (StatusCode::BAD_REQUEST, format!("failed to open log file: {error}")).into_response();
        }
    };
    // The end of the server ends a log that is followed.
    let shutdown = shared.shutdown.clone();
    let pieces = unfold((body, shutdown), |(mut body, shutdown)| async move {
        let piece = tokio::select! {
            piece = body.recv() => piece,
            () = shutdown.cancelled() => None,
        };
        piece.map(|piece| (piece, (body, shutdown)))
    });
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(pieces)).into_response()
}
