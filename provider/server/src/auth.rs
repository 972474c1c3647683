//! Who asks, and what for: identities, and requests as attributes of the resource `nodes`.
//!
//! Owns the mapping from method and path to verb and subresources. Decides nothing itself: an [`Authorizer`] does.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use axum::http::Method;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who made a request: as its client certificate says, or as the API server says of its token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// A certificate's common name; a token's user.
    pub user: String,
    /// A token's user's UID.
    pub uid: Option<String>,
    /// A certificate's organisations, a token's groups; and `system:authenticated`.
    pub groups: Vec<String>,
    /// What else the API server says of a token, for it to know when rights are asked for.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What a request is for, always on the resource `nodes` of the core group.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// `get`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// `proxy`, `metrics`, `stats`, `log`, `pods`, `healthz`, `configz`, `checkpoint` or `statusz`.
    pub subresource: &'static str,
    /// This node's name.
    pub node: String,
}

/// The answer to one question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Allowed.
    Allow,
    /// Not allowed.
    Deny,
}

/// The decision could not be had. The client gets a 500 without the details.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthorizeError(pub String);

/// Decides who may do what.
pub trait Authorizer: Send + Sync + 'static {
    /// One question; several are asked of one request, the first `Allow` counts.
    fn authorize<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>>;
}

/// Knows who has a bearer token.
pub trait Authenticator: Send + Sync + 'static {
    /// Whose token this is; nobody's, if the API server does not know it. It must not be kept or logged.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>>;
}

/// Paths that run something in a pod: `create` is needed whatever the method, as a WebSocket can only come as GET.
const STREAMS: [&str; 4] = ["/exec", "/attach", "/portForward", "/run"];

/// The questions a request raises, the finest first; none if its method has no verb.
pub(crate) fn attributes(method: &Method, path: &str, node: &str) -> Vec<Attributes> {
    let verb = match *method {
        _ if STREAMS.iter().any(|stream| is_under(stream, path)) => "create",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return Vec::new(),
    };
    let subresources: &[&'static str] = match path {
        path if is_under("/pods", path) || is_under("/runningpods", path) => &["pods", "proxy"],
        path if is_under("/healthz", path) => &["healthz", "proxy"],
        path if is_under("/configz", path) => &["configz", "proxy"],
        path if is_under("/stats", path) => &["stats"],
        path if is_under("/metrics", path) => &["metrics"],
        path if is_under("/logs", path) => &["log"],
        path if is_under("/checkpoint", path) => &["checkpoint"],
        path if is_under("/statusz", path) => &["statusz"],
        _ => &["proxy"],
    };
    subresources
        .iter()
        .map(|subresource| Attributes {
            verb,
            subresource,
            node: node.to_owned(),
        })
        .collect()
}

fn is_under(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_asked_for_as_the_kubelet_asks() {
        let table: &[(Method, &str, &str, &[&str])] = &[
            (Method::GET, "/containerLogs/ns/p/c", "get", &["proxy"]),
            (Method::POST, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::GET, "/exec/ns/p/c", "create", &["proxy"]),
            (Method::GET, "/attach/ns/p/uid/c", "create", &["proxy"]),
            (Method::GET, "/portForward/ns/p", "create", &["proxy"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/pods/", "get", &["pods", "proxy"]),
            (Method::GET, "/podsx", "get", &["proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz/ping", "get", &["healthz", "proxy"]),
            (Method::GET, "/metrics/resource", "get", &["metrics"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/logs/", "get", &["log"]),
            (Method::DELETE, "/x", "delete", &["proxy"]),
        ];
        for (method, path, verb, subresources) in table {
            let asked = attributes(method, path, "n");
            let found: Vec<_> = asked.iter().map(|attributes| attributes.subresource).collect();
            assert_eq!((&asked[0].verb, &found[..]), (verb, *subresources), "{method} {path}");
        }
        assert_eq!(attributes(&Method::TRACE, "/pods", "n"), []);
    }
}
