//! Forwarded ports over SPDY: each connection is a pair of streams, `data` for the bytes and `error` for what went wrong.
//!
//! Owns the pairing and the order of a connection's end: what the pod has sent, then the ends of both streams; of a failure,
//! the words, then a reset. Refuses streams without a port, of an unknown type, a second one of a type, and more than
//! [`STREAMS`] at once. Pieces are in flight; nothing is gathered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::remotecommand::CREATION;
use super::spdy::frame::reset;
use super::spdy::{Connection, Headers, IncomingStream, Limits, SpdyOutput};
use super::{Input, PeerGone};
use crate::backend::{Backend, PortConnection, PortForwardRequest, StreamError};
use crate::routes::Shared;

/// Streams a client may have open: two for each of its connections.
pub const STREAMS: usize = 256;
/// Pieces of a connection that may wait on their way to the pod.
const QUEUE: usize = 2;
/// The size of one piece from the pod.
pub(super) const PIECE: usize = 32 * 1024;
/// How often half a pair is asked whether it has waited too long.
const LOOK: Duration = Duration::from_secs(5);

/// Serves all connections of one client until it has gone.
pub(crate) async fn serve<B: Backend, IO>(io: IO, request: PortForwardRequest, shared: Arc<Shared<B>>)
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let (idle, shutdown) = shared.limits();
    let limits = Limits {
        streams: STREAMS,
        queue: QUEUE,
        idle,
    };
    let mut connection = Connection::start(io, limits);
    let request = Arc::new(request);
    let mut halves = Halves::default();
    let mut forwards = JoinSet::new();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let served = async {
        loop {
            tokio::select! {
                stream = connection.accept() => {
                    let Some(stream) = stream else { return Err(PeerGone) };
                    if let Some(pair) = halves.take(stream).await? {
                        let (request, shared) = (request.clone(), shared.clone());
                        forwards.spawn(async move { forward(pair, &request, &shared.backend).await });
                    }
                }
                // What a forward that is over has to say it has said to the client.
                Some(_) = forwards.join_next() => {}
                _ = looks.tick() => halves.forget_old().await?,
            }
        }
    };
    let served: Result<(), PeerGone> = tokio::select! {
        served = served => served,
        () = shutdown.cancelled() => Err(PeerGone),
    };
    tracing::debug!(?served, "port-forward ended");
    connection.abort();
}

/// Why a stream is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Unfit {
    #[error("\"port\" header is required")]
    NoPort,
    #[error("unable to parse {0:?} as a port")]
    Port(String),
    #[error("invalid stream type {0:?}")]
    Type(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

/// Reads a stream's headers: its type, the connection it belongs to, and the port.
fn read_headers(stream: u32, headers: &Headers) -> Result<(Kind, String, u16), Unfit> {
    let port = headers.get("port").ok_or(Unfit::NoPort)?;
    let port = port
        .parse()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Unfit::Port(port.to_owned()))?;
    let (kind, alone) = match headers.get("streamtype").unwrap_or_default() {
        "error" => (Kind::Error, stream),
        // Clients that name no connection open the error stream right before.
        "data" => (Kind::Data, stream.saturating_sub(2)),
        other => return Err(Unfit::Type(other.to_owned())),
    };
    let named = headers.get("requestid").filter(|id| !id.is_empty());
    Ok((kind, named.map_or_else(|| alone.to_string(), str::to_owned), port))
}

/// A connection whose two streams are there.
struct Pair {
    port: u16,
    error: SpdyOutput,
    input: Input,
    output: SpdyOutput,
}

/// The first stream of a connection.
struct Half {
    since: Instant,
    port: u16,
    error: Option<SpdyOutput>,
    data: Option<(Input, SpdyOutput)>,
}

#[derive(Default)]
struct Halves(HashMap<String, Half>);

impl Halves {
    /// Takes a stream; the pair that it makes whole.
    async fn take(&mut self, stream: IncomingStream) -> Result<Option<Pair>, PeerGone> {
        let (kind, id, port) = match read_headers(stream.id(), stream.headers()) {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "unfit stream of a port-forward");
                stream.refuse(reset::REFUSED_STREAM).await?;
                return Ok(None);
            }
        };
        let doubled = self.0.get(&id).is_some_and(|half| match kind {
            Kind::Error => half.error.is_some(),
            Kind::Data => half.data.is_some(),
        });
        if doubled {
            stream.refuse(reset::REFUSED_STREAM).await?;
            return Ok(None);
        }
        let (input, output) = stream.accept().await?;
        let half = self.0.entry(id.clone()).or_insert_with(|| Half {
            since: Instant::now(),
            port,
            error: None,
            data: None,
        });
        match kind {
            Kind::Error => half.error = Some(output),
            Kind::Data => {
                half.port = port;
                half.data = Some((input, output));
            }
        }
        if half.error.is_none() || half.data.is_none() {
            return Ok(None);
        }
        Ok(match self.0.remove(&id) {
            Some(Half {
                port,
                error: Some(error),
                data: Some((input, output)),
                ..
            }) => Some(Pair {
                port,
                error,
                input,
                output,
            }),
            _ => None,
        })
    }

    /// Gives up what has waited for its other half too long.
    async fn forget_old(&mut self) -> Result<(), PeerGone> {
        let old: Vec<_> = self.0.extract_if(|_, half| half.since.elapsed() >= CREATION).collect();
        for (id, half) in old {
            if let Some(error) = half.error {
                let text = format!("(request={id}) timed out waiting for streams");
                give_up(error, Bytes::from(text)).await?;
            }
            if let Some((_, output)) = half.data {
                output.reset(reset::CANCEL).await?;
            }
        }
        Ok(())
    }
}

