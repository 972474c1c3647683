//! Connections that stop being HTTP: the answer that says so, and a session which the end of the server waits for.

use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts as _, Request};
use axum::http::HeaderValue;
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;

use crate::routes::Shared;
use crate::streaming::websocket::MAX_MESSAGE;
use crate::upgrade::switch_to_spdy;

/// Yes, to SPDY/3.1 with this version of what goes over it; `serve` then has the connection.
pub(crate) fn spdy<B, F>(
    shared: &Shared<B>,
    version: &'static str,
    mut request: Request,
    serve: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let upgrade = hyper::upgrade::on(&mut request);
    shared.sessions.spawn(async move {
        match upgrade.await {
            Ok(io) => serve(TokioIo::new(io)).await,
            Err(error) => tracing::debug!(%error, "upgrade to SPDY"),
        }
    });
    switch_to_spdy(version)
}

/// Yes, to a WebSocket with this subprotocol (none, if it is empty), whose messages are bounded; `serve` then has it. Or the refusal.
pub(crate) async fn websocket<B, F>(
    shared: &Shared<B>,
    protocol: &'static str,
    request: Request,
    serve: impl FnOnce(WebSocket) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal.into_response(),
    };
    let mut upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    if !protocol.is_empty() {
        upgrade.set_selected_protocol(HeaderValue::from_static(protocol));
    }
    let token = shared.sessions.token();
    upgrade.on_upgrade(move |socket| async move {
        serve(socket).await;
        drop(token);
    })
}
