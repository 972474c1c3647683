//! Remote commands over SPDY: waits for the streams the client announced, then runs the command.
//!
//! Owns which streams belong to a command. Refuses streams of an unknown type, a second one of a type, and clients that
//! do not open all of them in time.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::negotiate::SpdyProtocol;
use super::session::run;
use super::spdy::frame::reset;
use super::spdy::{Connection, IncomingStream, Limits, SpdyOutput};
use super::{ClientStreams, Input, Output, PeerGone};
use crate::backend::{Backend, ExecRequest};

/// How long a client has to open its streams.
pub const CREATION: Duration = Duration::from_secs(30);
/// Streams a connection may hold: a command has five.
const STREAMS: usize = 8;

/// Why the client's streams did not come.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error("timed out waiting for client to create streams")]
    Timeout,
    #[error(transparent)]
    Gone(#[from] PeerGone),
}

/// Serves one command over an upgraded connection to its end.
pub async fn serve<B: Backend, IO>(
    io: IO,
    protocol: SpdyProtocol,
    request: ExecRequest,
    backend: &B,
    idle: Duration,
    shutdown: CancellationToken,
) where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Connection::start(io, Limits { streams: STREAMS, idle });
    let gone = connection.closed();
    let served = async {
        let streams = match timeout(CREATION, collect(&mut connection, protocol, &request)).await {
            Ok(streams) => streams?,
            Err(_) => return Err(SetupError::Timeout),
        };
        let client = streams.into_client(protocol, gone.clone())?;
        let session = tokio::select! {
            session = backend.exec(request) => session,
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
    fn complete(&self, wanted: &ExecRequest, resize: bool) -> bool {
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

    fn into_client(self, protocol: SpdyProtocol, gone: CancellationToken) -> Result<ClientStreams, PeerGone> {
        Ok(ClientStreams {
            stdin: self.stdin,
            stdout: self.stdout.map(Output::Spdy),
            stderr: self.stderr.map(Output::Spdy),
            resize: self.resize,
            error: Output::Spdy(self.error.ok_or(PeerGone)?),
            status: protocol.status,
            gone,
        })
    }
}

async fn collect(connection: &mut Connection, protocol: SpdyProtocol, wanted: &ExecRequest) -> Result<Streams, PeerGone> {
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
