//! What a guest is asked for whose disk and network are measured: one line of JSON on a connection, then bytes. The bench on the host and the
//! guest's first process both hold to this; who measures is the bench, but for disks.

use std::{
    io::{self, Read, Write},
    net::Ipv4Addr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// The guest listens here, by vsock and by TCP.
pub const PORT: u16 = 5000;
/// The guest's first network device.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
/// The host's end of it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
/// Of both addresses' network.
pub const PREFIX: u8 = 30;
/// What is sent at once, bytes.
pub const CHUNK: usize = 256 << 10;
/// The first byte of the last chunk that a [`Task::Sink`] gets. To end one direction of a connection says it as well, but not every monitor's
/// vsock leaves the other one open for long then (Firecracker's: 2 s).
pub const LAST: u8 = 1;
/// No line of this protocol is longer, bytes.
const LONGEST: usize = 4096;

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Read or write the first disk; answers [`Done`] as a line.
    Disk(Access),
    /// Take chunks of [`CHUNK`] up to the one that begins with [`LAST`]; answers how many bytes as 8 bytes, little-endian.
    Sink,
    /// Send bytes until the other side has gone.
    Source,
    /// Send back what comes, to its end.
    Echo,
}

/// How a disk is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Writes, else reads.
    pub write: bool,
    /// At random places, else one after the other.
    pub random: bool,
    /// Bytes of each transfer, a multiple of 512.
    pub block: usize,
    /// Transfers at once.
    pub threads: usize,
    /// For how long.
    pub time: Duration,
}

/// What was done with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Transfers.
    pub transfers: u64,
    /// In how long, by the guest's clock.
    pub seconds: f64,
}

/// Writes one line.
///
/// # Errors
///
/// Those of the connection.
pub fn tell<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Reads one line, and not a byte behind it.
///
/// # Errors
///
/// Those of the connection; what is no such message, or none of its length.
pub fn hear<T: for<'a> Deserialize<'a>>(stream: &mut impl Read) -> io::Result<T> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        match byte {
            [b'\n'] => return Ok(serde_json::from_slice(&line)?),
            _ if line.len() == LONGEST => return Err(io::Error::other("a line without an end")),
            [byte] => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_its_bytes_begin() {
        let mut text = Vec::new();
        tell(&mut text, &Task::Sink).unwrap();
        text.extend(b"bytes");
        let mut stream = text.as_slice();
        assert_eq!(hear::<Task>(&mut stream).unwrap(), Task::Sink);
        assert_eq!(stream, b"bytes");
    }

    #[test]
    fn a_line_without_an_end_is_not_kept() {
        let error = hear::<Task>(&mut io::repeat(b'x')).unwrap_err();
        assert_eq!(error.to_string(), "a line without an end");
    }
}
