//! One connection to the agent's log port, from `CONNECT` to its end: frames in, acknowledgements out, both bounded. A guest that says
//! something else is cut off.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use kvmlet_protocol::{Hello, LOG_PORT, LogAck, LogRecord, MAX_GUEST_FRAME, OLDEST_VERSION, VERSION, Welcome, decode, encode, frame};

use super::{Book, Dial};

/// For the guest's kernel and agent to answer.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Acknowledgements that wait in bytes; further ones wait as numbers.
const MAX_OUTPUT: usize = 16 << 10;
/// Bytes taken from the guest in one turn.
const TURN: usize = 1 << 20;

/// Why a connection is over.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody there, or not any more.
    Closed,
    /// The guest said what it may not say.
    Violation(String),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    acks: BTreeMap<String, u64>,
    /// The guest takes nothing any more.
    deaf: bool,
}

impl Link {
    /// Connects to the agent's log port and agrees on a version.
    pub(super) fn dial(dial: &Dial) -> Result<Self, Broken> {
        let mut stream = dial()?;
        stream.set_read_timeout(Some(HANDSHAKE))?;
        stream.write_all(format!("CONNECT {LOG_PORT}\n").as_bytes())?;
        expect_ok(&mut stream)?;
        let hello = Hello {
            oldest: OLDEST_VERSION,
            newest: VERSION,
        };
        stream.write_all(&encode(&hello))?;
        let welcome: Welcome = match frame::read_frame(&mut stream, MAX_GUEST_FRAME) {
            Ok(welcome) => welcome,
            Err(frame::FrameError::Closed | frame::FrameError::Io(_)) => return Err(Broken::Closed),
            Err(error) => return Err(Broken::Violation(error.to_string())),
        };
        if !(OLDEST_VERSION..=VERSION).contains(&welcome.version) {
            return Err(Broken::Violation(format!("the agent speaks version {}", welcome.version)));
        }
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            acks: BTreeMap::new(),
            deaf: false,
        })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn wants_to_write(&self) -> bool {
        !self.output.is_empty() || !self.acks.is_empty()
    }

    /// Notes what is written; sent as soon as the guest takes it.
    pub(super) fn acknowledge(&mut self, acks: Vec<(String, u64)>) {
        if !self.deaf {
            self.acks.extend(acks);
        }
    }

    /// Moves what can be moved. Whether a record came.
    pub(super) fn exchange(&mut self, book: &Book, full: bool) -> Result<bool, Broken> {
        self.send();
        if full {
            return Ok(false);
        }
        let mut buffer = [0u8; 64 << 10];
        let (mut taken, mut something) = (0, false);
        while taken < TURN {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Broken::Closed),
                Ok(count) => {
                    taken += count;
                    self.input.extend_from_slice(&buffer[..count]);
                    something |= self.records(book)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Closed),
            }
        }
        Ok(something)
    }

    /// Takes the whole frames out of the input, so that less than one stays.
    fn records(&mut self, book: &Book) -> Result<bool, Broken> {
        let violation = |error: frame::FrameError| Broken::Violation(error.to_string());
        let (mut at, mut something) = (0, false);
        while let Some(length) = self.input[at..].first_chunk::<4>() {
            let length = frame::check_length(*length, MAX_GUEST_FRAME).map_err(violation)?;
            let Some(body) = self.input.get(at + 4..at + 4 + length) else {
                break;
            };
            let record: LogRecord = decode(body).map_err(violation)?;
            at += 4 + length;
            something = true;
            let container = record.container.clone();
            if let Some(sequence) = book.take(record).map_err(Broken::Violation)? {
                self.acknowledge(vec![(container, sequence)]);
            }
        }
        self.input.drain(..at);
        Ok(something)
    }

    fn send(&mut self) {
        loop {
            while self.output.len() < MAX_OUTPUT
                && let Some((container, sequence)) = self.acks.pop_first()
            {
                self.output.extend(encode(&LogAck { container, sequence }));
            }
            if self.output.is_empty() {
                return;
            }
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nobody listens any more, but what was said before may still have to be read.
                Err(_) => {
                    self.deaf = true;
                    self.output.clear();
                    self.acks.clear();
                }
            }
        }
    }
}

/// Reads `OK <port>\n`, byte by byte: what follows belongs to the agent.
fn expect_ok(stream: &mut UnixStream) -> Result<(), Broken> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
        if line.len() > 32 {
            return Err(Broken::Closed);
        }
    }
    if line.starts_with(b"OK ") { Ok(()) } else { Err(Broken::Closed) }
}
