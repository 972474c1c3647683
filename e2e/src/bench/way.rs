//! The ways to a guest: kvmlet's own socket, which other monitors have in the same manner, the host kernel's vsock, and TCP. One connection
//! for all.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike},
};

/// For one answer, seconds.
const ANSWER: u32 = 10;

/// The way to a guest.
#[derive(Debug, Clone)]
pub enum Way {
    /// A Unix socket that takes `CONNECT`.
    Unix(PathBuf),
    /// The host kernel's vsock.
    Vsock(u32),
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

impl Way {
    /// Takes away a socket that another monitor has left there: not all take a path that exists.
    pub(super) fn clear(&self) {
        if let Self::Unix(path) = self {
            let _ = fs::remove_file(path);
        }
    }

    /// A connection to a port of the guest; no read of it waits for long.
    pub(crate) fn connect(&self, port: u32) -> Result<Connection> {
        match self {
            Self::Unix(path) => through_unix(path, port),
            Self::Vsock(cid) => through_vsock(*cid, port).context("reach the guest"),
        }
    }
}

/// A connected socket of any kind.
pub(crate) struct Connection(File);

impl Connection {
    /// By TCP, small writes at once.
    pub(crate) fn tcp(address: Ipv4Addr, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&(address, port).into(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER.into())))?;
        stream.set_nodelay(true)?;
        Ok(Self(File::from(OwnedFd::from(stream))))
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn through_unix(path: &Path, port: u32) -> Result<Connection> {
    let mut stream = UnixStream::connect(path).context("reach the monitor")?;
    stream.set_read_timeout(Some(Duration::from_secs(ANSWER.into())))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reach the agent")?;
        answer.push(byte[0]);
        ensure!(answer.len() < 64, "an answer without an end");
    }
    ensure!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    Ok(Connection(File::from(OwnedFd::from(stream))))
}

fn through_vsock(cid: u32, port: u32) -> io::Result<Connection> {
    let stream: OwnedFd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&stream, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER.into()))?;
    connect(stream.as_raw_fd(), &VsockAddr::new(cid, port))?;
    Ok(Connection(File::from(stream)))
}
