//! Sessions with a guest's agent as the port has them: commands, attached containers, connections to ports.
//!
//! Each direction holds at most a pipe's worth; dropping a session closes its connection, which ends what it was for. What comes back is
//! a guest's word.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use kvmlet_protocol::{AttachSpec, ExecInput, ExecOutput, ExecSpec, Forwarded, MAX_CHUNK, Request, Response, STREAMS_VERSION};
use kvmlet_server::{ExecExit, ExecRequest, ExecSession, PortConnection, StreamError, TerminalSize, Wanted};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
};

use crate::{
    agent::{self, Agent, AgentError},
    desired::DesiredPod,
};

/// Bytes between the guest and a client that are on their way.
const PIPE: usize = 64 << 10;

fn internal(error: AgentError) -> StreamError {
    StreamError::Failed(error.to_string())
}

/// Connects to an agent that knows of these streams.
async fn connect(socket: &Path) -> Result<Agent, StreamError> {
    let agent = Agent::connect(socket).await.map_err(internal)?;
    let version = agent.welcome().version;
    if version < STREAMS_VERSION {
        return Err(StreamError::Failed(too_old(version, STREAMS_VERSION)));
    }
    Ok(agent)
}

/// What is said of a machine that was started by an older release.
pub fn too_old(version: u16, needed: u16) -> String {
    format!(
        "the pod's machine was started by an older kvmlet, whose agent speaks version {version} of the protocol, and {needed} is needed: create the pod anew"
    )
}

/// Turns a connection into a session.
async fn begin(mut agent: Agent, request: Request) -> Result<UnixStream, StreamError> {
    match agent.ask(&request).await {
        Ok(Response::Started { .. } | Response::Done) => Ok(agent.into_stream()),
        Ok(_) => Err(StreamError::Failed("the agent answered with something else".into())),
        Err(error) => Err(internal(error)),
    }
}

/// Runs a command in a container.
pub async fn exec(socket: &Path, container: String, request: ExecRequest) -> Result<ExecSession, StreamError> {
    let agent = Agent::connect(socket).await.map_err(internal)?;
    let wanted = request.wanted;
    let spec = ExecSpec {
        container,
        args: request.command,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr,
        terminal: wanted.tty,
    };
    let stream = begin(agent, Request::Exec(spec)).await?;
    Ok(session(stream, wanted.stdin, wanted.tty))
}

/// Whether a container's own streams are a terminal.
pub fn has_terminal(desired: &DesiredPod, container: &str) -> bool {
    let own = desired.containers.iter().chain(&desired.ephemeral).find(|c| c.name == container);
    own.is_some_and(|own| desired.spec_of(own).tty.unwrap_or(false))
}

/// Joins a container's own streams.
pub async fn attach(socket: &Path, container: String, wanted: Wanted, terminal: bool) -> Result<ExecSession, StreamError> {
    let agent = connect(socket).await?;
    let spec = AttachSpec {
        container,
        stdin: wanted.stdin,
        stdout: wanted.stdout,
        stderr: wanted.stderr && !terminal,
    };
    let stream = begin(agent, Request::Attach(spec)).await?;
    Ok(session(stream, wanted.stdin, terminal))
}

/// Joins the agent's frames to streams.
fn session(stream: UnixStream, wants_input: bool, terminal: bool) -> ExecSession {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let (stdin, mut input) = tokio::io::duplex(PIPE);
    let (mut out_in, stdout) = tokio::io::duplex(PIPE);
    let (mut err_in, stderr) = tokio::io::duplex(PIPE);
    let (exit_in, exit) = oneshot::channel();
    let reader = tokio::spawn(async move {
        let result = loop {
            match agent::receive::<ExecOutput>(&mut from_guest).await {
                // A client that does not read an output any more still gets the exit.
                Ok(ExecOutput::Stdout(bytes)) => drop(out_in.write_all(&bytes).await),
                Ok(ExecOutput::Stderr(bytes)) => drop(err_in.write_all(&bytes).await),
                Ok(ExecOutput::Exited { code }) => break Ok(ExecExit::Code(code)),
                Ok(ExecOutput::Failed { message, .. }) => break Err(StreamError::Failed(message)),
                Err(error) => break Err(StreamError::Failed(format!("the session with the guest was cut: {error}"))),
            }
        };
        let _ = exit_in.send(result);
    });
    let (resize, mut sizes) = mpsc::channel::<TerminalSize>(4);
    let writer = tokio::spawn(async move {
        let mut buffer = vec![0; MAX_CHUNK];
        let (mut open, mut sized) = (wants_input, terminal);
        if !open {
            let _ = agent::send(&mut to_guest, &ExecInput::StdinClosed).await;
        }
        // Goes on after the input's end: closing the connection would end the command.
        loop {
            let frame = tokio::select! {
                read = input.read(&mut buffer), if open => match read {
                    Ok(n) if n > 0 => ExecInput::Stdin(buffer[..n].to_vec()),
                    _ => {
                        open = false;
                        ExecInput::StdinClosed
                    }
                },
                size = sizes.recv(), if sized => match size {
                    Some(size) => ExecInput::Resize { width: size.width, height: size.height },
                    None => {
                        sized = false;
                        continue;
                    }
                },
                else => std::future::pending().await,
            };
            if agent::send(&mut to_guest, &frame).await.is_err() {
                return;
            }
        }
    });
    let guard = (Abort(reader.abort_handle()), Abort(writer.abort_handle()));
    ExecSession {
        stdin: wants_input.then(|| Box::new(stdin) as _),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: terminal.then_some(resize),
        exit: Box::pin(async move {
            let result = exit
                .await
                .unwrap_or_else(|_| Err(StreamError::Failed("the session was cut".into())));
            drop(guard);
            result
        }),
    }
}

