//! `/exec` and `/attach`: reads the request, lets the backend refuse it, then upgrades to SPDY or WebSocket and hands over.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::response::{IntoResponse as _, Response};

use crate::backend::{AttachRequest, Backend, ContainerTarget, ExecRequest, ExecSession, StreamError, Wanted};
use crate::routes::Shared;
use crate::streaming::negotiate::{self, SPDY_PROTOCOLS, SpdyProtocol, WEBSOCKET_PROTOCOLS, WebSocketProtocol};
use crate::streaming::remotecommand::{self, Terms};
use crate::takeover;
use crate::upgrade::{self, Transport, VERSION, unknown_protocol, values};

type ByName = Path<(String, String, String)>;
type ByUid = Path<(String, String, String, String)>;

/// `/exec/{namespace}/{pod}/{container}`.
pub(crate) async fn by_name<B: Backend>(State(shared): State<Arc<Shared<B>>>, path: ByName, request: Request) -> Response {
    exec(shared, named(path), request).await
}

/// `/exec/{namespace}/{pod}/{uid}/{container}`.
pub(crate) async fn by_uid<B: Backend>(State(shared): State<Arc<Shared<B>>>, path: ByUid, request: Request) -> Response {
    exec(shared, with_uid(path), request).await
}

/// `/attach/{namespace}/{pod}/{container}`.
pub(crate) async fn attach_by_name<B: Backend>(State(shared): State<Arc<Shared<B>>>, path: ByName, request: Request) -> Response {
    attach(shared, named(path), request).await
}

/// `/attach/{namespace}/{pod}/{uid}/{container}`.
pub(crate) async fn attach_by_uid<B: Backend>(State(shared): State<Arc<Shared<B>>>, path: ByUid, request: Request) -> Response {
    attach(shared, with_uid(path), request).await
}

fn named(Path((namespace, pod, container)): ByName) -> ContainerTarget {
    ContainerTarget {
        namespace,
        pod,
        uid: None,
        container,
    }
}

fn with_uid(Path((namespace, pod, uid, container)): ByUid) -> ContainerTarget {
    ContainerTarget {
        namespace,
        pod,
        uid: Some(uid),
        container,
    }
}

/// What a client may have its streams joined to.
#[derive(Debug)]
enum Work {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Work {
    fn terms(&self) -> Terms {
        match self {
            Self::Exec(request) => Terms {
                wanted: request.wanted,
                doing: "executing command in container",
            },
            Self::Attach(request) => Terms {
                wanted: request.wanted,
                doing: "attaching to container",
            },
        }
    }

    async fn check<B: Backend>(&self, backend: &B) -> Result<(), StreamError> {
        match self {
            Self::Exec(request) => backend.check_exec(request).await,
            Self::Attach(request) => backend.check_attach(request).await,
        }
    }

