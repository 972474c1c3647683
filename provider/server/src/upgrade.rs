//! What an HTTP request says of the connection it wants to become, and the answers that say yes or no.
//!
//! Owns headers only: which protocol of several is taken is `negotiate`'s to know.

use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};

const SPDY: &str = "SPDY/3.1";
/// Names the versions of what goes over SPDY.
pub(crate) const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// What a connection shall become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// SPDY/3.1.
    Spdy,
    /// A WebSocket.
    WebSocket,
}

/// All values of a header that are text.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// What the request asks for; the refusal when that is nothing known here.
pub(crate) fn transport(headers: &HeaderMap) -> Result<Transport, Box<Response>> {
    let named = |name, wanted: &str| {
        values(headers, &name)
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    let connection = named(CONNECTION, "upgrade");
    if connection && named(UPGRADE, "websocket") {
        return Ok(Transport::WebSocket);
    }
    if connection && named(UPGRADE, SPDY) {
        return Ok(Transport::Spdy);
    }
    let text = "unable to upgrade: the request asks for neither SPDY/3.1 nor a WebSocket";
    Err(Box::new((StatusCode::BAD_REQUEST, text).into_response()))
}

/// The client offers in header `name` nothing of what is accepted.
pub(crate) fn unknown_protocol(accepted: &[&'static str], headers: &HeaderMap, name: &HeaderName) -> Response {
    let offered: Vec<_> = values(headers, name).collect();
    let text = format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}");
    let mut response = (StatusCode::FORBIDDEN, text).into_response();
    if *name == VERSION {
        for name in accepted {
            response.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
        }
    }
    response
}

/// Yes, to SPDY/3.1 with this version of what goes over it.
pub(crate) fn switch_to_spdy(version: &'static str) -> Response {
    let headers = [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static(SPDY)),
        (VERSION, HeaderValue::from_static(version)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
