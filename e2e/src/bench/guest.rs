//! Runs on a host: starts one machine monitor, ours or another, and measures until the agent in its guest has answered the first frame of a
//! connection. One client for all monitors; only the way to the guest differs.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use kvmlet_protocol::{CONTROL_PORT, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, Request, Response, VERSION, Welcome, read_frame, write_frame};
use nix::sys::{
    resource::{UsageWho, getrusage},
    socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike},
};
use serde::{Deserialize, Serialize};

use super::smaps::{self, Usage};

/// Between two attempts to reach the agent.
const PAUSE: Duration = Duration::from_millis(2);
/// A guest that has not answered by then will not.
const DEADLINE: Duration = Duration::from_secs(90);
/// For one answer.
const ANSWER: i64 = 10;

/// The way to a guest's agent.
#[derive(Debug, Clone)]
pub enum Way {
    /// kvmlet's own: a Unix socket that takes `CONNECT`.
    Unix(PathBuf),
    /// The host kernel's vsock.
    Vsock(u32),
}

/// What one start cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// From before the process was made to the agent's answer.
    pub(crate) seconds: f64,
    /// Processor time of the whole process until it was ended, right after.
    pub(crate) cpu_seconds: f64,
    /// Memory at the answer.
    pub(crate) memory: Usage,
    /// What the guest says it has, bytes.
    pub(crate) guest_total: u64,
    /// What of it is not available any more, bytes.
    pub(crate) guest_used: u64,
}

impl std::str::FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("unix", path)) => Ok(Self::Unix(path.into())),
            Some(("vsock", cid)) => Ok(Self::Vsock(cid.parse().context("a context identifier is a number")?)),
            _ => bail!("unix:PATH or vsock:CID, not {text}"),
        }
    }
}

/// Starts `argv`, measures, ends it and prints a sample as JSON. `ram` is what the guest was given, bytes.
pub fn measure(way: &Way, ram: u64, argv: &[String]) -> Result<()> {
    let (program, arguments) = argv.split_first().context("no command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let before = cpu()?;
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut stream = loop {
        match greet(way) {
            Ok(stream) => break Ok(stream),
            Err(error) => {
                if let Some(status) = child.try_wait().context("look after the monitor")? {
                    break Err(error.context(format!("{program} ended: {status}")));
                }
                if begun.elapsed() > DEADLINE {
                    break Err(error.context(format!("no answer within {} s", DEADLINE.as_secs())));
                }
                thread::sleep(PAUSE);
            }
        }
    };
    let seconds = begun.elapsed().as_secs_f64();
    let memory = fs::read_to_string(format!("/proc/{}/smaps", child.id()));
    let stats = stream.as_mut().ok().map(stats);
    // A monitor that has ended by itself was reaped above.
    let _ = child.kill();
    child.wait().context("wait for the monitor")?;
    stream?;
    let (total, available) = stats.context("no connection")??;
    let sample = Sample {
        seconds,
        cpu_seconds: cpu()? - before,
        memory: smaps::parse(&memory.context("read the monitor's memory")?, ram),
        guest_total: total,
        guest_used: total.saturating_sub(available),
    };
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

/// Processor seconds of children that were waited for.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("read used time")?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6)
}

/// Both kinds of connection.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn greet(way: &Way) -> Result<Box<dyn Stream>> {
    let mut stream: Box<dyn Stream> = match way {
        Way::Unix(path) => Box::new(through_unix(path)?),
        Way::Vsock(cid) => Box::new(through_vsock(*cid)?),
    };
    let hello = Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
    };
    write_frame(&mut stream, &hello).context("greet the agent")?;
    let welcome: Welcome = read_frame(&mut stream, MAX_GUEST_FRAME).context("hear the agent")?;
    ensure!(welcome.version == VERSION, "the agent speaks another version");
    Ok(stream)
}

fn stats(stream: &mut Box<dyn Stream>) -> Result<(u64, u64)> {
    write_frame(stream, &Request::Stats).context("ask for figures")?;
    match read_frame(stream, MAX_GUEST_FRAME).context("hear the guest's figures")? {
        Response::Stats(stats) => Ok((stats.memory_total, stats.memory_available)),
        other => bail!("the agent answered {other:?}"),
    }
}

fn through_unix(path: &PathBuf) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(path).context("reach the monitor")?;
    stream.set_read_timeout(Some(Duration::from_secs(ANSWER as u64)))?;
    stream.write_all(format!("CONNECT {CONTROL_PORT}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reach the agent")?;
        answer.push(byte[0]);
        ensure!(answer.len() < 64, "an answer without an end");
    }
    ensure!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    Ok(stream)
}

fn through_vsock(cid: u32) -> io::Result<fs::File> {
    let stream: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&stream, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER))?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &VsockAddr::new(cid, CONTROL_PORT))?;
    Ok(stream.into())
}
