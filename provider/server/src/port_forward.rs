//! `/portForward`: reads the request, lets the backend refuse it, then upgrades to SPDY, to SPDY inside a WebSocket, or to
//! the channels of a WebSocket, and hands over.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::HeaderMap;
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::response::Response;

use crate::backend::{Backend, PortForwardRequest, StreamError};
use crate::exec::refused;
use crate::routes::Shared;
use crate::streaming::negotiate::{self, PORT_FORWARD, PORT_FORWARD_TUNNEL, WebSocketProtocol};
use crate::streaming::port_forward_websocket::{self, PORTS};
use crate::streaming::{port_forward, tunnel};
use crate::takeover;
use crate::upgrade::{self, Transport, VERSION, unknown_protocol, values};

/// `/portForward/{namespace}/{pod}`.
pub(crate) async fn by_name<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let wanted = PortForwardRequest { namespace, pod, uid: None };
    answer(shared, wanted, request).await
}

/// `/portForward/{namespace}/{pod}/{uid}`.
pub(crate) async fn by_uid<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Path((namespace, pod, uid)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let uid = Some(uid);
    answer(shared, PortForwardRequest { namespace, pod, uid }, request).await
}

/// How the client wants to speak.
enum Way {
    Spdy,
    Tunnel,
    Channels(WebSocketProtocol, Vec<u16>),
}

async fn answer<B: Backend>(shared: Arc<Shared<B>>, wanted: PortForwardRequest, request: Request) -> Response {
    let way = match way(request.headers(), request.uri().query().unwrap_or_default()) {
        Ok(way) => way,
        Err(refusal) => return *refusal,
    };
    if let Err(error) = shared.backend.check_port_forward(&wanted).await {
        return refused(&error);
    }
    let server = shared.clone();
    match way {
        Way::Spdy => takeover::spdy(&server, PORT_FORWARD, request, move |io| port_forward::serve(io, wanted, shared)),
        Way::Tunnel => {
            let serve = move |socket| port_forward::serve(tunnel::bytes(socket), wanted, shared);
            takeover::websocket(&server, PORT_FORWARD_TUNNEL, request, serve).await
        }
        Way::Channels(protocol, ports) => {
            let serve = move |socket| async move {
                port_forward_websocket::serve(socket, protocol, (&wanted, &ports), &shared.backend, shared.limits()).await;
            };
            takeover::websocket(&server, protocol.name, request, serve).await
        }
    }
}

fn way(headers: &HeaderMap, query: &str) -> Result<Way, Box<Response>> {
    match upgrade::transport(headers)? {
        Transport::Spdy => {
            let known = negotiate::knows(values(headers, &VERSION), PORT_FORWARD);
            known
                .then_some(Way::Spdy)
                .ok_or_else(|| Box::new(unknown_protocol(&[PORT_FORWARD], headers, &VERSION)))
        }
        Transport::WebSocket => {
            let offers = || values(headers, &SEC_WEBSOCKET_PROTOCOL);
            if offers().next().is_some() && negotiate::knows(offers(), PORT_FORWARD_TUNNEL) {
                return Ok(Way::Tunnel);
            }
            let protocol = negotiate::port_forward_websocket(offers()).ok_or_else(|| {
                let mut names = vec![PORT_FORWARD_TUNNEL];
                names.extend(negotiate::PORT_FORWARD_CHANNELS);
                Box::new(unknown_protocol(&names, headers, &SEC_WEBSOCKET_PROTOCOL))
            })?;
            let ports = ports(query).map_err(|error| Box::new(refused(&error)))?;
            Ok(Way::Channels(protocol, ports))
        }
    }
}

/// The ports named by a request, which only the channels of a WebSocket need.
fn ports(query: &str) -> Result<Vec<u16>, StreamError> {
    let mut ports = Vec::new();
    for (_, value) in form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "port") {
        for word in value.split(',') {
            let port = word.parse().ok().filter(|port| *port > 0);
            ports.push(port.ok_or_else(|| StreamError::BadRequest(format!("unable to parse {word:?} as a port")))?);
        }
    }
    match ports.len() {
        0 => Err(StreamError::BadRequest("query parameter \"port\" is required".into())),
        1..=PORTS => Ok(ports),
        _ => Err(StreamError::BadRequest(format!("more than {PORTS} ports"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_named_one_by_one_or_in_a_list() {
        assert_eq!(ports("port=80&port=443,8080"), Ok(vec![80, 443, 8080]));
        let many = vec!["1"; PORTS + 1].join(",");
        for wrong in ["", "port=", "port=0", "port=65536", "port=a", &format!("port={many}")] {
            assert!(matches!(ports(wrong), Err(StreamError::BadRequest(_))), "{wrong}");
        }
    }
}
