//! The harness's side of the rig's agent. A command is held to a deadline: when it passes, or the harness goes, the
//! command is killed on the host.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;

use super::wire::{Exit, Kind, Request, ServiceStatus, parse, read_frame, write_frame, write_json};
use crate::{netns::Netns, paths::AGENT_PORT};

/// What a command on a host said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Its exit code; 128 and the signal's number when a signal ended it, as a shell says it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl CommandOutput {
    /// Standard output as text, without the last line's end.
    pub fn text(&self) -> String {
        crate::command::text(&self.stdout)
    }

    /// Standard error as text, without the last line's end.
    pub fn error_text(&self) -> String {
        crate::command::text(&self.stderr)
    }
}

/// A service to start on a host.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Beside the agent's own environment.
    pub env: Vec<(String, String)>,
    /// The file on the host that takes its output.
    pub log: String,
}

/// Speaks with the agent of one host.
#[derive(Debug, Clone)]
pub struct Client {
    namespace: Netns,
    address: SocketAddr,
}

impl Client {
    /// For the host at this address in the cluster's namespace.
    pub fn new(namespace: Netns, address: Ipv4Addr) -> Self {
        Self {
            namespace,
            address: (address, AGENT_PORT).into(),
        }
    }

    fn ask(&self, request: &Request, deadline: Duration) -> Result<TcpStream> {
        let mut stream = self.namespace.connect(self.address, Duration::from_secs(5).min(deadline))?;
        stream.set_nodelay(true).context("set up the connection")?;
        write_json(&mut stream, Kind::Request, request).context("send a request")?;
        Ok(stream)
    }

    /// Reads frames until the answer.
    fn answer<T: DeserializeOwned>(mut stream: TcpStream, deadline: Duration, mut sink: impl FnMut(Kind, &[u8])) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "no answer within {} s", deadline.as_secs());
            stream.set_read_timeout(Some(left)).context("set a deadline")?;
            match read_frame(&mut stream) {
                Ok(Some((Kind::Answer, body))) => return parse(&body).context("read the answer"),
                Ok(Some((Kind::Failure, body))) => bail!("{}", String::from_utf8_lossy(&body)),
                Ok(Some((kind, body))) => sink(kind, &body),
                Ok(None) => bail!("the host closed the connection"),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    bail!("no answer within {} s", deadline.as_secs())
                }
                Err(error) => return Err(error).context("read the answer"),
            }
        }
    }

    /// Sets the host's clock by this machine's.
    pub fn set_clock(&self, deadline: Duration) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        Self::answer(self.ask(&Request::SetClock { now }, deadline)?, deadline, |_, _| ())
    }

    /// Runs a command to its end, with `input` on its standard input, handing over output as it comes.
    pub fn stream(
        &self,
        argv: &[&str],
        input: impl Read + Send + 'static,
        deadline: Duration,
        mut output: impl FnMut(bool, &[u8]),
    ) -> Result<i32> {
        let request = Request::Run {
            argv: argv.iter().map(ToString::to_string).collect(),
        };
        let stream = self.ask(&request, deadline)?;
        let upload = stream.try_clone().context("share the connection")?;
        // A command that ends early leaves its input unread; the answer tells how it ended.
        thread::spawn(move || send_input(upload, input));
        let exit: Exit = Self::answer(stream, deadline, |kind, body| output(kind == Kind::Error, body))?;
        Ok(exit.code.unwrap_or_else(|| 128 + exit.signal.unwrap_or(0)))
    }

    /// Runs a command to its end and gathers what it says.
    pub fn output(&self, argv: &[&str], input: &[u8], deadline: Duration) -> Result<CommandOutput> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = self.stream(argv, io::Cursor::new(input.to_vec()), deadline, |is_error, bytes| {
            if is_error { &mut stderr } else { &mut stdout }.extend_from_slice(bytes);
        })?;
        Ok(CommandOutput { code, stdout, stderr })
    }

    /// Writes a file on the host, in one step, with its folders.
    pub fn put(&self, path: &str, mode: u32, content: impl Read) -> Result<()> {
        let stream = self.ask(
            &Request::Put {
                path: path.to_owned(),
                mode,
            },
            Duration::from_secs(5),
        )?;
        let upload = stream.try_clone().context("share the connection")?;
        send_input(upload, content).with_context(|| format!("send {path}"))?;
        Self::answer(stream, Duration::from_secs(60), |_, _| {}).with_context(|| format!("write {path}"))
    }

    /// Starts a service.
    pub fn start(&self, service: &Service) -> Result<ServiceStatus> {
        let Service { name, argv, env, log } = service.clone();
        let stream = self.ask(&Request::Start { name, argv, env, log }, Duration::from_secs(5))?;
        Self::answer(stream, Duration::from_secs(10), |_, _| {}).with_context(|| format!("start {}", service.name))
    }

    /// Sends a signal to a service and waits for its end. One that does not run is no error.
    pub fn stop(&self, name: &str, signal: i32, wait: Duration) -> Result<ServiceStatus> {
        let request = Request::Stop {
            name: name.to_owned(),
            signal,
            wait_seconds: wait.as_secs(),
        };
        let stream = self.ask(&request, Duration::from_secs(5))?;
        Self::answer(stream, wait + Duration::from_secs(10), |_, _| {}).with_context(|| format!("stop {name}"))
    }

    /// How a service does.
    pub fn status(&self, name: &str) -> Result<ServiceStatus> {
        let stream = self.ask(&Request::Status { name: name.to_owned() }, Duration::from_secs(5))?;
        Self::answer(stream, Duration::from_secs(10), |_, _| {}).with_context(|| format!("ask after {name}"))
    }
}

fn send_input(mut stream: TcpStream, mut input: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = input.read(&mut buffer)?;
        write_frame(&mut stream, Kind::Input, &buffer[..count])?;
        if count == 0 {
            return stream.flush();
        }
    }
}
