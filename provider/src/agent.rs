//! The guest's client: one vsock connection a request or session, reached through the machine's `vsock.sock`. Everything that comes back is
//! a guest's word: bounded in size and time, and never trusted further than the pod itself.

use std::{path::Path, time::Duration};

use kvmlet_protocol::{
    CONTROL_PORT, ContainerStatus, ErrorKind, Failure, FrameError, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, Request, Response, VERSION,
    Welcome, decode, encode, frame::check_length,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// How long a request may take, besides [`Request::Watch`].
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// How long a watch is silent at most (the agent answers after 240 s).
const WATCH_TIME: Duration = Duration::from_secs(270);
/// How long connecting and shaking hands may take once the agent listens.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Longest answer of the machine to a wish to connect, with the line's end.
const MAX_ANSWER: usize = 33;

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The machine's socket is not there or refuses.
    #[error("reach the machine's vsock")]
    Connect(#[source] std::io::Error),
    /// Nobody listens in the guest (yet).
    #[error("the agent does not listen")]
    Refused,
    /// No answer in time.
    #[error("the agent did not answer {what} within {} s", .after.as_secs())]
    Silent {
        /// What was asked.
        what: &'static str,
        /// For how long it was waited.
        after: Duration,
    },
    /// What came is no frame of the protocol.
    #[error("the agent broke the protocol: {0}")]
    Protocol(FrameError),
    /// It speaks no version that this node knows.
    #[error("the agent speaks protocol version {0}, this node {OLDEST_VERSION} to {VERSION}")]
    Version(u16),
    /// It answered that it could not.
    #[error(transparent)]
    Failed(Failure),
    /// It answered something else.
    #[error("the agent answered {0} with something else")]
    Unexpected(&'static str),
}

impl AgentError {
    /// The kind of a failure that the agent itself reported.
    pub fn kind(&self) -> Option<ErrorKind> {
        if let Self::Failed(failure) = self {
            Some(failure.kind)
        } else {
            None
        }
    }
}

/// A connection to the agent's control port after the handshake.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    welcome: Welcome,
}

impl Agent {
    /// Connects once.
    pub async fn connect(socket: &Path) -> Result<Self, AgentError> {
        timeout(HANDSHAKE_TIME, Self::handshake(socket))
            .await
            .map_err(|_| AgentError::Silent {
                what: "the handshake",
                after: HANDSHAKE_TIME,
            })?
    }

    /// Connects as soon as the agent of a booting guest listens; gives up after `limit`.
    pub async fn await_boot(socket: &Path, limit: Duration) -> Result<Self, AgentError> {
        let attempts = async {
            loop {
                match Self::connect(socket).await {
                    Ok(agent) => return Ok(agent),
                    // A guest whose processors get little time listens long before it answers.
                    Err(AgentError::Connect(_) | AgentError::Refused | AgentError::Silent { .. }) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    Err(other) => return Err(other),
                }
            }
        };
        timeout(limit, attempts).await.unwrap_or(Err(AgentError::Silent {
            what: "the first hello",
            after: limit,
        }))
    }

    async fn handshake(socket: &Path) -> Result<Self, AgentError> {
        let mut stream = UnixStream::connect(socket).await.map_err(AgentError::Connect)?;
        stream
            .write_all(format!("CONNECT {CONTROL_PORT}\n").as_bytes())
            .await
            .map_err(AgentError::Connect)?;
        // The agent says nothing before it is greeted: what comes is the line alone, if not all at once.
        let (mut line, mut length) = ([0; MAX_ANSWER], 0);
        while !line[..length].ends_with(b"\n") {
            match stream.read(&mut line[length..]).await {
                Ok(0) | Err(_) => return Err(AgentError::Refused),
                Ok(read) => length += read,
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(AgentError::Refused);
        }
        send(
            &mut stream,
            &Hello {
                oldest: OLDEST_VERSION,
                newest: VERSION,
            },
        )
        .await?;
        let welcome: Welcome = receive(&mut stream).await?;
        if !(OLDEST_VERSION..=VERSION).contains(&welcome.version) {
            return Err(AgentError::Version(welcome.version));
        }
        Ok(Self { stream, welcome })
    }

    /// What the agent said of itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// One request and its answer; a failure of the agent's is an error.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, AgentError> {
        let limit = if matches!(request, Request::Watch { .. }) {
            WATCH_TIME
        } else {
            REQUEST_TIME
        };
        let exchange = async {
            send(&mut self.stream, request).await?;
            receive::<Response>(&mut self.stream).await
        };
        match timeout(limit, exchange).await {
            Ok(Ok(Response::Failed(failure))) => Err(AgentError::Failed(failure)),
            Ok(answer) => answer,
            Err(_) => Err(AgentError::Silent {
                what: "a request",
                after: limit,
            }),
        }
    }

    /// A request that is answered by [`Response::Done`].
    pub async fn command(&mut self, request: &Request) -> Result<(), AgentError> {
        match self.ask(request).await? {
            Response::Done => Ok(()),
            _ => Err(AgentError::Unexpected("a command")),
        }
    }

    /// The connection itself, after a request that turned it into a session.
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }
}