/// Says what went wrong on an error stream, and ends it.
async fn give_up(error: SpdyOutput, text: Bytes) -> Result<(), PeerGone> {
    match error.send(text).await {
        Ok(()) => error.finish().await,
        // This one stream was given up by the client; whether all of it has gone is noticed elsewhere.
        Err(PeerGone) => Ok(()),
    }
}

/// The sentence that `kubectl port-forward` prints.
pub(super) fn failure(request: &PortForwardRequest, port: u16, error: &StreamError) -> Bytes {
    let PortForwardRequest { namespace, pod, uid } = request;
    let uid = uid.as_deref().unwrap_or_default();
    Bytes::from(format!("error forwarding port {port} to pod {pod}_{namespace}, uid {uid}: {error}"))
}

/// Carries one connection to its end.
async fn forward<B: Backend>(pair: Pair, request: &PortForwardRequest, backend: &B) -> Result<(), PeerGone> {
    let Pair {
        port,
        error,
        input,
        output,
    } = pair;
    let given_up = output.given_up();
    let connected = tokio::select! {
        connected = backend.port_forward(request, port) => connected,
        () = given_up.cancelled() => return error.finish().await,
    };
    let PortConnection { reader, writer } = match connected {
        Ok(connection) => connection,
        Err(refusal) => {
            give_up(error, failure(request, port, &refusal)).await?;
            return output.reset(reset::CANCEL).await;
        }
    };
    let to_pod = copy_to_pod(input, writer).fuse();
    tokio::pin!(to_pod);
    let read = {
        let from_pod = copy_from_pod(reader, &output);
        tokio::pin!(from_pod);
        loop {
            tokio::select! {
                read = &mut from_pod => break read,
                () = given_up.cancelled() => break Err(Cut::Client),
                () = &mut to_pod, if !to_pod.is_terminated() => {}
            }
        }
    };
    match read {
        Ok(()) => {
            // A client that has reset the stream by now still waits for the other.
            let _ = output.finish().await;
            // Clients of old wait for this before they end their own direction.
            error.finish().await?;
            tokio::select! {
                () = &mut to_pod, if !to_pod.is_terminated() => {}
                () = given_up.cancelled() => {}
                else => {}
            }
            Ok(())
        }
        Err(Cut::Pod(cause)) => {
            let refusal = StreamError::Failed(cause.to_string());
            give_up(error, failure(request, port, &refusal)).await?;
            output.reset(reset::CANCEL).await
        }
        Err(Cut::Client) => error.finish().await,
    }
}

/// Why a direction ended early.
enum Cut {
    /// The connection in the pod broke.
    Pod(std::io::Error),
    /// The client wants no more of it.
    Client,
}

async fn copy_from_pod(mut reader: Box<dyn AsyncRead + Send + Unpin>, output: &SpdyOutput) -> Result<(), Cut> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        if reader.read_buf(&mut buffer).await.map_err(Cut::Pod)? == 0 {
            return Ok(());
        }
        output.send(buffer.split().freeze()).await.map_err(|PeerGone| Cut::Client)?;
    }
}

/// Copies to the pod; what comes after the pod has closed that direction is read and forgotten.
pub(super) async fn copy_to_pod(mut input: Input, writer: Box<dyn AsyncWrite + Send + Unpin>) {
    let mut writer = Some(writer);
    while let Some(piece) = input.recv().await {
        if let Some(to) = &mut writer
            && to.write_all(&piece).await.is_err()
        {
            writer = None;
        }
    }
    if let Some(mut to) = writer {
        // The pod may have closed meanwhile.
        let _ = to.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().copied().collect()
    }

    #[test]
    fn streams_of_one_connection_find_one_another() {
        let named = [("streamType", "error"), ("port", "80"), ("requestID", "7")];
        assert_eq!(read_headers(1, &headers(&named)), Ok((Kind::Error, "7".into(), 80)));
        let error = headers(&[("streamType", "error"), ("port", "80")]);
        let data = headers(&[("streamType", "data"), ("port", "80")]);
        assert_eq!(read_headers(5, &error), Ok((Kind::Error, "5".into(), 80)));
        assert_eq!(read_headers(7, &data), Ok((Kind::Data, "5".into(), 80)));
    }

    #[test]
    fn streams_that_belong_to_no_port_are_unfit() {
        let port = |port: &str| read_headers(1, &headers(&[("streamType", "data"), ("port", port)]));
        for wrong in ["", "0", "65536", "-1", "http"] {
            assert_eq!(port(wrong), Err(Unfit::Port(wrong.into())));
        }
        assert_eq!(read_headers(1, &headers(&[("streamType", "data")])), Err(Unfit::NoPort));
        assert_eq!(
            read_headers(1, &headers(&[("port", "80"), ("streamType", "stdin")])),
            Err(Unfit::Type("stdin".into()))
        );
    }
}