    async fn begin<B: Backend>(self, backend: &B) -> Result<ExecSession, StreamError> {
        match self {
            Self::Exec(request) => backend.exec(request).await,
            Self::Attach(request) => backend.attach(request).await,
        }
    }
}

async fn exec<B: Backend>(shared: Arc<Shared<B>>, target: ContainerTarget, request: Request) -> Response {
    match exec_request(target, request.uri().query().unwrap_or_default()) {
        Ok(exec) => answer(shared, Work::Exec(exec), request).await,
        Err(error) => refused(&error),
    }
}

async fn attach<B: Backend>(shared: Arc<Shared<B>>, target: ContainerTarget, request: Request) -> Response {
    match wanted(request.uri().query().unwrap_or_default()) {
        Ok(wanted) => answer(shared, Work::Attach(AttachRequest { target, wanted }), request).await,
        Err(error) => refused(&error),
    }
}

async fn answer<B: Backend>(shared: Arc<Shared<B>>, work: Work, request: Request) -> Response {
    let headers = request.headers();
    let transport = match upgrade::transport(headers) {
        Ok(transport) => transport,
        Err(refusal) => return *refusal,
    };
    match transport {
        Transport::Spdy => {
            let Some(protocol) = negotiate::spdy(values(headers, &VERSION)) else {
                return unknown_protocol(&SPDY_PROTOCOLS.map(|protocol| protocol.name), headers, &VERSION);
            };
            match work.check(&shared.backend).await {
                Ok(()) => upgrade_spdy(shared, work, protocol, request),
                Err(error) => refused(&error),
            }
        }
        Transport::WebSocket => {
            let Some(protocol) = negotiate::websocket(values(headers, &SEC_WEBSOCKET_PROTOCOL)) else {
                let names = WEBSOCKET_PROTOCOLS.map(|protocol| protocol.name);
                return unknown_protocol(&names, headers, &SEC_WEBSOCKET_PROTOCOL);
            };
            match work.check(&shared.backend).await {
                Ok(()) => upgrade_websocket(shared, work, protocol, request).await,
                Err(error) => refused(&error),
            }
        }
    }
}

/// A refusal as an HTTP answer.
pub(crate) fn refused(error: &StreamError) -> Response {
    (error.status(), error.to_string()).into_response()
}

fn wanted(query: &str) -> Result<Wanted, StreamError> {
    let mut wanted = Wanted::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match key.as_ref() {
            "input" => wanted.stdin = value == "1",
            "output" => wanted.stdout = value == "1",
            "error" => wanted.stderr = value == "1",
            "tty" => wanted.tty = value == "1",
            _ => {}
        }
    }
    // A terminal has one output.
    wanted.stderr &= !wanted.tty;
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(wanted)
    } else {
        Err(StreamError::BadRequest(
            "you must specify at least 1 of stdin, stdout, stderr".into(),
        ))
    }
}

fn exec_request(target: ContainerTarget, query: &str) -> Result<ExecRequest, StreamError> {
    let wanted = wanted(query)?;
    let command: Vec<String> = form_urlencoded::parse(query.as_bytes())
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value.into_owned())
        .collect();
    if command.is_empty() {
        return Err(StreamError::BadRequest("you must specify a command".into()));
    }
    Ok(ExecRequest { target, command, wanted })
}

fn upgrade_spdy<B: Backend>(shared: Arc<Shared<B>>, work: Work, protocol: SpdyProtocol, request: Request) -> Response {
    takeover::spdy(&shared.clone(), protocol.name, request, move |io| async move {
        remotecommand::serve(io, protocol, work.terms(), work.begin(&shared.backend), shared.limits()).await;
    })
}

async fn upgrade_websocket<B: Backend>(shared: Arc<Shared<B>>, work: Work, protocol: WebSocketProtocol, request: Request) -> Response {
    takeover::websocket(&shared.clone(), protocol.name, request, move |socket| async move {
        remotecommand::serve_websocket(socket, protocol, work.terms(), work.begin(&shared.backend), shared.limits()).await;
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<ExecRequest, StreamError> {
        let target = ContainerTarget {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: None,
            container: "c".into(),
        };
        exec_request(target, query)
    }

    #[test]
    fn streams_and_the_command_come_from_the_query() {
        let exec = parse("command=sh&command=-c&command=echo+%C3%A4%26b&input=1&output=1&error=1").expect("valid");
        assert_eq!(exec.command, ["sh", "-c", "echo ä&b"]);
        assert!(exec.wanted.stdin && exec.wanted.stdout && exec.wanted.stderr && !exec.wanted.tty);
        assert!(
            !parse("command=sh&output=1&error=1&tty=1").expect("valid").wanted.stderr,
            "a terminal has one output"
        );
        assert!(
            !parse("command=sh&output=1&input=true").expect("valid").wanted.stdin,
            "only 1 means yes"
        );
    }

    #[test]
    fn a_request_without_streams_or_command_is_bad() {
        for query in ["command=sh", "output=1"] {
            assert!(matches!(parse(query), Err(StreamError::BadRequest(_))), "{query}");
        }
    }
}