/// What a guest says of its containers, within so much time: asked on a connection of its own, beside the daemon's.
///
/// # Errors
/// When it does not answer, or not in time.
pub async fn containers(socket: &Path, limit: Duration) -> Result<Vec<ContainerStatus>, AgentError> {
    let asked = async {
        match Agent::connect(socket).await?.ask(&Request::Watch { seen: 0 }).await? {
            Response::Containers { containers, .. } => Ok(containers),
            _ => Err(AgentError::Unexpected("a watch")),
        }
    };
    timeout(limit, asked).await.unwrap_or(Err(AgentError::Silent {
        what: "which containers it has",
        after: limit,
    }))
}

/// Writes a frame.
pub async fn send<T: Serialize>(stream: &mut (impl AsyncWriteExt + Unpin), message: &T) -> Result<(), AgentError> {
    stream
        .write_all(&encode(message))
        .await
        .map_err(|e| AgentError::Protocol(FrameError::Io(e)))
}

/// Reads a frame of at most [`MAX_GUEST_FRAME`] bytes.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<T, AgentError> {
    let io = |e: std::io::Error| {
        AgentError::Protocol(if e.kind() == std::io::ErrorKind::UnexpectedEof {
            FrameError::Closed
        } else {
            FrameError::Io(e)
        })
    };
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(io)?;
    let mut body = vec![0; check_length(length, MAX_GUEST_FRAME).map_err(AgentError::Protocol)?];
    stream.read_exact(&mut body).await.map_err(io)?;
    decode(&body).map_err(AgentError::Protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    /// A machine whose guest answers what is sent to its control port with these bytes, after the handshake if `greets`, then says no more.
    async fn guest(greets: bool, bytes: &'static [u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = vec![0; format!("CONNECT {CONTROL_PORT}\n").len()];
                stream.read_exact(&mut line).await.unwrap();
                stream.write_all(b"OK 1073741824\n").await.unwrap();
                receive::<Hello>(&mut stream).await.unwrap();
                if greets {
                    let welcome = Welcome {
                        version: VERSION,
                        agent: String::new(),
                        kernel: String::new(),
                    };
                    send(&mut stream, &welcome).await.unwrap();
                    receive::<Request>(&mut stream).await.unwrap();
                }
                stream.write_all(bytes).await.unwrap();
                held.push(stream);
            }
        });
        (dir, socket)
    }

    #[tokio::test]
    async fn garbage_is_no_hello() {
        let (_dir, socket) = guest(false, b"\x07\0\0\0garbage").await;
        let error = Agent::connect(&socket).await.unwrap_err();
        assert!(matches!(error, AgentError::Protocol(_) | AgentError::Version(_)), "{error}");
    }

    #[tokio::test]
    async fn four_gibibytes_are_refused_before_they_are_waited_for() {
        for greets in [false, true] {
            let (_dir, socket) = guest(greets, b"\xff\xff\xff\xffx").await;
            let error = match Agent::connect(&socket).await {
                Ok(mut agent) => agent.ask(&Request::List).await.unwrap_err(),
                Err(error) => error,
            };
            assert!(matches!(error, AgentError::Protocol(FrameError::TooLarge { .. })), "{error}");
        }
    }

    #[tokio::test]
    async fn garbage_instead_of_an_answer_ends_the_connection_only() {
        let (_dir, socket) = guest(true, b"\x04\0\0\0\xff\xff\xff\xff").await;
        let mut agent = Agent::connect(&socket).await.unwrap();
        assert!(matches!(agent.ask(&Request::List).await, Err(AgentError::Protocol(_))));
        Agent::connect(&socket).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_says_nothing_is_not_waited_for_for_ever() {
        let (_dir, socket) = guest(false, b"").await;
        assert!(matches!(Agent::connect(&socket).await, Err(AgentError::Silent { .. })));
        let limit = Duration::from_secs(120);
        let error = Agent::await_boot(&socket, limit).await.unwrap_err();
        assert!(matches!(error, AgentError::Silent { after, .. } if after == limit), "{error}");
        let (_dir, socket) = guest(true, b"").await;
        let mut agent = Agent::connect(&socket).await.unwrap();
        assert!(matches!(agent.ask(&Request::List).await, Err(AgentError::Silent { .. })));
    }
}
