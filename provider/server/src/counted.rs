//! What is told of each request, as the kubelet counts its own (pkg/kubelet/server, ServeHTTP): before anybody is asked who it is, until its answer
//! has been sent. An upgraded connection has had its answer when its streams begin.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};

use crate::backend::{Asked, Backend};
use crate::routes::Shared;

/// Methods that have a name; others are `other`.
const METHODS: [&str; 8] = ["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];
/// First parts of paths, of those below `metrics` two, that have a name; others are `other`.
const PATHS: [&str; 14] = [
    "healthz",
    "pods",
    "stats",
    "metrics",
    "metrics/cadvisor",
    "metrics/probes",
    "metrics/resource",
    "exec",
    "attach",
    "portForward",
    "containerLogs",
    "configz",
    "runningpods",
    "logs",
];
/// The kubelet's map has `portforward` in it, which no path of it is called.
const LONG: [&str; 2] = ["exec", "attach"];

/// What is counted of a request.
fn asked(method: &Method, path: &str) -> Asked {
    let other = "other";
    let method = METHODS.into_iter().find(|name| *name == method.as_str()).unwrap_or(other);
    let mut parts = path.strip_prefix('/').unwrap_or(path).splitn(3, '/');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let root = match second {
        Some(second) if first == "metrics" => format!("metrics/{second}"),
        _ => first.to_owned(),
    };
    let path = PATHS.into_iter().find(|name| *name == root).unwrap_or(other);
    Asked {
        method,
        path,
        long_running: LONG.contains(&path),
    }
}

/// Tells of a request and of its answer's end.
pub(crate) async fn count<B: Backend>(State(shared): State<Arc<Shared<B>>>, request: Request, next: Next) -> Response {
    let asked = asked(request.method(), request.uri().path());
    shared.backend.asked(&asked);
    let until = Until {
        shared,
        asked,
        begun: Instant::now(),
    };
    next.run(request).await.map(|body| Body::new(Counted { body, _until: until }))
}

/// Tells when it is dropped.
struct Until<B: Backend> {
    shared: Arc<Shared<B>>,
    asked: Asked,
    begun: Instant,
}

impl<B: Backend> Drop for Until<B> {
    fn drop(&mut self) {
        self.shared.backend.served(&self.asked, self.begun.elapsed());
    }
}

/// An answer's body, with what tells of its end.
struct Counted<B: Backend> {
    body: Body,
    _until: Until<B>,
}

impl<B: Backend> HttpBody for Counted<B> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_the_first_part_of_their_path() {
        let of = |method: &str, path: &str| {
            let asked = asked(&Method::from_bytes(method.as_bytes()).unwrap(), path);
            (asked.method, asked.path, asked.long_running)
        };
        assert_eq!(of("GET", "/metrics"), ("GET", "metrics", false));
        assert_eq!(of("GET", "/metrics/resource"), ("GET", "metrics/resource", false));
        assert_eq!(of("GET", "/metrics/anything/else"), ("GET", "other", false));
        assert_eq!(of("POST", "/exec/n/p/c"), ("POST", "exec", true));
        assert_eq!(of("POST", "/portForward/n/p"), ("POST", "portForward", false));
        assert_eq!(of("GET", "/logs/kern.log"), ("GET", "logs", false));
        assert_eq!(of("PATCH", "/"), ("other", "other", false));
        assert_eq!(of("MADEUP", "/made/up"), ("other", "other", false));
    }
}