/// Connects to a port of the pod.
pub async fn forward(socket: &Path, port: u16) -> Result<PortConnection, StreamError> {
    let agent = connect(socket).await?;
    let stream = begin(agent, Request::Forward { port }).await?;
    let (from_guest, to_guest) = stream.into_split();
    let (near, far) = tokio::io::duplex(PIPE);
    let (far_read, far_write) = tokio::io::split(far);
    let (near_read, near_write) = tokio::io::split(near);
    let (cut_in, cut) = oneshot::channel();
    let reader = tokio::spawn(async move {
        if let Err(error) = from_port(from_guest, far_write).await {
            let _ = cut_in.send(error);
        }
    });
    let writer = tokio::spawn(to_port(far_read, to_guest));
    let tasks = Arc::new([Abort(reader.abort_handle()), Abort(writer.abort_handle())]);
    Ok(PortConnection {
        reader: Box::new(PortReader {
            bytes: near_read,
            cut: Some(cut),
            _tasks: tasks.clone(),
        }),
        writer: Box::new(PortWriter {
            bytes: near_write,
            _tasks: tasks,
        }),
    })
}

async fn from_port(mut from: OwnedReadHalf, mut to: WriteHalf<DuplexStream>) -> Result<(), AgentError> {
    loop {
        match agent::receive::<Forwarded>(&mut from).await {
            // A client that has gone takes the connection along.
            Ok(Forwarded::Bytes(bytes)) => drop(to.write_all(&bytes).await),
            Ok(Forwarded::End) => {
                let _ = to.shutdown().await;
                return Ok(());
            }
            Err(error) => {
                let _ = to.shutdown().await;
                return Err(error);
            }
        }
    }
}

async fn to_port(mut from: ReadHalf<DuplexStream>, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        let (frame, last) = match from.read(&mut buffer).await {
            Ok(n) if n > 0 => (Forwarded::Bytes(buffer[..n].to_vec()), false),
            _ => (Forwarded::End, true),
        };
        if agent::send(&mut to, &frame).await.is_err() {
            return;
        }
        if last {
            // Kept: closing the connection would end the other direction too.
            std::future::pending::<()>().await;
        }
    }
}

/// What a port sends. The connection lives as long as one of its two ends is held.
struct PortReader {
    bytes: ReadHalf<DuplexStream>,
    /// Tells that the end was none.
    cut: Option<oneshot::Receiver<AgentError>>,
    _tasks: Arc<[Abort; 2]>,
}

impl AsyncRead for PortReader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.bytes).poll_read(context, buffer);
        let ended = matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before;
        match self.cut.as_mut().filter(|_| ended).map(|cut| Pin::new(cut).poll(context)) {
            None => read,
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(told)) => {
                self.cut = None;
                match told {
                    Ok(_) => Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::ConnectionReset,
                        "the connection in the pod was reset",
                    ))),
                    Err(_) => read,
                }
            }
        }
    }
}

/// What a port is sent.
struct PortWriter {
    bytes: WriteHalf<DuplexStream>,
    _tasks: Arc<[Abort; 2]>,
}

impl AsyncWrite for PortWriter {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }
}

/// Ends a task when the session is dropped.
struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
