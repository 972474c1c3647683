//! What goes over the rig agent's connections: one request a connection, then frames until the answer is complete.
//! A frame is its kind, a little-endian length and that many bytes.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The most bytes of one frame.
const MAX: usize = 1 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A [`Request`], JSON.
    Request,
    /// For the command's standard input or the file's content; empty: its end.
    Input,
    /// From the command's standard output.
    Output,
    /// From the command's standard error.
    Error,
    /// The answer, JSON, the last frame.
    Answer,
    /// Why there is no answer, text, the last frame.
    Failure,
}

const KINDS: [Kind; 6] = [Kind::Request, Kind::Input, Kind::Output, Kind::Error, Kind::Answer, Kind::Failure];

/// What is asked of a host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Run a command to its end; the answer is an [`Exit`].
    Run { argv: Vec<String> },
    /// Write a file from the input, replacing it in one step; its folders are made.
    Put { path: String, mode: u32 },
    /// Start a service whose output goes to `log`.
    Start {
        name: String,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        log: String,
    },
    /// Send a signal to a service and wait for its end; the answer is a [`ServiceStatus`].
    Stop { name: String, signal: i32, wait_seconds: u64 },
    /// The answer is a [`ServiceStatus`].
    Status { name: String },
    /// Set the clock to so much since 1970, as a time server would.
    SetClock { now: Duration },
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
}

/// What a service does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceState {
    /// It was never started.
    Unknown,
    /// It runs.
    Running,
    /// It ended with this code.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
}

/// A service, as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its process id on the host, while it runs or of the last run.
    pub pid: Option<u32>,
    /// What it does.
    pub state: ServiceState,
}

pub(super) fn write_frame(stream: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    let index = KINDS.iter().position(|known| *known == kind).expect("every kind is listed");
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut header = [0; 5];
    header[0] = u8::try_from(index).expect("there are few kinds");
    header[1..].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&header)?;
    stream.write_all(body)
}

pub(super) fn write_json(stream: &mut impl Write, kind: Kind, value: &impl Serialize) -> io::Result<()> {
    write_frame(stream, kind, &serde_json::to_vec(value).map_err(io::Error::other)?)
}

/// The next frame; `None` when the other side has closed between frames.
pub(super) fn read_frame(stream: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut header = [0; 5];
    if let Err(error) = stream.read_exact(&mut header[..1]) {
        return if error.kind() == io::ErrorKind::UnexpectedEof {
            Ok(None)
        } else {
            Err(error)
        };
    }
    stream.read_exact(&mut header[1..])?;
    let kind = KINDS
        .get(usize::from(header[0]))
        .copied()
        .ok_or_else(|| io::Error::other("a frame of no known kind"))?;
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let length = usize::try_from(length).map_err(io::Error::other)?;
    if length > MAX {
        return Err(io::Error::other("a frame that is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some((kind, body)))
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(io::Error::other)
}
