//! `/exec`: reads the request, lets the backend refuse it, then upgrades to SPDY or WebSocket and hands over.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts as _, Path, Request, State};
use axum::http::header::{CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;

use crate::backend::{Backend, ExecRequest, StreamError};
use crate::routes::Shared;
use crate::streaming::negotiate::{self, SPDY_PROTOCOLS, SpdyProtocol, WEBSOCKET_PROTOCOLS, WebSocketProtocol};
use crate::streaming::{remotecommand, websocket};

const SPDY: &str = "SPDY/3.1";
const VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// `/exec/{namespace}/{pod}/{container}`.
pub(crate) async fn by_name<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    answer(
        shared,
        Place {
            namespace,
            pod,
            uid: None,
            container,
        },
        request,
    )
    .await
}

/// `/exec/{namespace}/{pod}/{uid}/{container}`.
pub(crate) async fn by_uid<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Path((namespace, pod, uid, container)): Path<(String, String, String, String)>,
    request: Request,
) -> Response {
    answer(
        shared,
        Place {
            namespace,
            pod,
            uid: Some(uid),
            container,
        },
        request,
    )
    .await
}

struct Place {
    namespace: String,
    pod: String,
    uid: Option<String>,
    container: String,
}

async fn answer<B: Backend>(shared: Arc<Shared<B>>, place: Place, request: Request) -> Response {
    let exec = match exec_request(place, request.uri().query().unwrap_or_default()) {
        Ok(exec) => exec,
        Err(error) => return refused(&error),
    };
    let upgrade = match wanted_upgrade(request.headers()) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    if let Err(error) = shared.backend.check_exec(&exec).await {
        return refused(&error);
    }
    match upgrade {
        Upgrade::Spdy(protocol) => upgrade_spdy(shared, exec, protocol, request),
        Upgrade::WebSocket(protocol) => upgrade_websocket(shared, exec, protocol, request).await,
    }
}

fn refused(error: &StreamError) -> Response {
    (error.status(), error.to_string()).into_response()
}

fn exec_request(place: Place, query: &str) -> Result<ExecRequest, StreamError> {
    let Place {
        namespace,
        pod,
        uid,
        container,
    } = place;
    let mut command = Vec::new();
    let (mut stdin, mut stdout, mut stderr, mut tty) = (false, false, false, false);
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "command" => command.push(value.into_owned()),
            "input" => stdin = value == "1",
            "output" => stdout = value == "1",
            "error" => stderr = value == "1",
            "tty" => tty = value == "1",
            _ => {}
        }
    }
    // A terminal has one output.
    let stderr = stderr && !tty;
    if !(stdin || stdout || stderr) {
        return Err(StreamError::BadRequest(
            "you must specify at least 1 of stdin, stdout, stderr".into(),
        ));
    }
    if command.is_empty() {
        return Err(StreamError::BadRequest("you must specify a command".into()));
    }
    Ok(ExecRequest {
        namespace,
        pod,
        uid,
        container,
        command,
        stdin,
        stdout,
        stderr,
        tty,
    })
}

#[derive(Debug)]
enum Upgrade {
    Spdy(SpdyProtocol),
    WebSocket(WebSocketProtocol),
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

fn wanted_upgrade(headers: &HeaderMap) -> Result<Upgrade, Box<Response>> {
    let named = |name, wanted: &str| {
        values(headers, &name)
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    let connection = named(CONNECTION, "upgrade");
    if connection && named(UPGRADE, "websocket") {
        let known = negotiate::websocket(values(headers, &SEC_WEBSOCKET_PROTOCOL)).map(Upgrade::WebSocket);
        return known.ok_or_else(|| {
            let names = WEBSOCKET_PROTOCOLS.map(|protocol| protocol.name);
            Box::new(unknown_protocol(&names, headers, &SEC_WEBSOCKET_PROTOCOL))
        });
    }
    if connection && named(UPGRADE, SPDY) {
        return negotiate::spdy(values(headers, &VERSION)).map(Upgrade::Spdy).ok_or_else(|| {
            let names = SPDY_PROTOCOLS.map(|protocol| protocol.name);
            let mut response = unknown_protocol(&names, headers, &VERSION);
            for name in names {
                response.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
            }
            Box::new(response)
        });
    }
    let text = "unable to upgrade: the request asks for neither SPDY/3.1 nor a WebSocket";
    Err(Box::new((StatusCode::BAD_REQUEST, text).into_response()))
}

fn unknown_protocol(accepted: &[&str], headers: &HeaderMap, name: &HeaderName) -> Response {
    let offered: Vec<_> = values(headers, name).collect();
    let text = format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {accepted:?}");
    (StatusCode::FORBIDDEN, text).into_response()
}

fn upgrade_spdy<B: Backend>(shared: Arc<Shared<B>>, exec: ExecRequest, protocol: SpdyProtocol, mut request: Request) -> Response {
    let upgrade = hyper::upgrade::on(&mut request);
    let sessions = shared.sessions.clone();
    sessions.spawn(async move {
        match upgrade.await {
            Ok(io) => {
                let shutdown = shared.shutdown.clone();
                remotecommand::serve(TokioIo::new(io), protocol, exec, &shared.backend, shared.idle, shutdown).await;
            }
            Err(error) => tracing::debug!(%error, "upgrade to SPDY"),
        }
    });
    let headers = [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static(SPDY)),
        (VERSION, HeaderValue::from_static(protocol.name)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn upgrade_websocket<B: Backend>(
    shared: Arc<Shared<B>>,
    exec: ExecRequest,
    protocol: WebSocketProtocol,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal.into_response(),
    };
    let mut upgrade = upgrade
        .max_message_size(websocket::MAX_MESSAGE)
        .max_frame_size(websocket::MAX_MESSAGE);
    if !protocol.name.is_empty() {
        upgrade.set_selected_protocol(HeaderValue::from_static(protocol.name));
    }
    // Tracked, so that the end of the server waits for it.
    let token = shared.sessions.token();
    upgrade.on_upgrade(move |socket| async move {
        let shutdown = shared.shutdown.clone();
        websocket::serve(socket, protocol, exec, &shared.backend, shared.idle, shutdown).await;
        drop(token);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<ExecRequest, StreamError> {
        let place = Place {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: None,
            container: "c".into(),
        };
        exec_request(place, query)
    }

    #[test]
    fn streams_and_the_command_come_from_the_query() {
        let exec = parse("command=sh&command=-c&command=echo+%C3%A4%26b&input=1&output=1&error=1").expect("valid");
        assert_eq!(exec.command, ["sh", "-c", "echo ä&b"]);
        assert!(exec.stdin && exec.stdout && exec.stderr && !exec.tty);
        assert!(
            !parse("command=sh&output=1&error=1&tty=1").expect("valid").stderr,
            "a terminal has one output"
        );
        assert!(!parse("command=sh&output=1&input=true").expect("valid").stdin, "only 1 means yes");
    }

    #[test]
    fn a_request_without_streams_or_command_is_bad() {
        for query in ["command=sh", "output=1"] {
            assert!(matches!(parse(query), Err(StreamError::BadRequest(_))), "{query}");
        }
    }
}
