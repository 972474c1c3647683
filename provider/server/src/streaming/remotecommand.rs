//! Remote commands over SPDY and WebSocket: makes the client's streams one thing, then runs the command.
//!
//! Owns which streams belong to a command. Refuses streams of an unknown type, a second one of a type, and clients that
//! do not open all of them in time.

use std::time::Duration;

use axum::extract::ws::WebSocket;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::negotiate::{SpdyProtocol, WebSocketProtocol};
use super::session::run;
use super::spdy::frame::reset;
use super::spdy::{Connection, IncomingStream, Limits, SpdyOutput};
use super::websocket::{Channels, ERROR, RESIZE, STDERR, STDIN, STDOUT};
use super::{ClientStreams, Input, Output, PeerGone};
use crate::backend::{ExecSession, StreamError, Wanted};

/// How long a client has to open its streams.
pub const CREATION: Duration = Duration::from_secs(30);
/// Streams a connection may hold: a command has five.
const STREAMS: usize = 8;
/// Pieces of a stream's input that may wait.
const QUEUE: usize = 16;

/// What a command is served by.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// The streams that the client announced.
    pub wanted: Wanted,
    /// What is being done, for the words of a failure: `executing command in container`.
    pub doing: &'static str,
}

/// Why the client's streams did not come.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("timed out waiting for client to create streams")]
    Timeout,
    #[error(transparent)]
    Gone(#[from] PeerGone),
}

/// Serves one command over an upgraded connection to its end. `begin` is called once the streams are there; the connection ends
/// when it was silent for `idle`, or with `shutdown`.
pub async fn serve<IO>(
    io: IO,
    protocol: SpdyProtocol,
    terms: Terms,
    begin: impl Future<Output = Result<ExecSession, StreamError>>,
    (idle, shutdown): (Duration, CancellationToken),
) where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let limits = Limits {
        streams: STREAMS,
        queue: QUEUE,
        idle,
    };
    let mut connection = Connection::start(io, limits);
    let gone = connection.closed();
    let served = async {
        let streams = match timeout(CREATION, collect(&mut connection, protocol, terms.wanted)).await {
            Ok(streams) => streams?,
            Err(_) => return Err(SetupError::Timeout),
        };
        let client = streams.into_client(protocol, terms, gone.clone())?;
        let session = tokio::select! {
            session = begin => session,
            () = gone.cancelled() => return Err(PeerGone.into()),
        };
        Ok(run(client, session).await?)
    };
    let served = tokio::select! {
        served = served => served,
        () = shutdown.cancelled() => Err(PeerGone.into()),
    };
    match served {
        Ok(()) => tokio::select! {
            () = connection.close() => {}
            () = shutdown.cancelled() => gone.cancel(),
        },
        Err(error) => {
            tracing::debug!(%error, "remote command given up");
            connection.abort();
        }
    }
}

/// Serves one command over a WebSocket, as [`serve`] does over SPDY.
pub async fn serve_websocket(
    socket: WebSocket,
    protocol: WebSocketProtocol,
    terms: Terms,
    begin: impl Future<Output = Result<ExecSession, StreamError>>,
    (idle, shutdown): (Duration, CancellationToken),
) {
    let wanted = terms.wanted;
    let inputs = [(STDIN, wanted.stdin), (RESIZE, wanted.tty)];
    let inputs = inputs.into_iter().filter(|(_, wanted)| *wanted).map(|(channel, _)| channel);
    let mut channels = Channels::start(socket, protocol, inputs, idle, &shutdown);
    let gone = channels.gone();
    let output = |wanted: bool, channel| wanted.then(|| Output::WebSocket(channels.output(channel)));
    let (stdout, stderr) = (output(wanted.stdout, STDOUT), output(wanted.stderr, STDERR));
    let error = Output::WebSocket(channels.output(ERROR));
    let client = ClientStreams {
        stdin: channels.input(STDIN),
        resize: channels.input(RESIZE),
        stdout,
        stderr,
        error,
        status: protocol.status,
        doing: terms.doing,
        gone: gone.clone(),
    };
    let served = async {
        // Clients wait for one message before they believe that the command was accepted.
        let lowest = client.stdout.as_ref().or(client.stderr.as_ref()).unwrap_or(&client.error);
        lowest.send(Bytes::new()).await?;
        let session = tokio::select! {
            session = begin => session,
            () = gone.cancelled() => return Err(PeerGone),
        };
        run(client, session).await
    };
    match served.await {
        Ok(()) => channels.close().await,
        Err(PeerGone) => channels.abort().await,
    }
}

/// The streams opened so far, by type.
#[derive(Default)]
struct Streams {
    error: Option<SpdyOutput>,
    stdin: Option<Input>,
    stdout: Option<SpdyOutput>,
    stderr: Option<SpdyOutput>,
    resize: Option<Input>,
    /// Ways back on streams that only bring something; dropped with the rest.
    unused: Vec<SpdyOutput>,
}

impl Streams {
    fn complete(&self, wanted: Wanted, resize: bool) -> bool {
        self.error.is_some()
            && self.stdin.is_some() >= wanted.stdin
            && self.stdout.is_some() >= wanted.stdout
            && self.stderr.is_some() >= wanted.stderr
            && self.resize.is_some() >= resize
    }

    fn has(&self, kind: &str) -> bool {
        match kind {
            "error" => self.error.is_some(),
            "stdin" => self.stdin.is_some(),
            "stdout" => self.stdout.is_some(),
            "stderr" => self.stderr.is_some(),
            "resize" => self.resize.is_some(),
            _ => true,
        }
    }

    fn put(&mut self, kind: &str, input: Input, output: SpdyOutput) {
        match kind {
            "error" => self.error = Some(output),
            "stdout" => self.stdout = Some(output),
            "stderr" => self.stderr = Some(output),
            "stdin" => {
                self.stdin = Some(input);
                self.unused.push(output);
            }
            _ => {
                self.resize = Some(input);
                self.unused.push(output);
            }
        }
    }

    fn into_client(self, protocol: SpdyProtocol, terms: Terms, gone: CancellationToken) -> Result<ClientStreams, PeerGone> {
        Ok(ClientStreams {
            stdin: self.stdin,
            stdout: self.stdout.map(Output::Spdy),
            stderr: self.stderr.map(Output::Spdy),
            resize: self.resize,
            error: Output::Spdy(self.error.ok_or(PeerGone)?),
            status: protocol.status,
            doing: terms.doing,
            gone,
        })
    }
}

async fn collect(connection: &mut Connection, protocol: SpdyProtocol, wanted: Wanted) -> Result<Streams, PeerGone> {
    let mut streams = Streams::default();
    let resize = wanted.tty && protocol.resize;
    while !streams.complete(wanted, resize) {
        let stream: IncomingStream = connection.accept().await.ok_or(PeerGone)?;
        let kind = stream.headers().get("streamtype").unwrap_or_default().to_owned();
        if streams.has(&kind) {
            tracing::debug!(kind, "unexpected SPDY stream");
            stream.refuse(reset::REFUSED_STREAM).await?;
        } else {
            let (input, output) = stream.accept().await?;
            streams.put(&kind, input, output);
        }
    }
    Ok(streams)
}
