//! Greets kvmlet's agent in a machine run by hand. Asks it for nothing.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use kvmlet_protocol::{CONTROL_PORT, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, VERSION, Welcome, read_frame, write_frame};

/// The agent's answer to the first frame of a connection through the machine's vsock socket.
pub(super) fn hello(socket: &Path) -> anyhow::Result<Welcome> {
    let mut stream = UnixStream::connect(socket).context("reach the machine")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("CONNECT {CONTROL_PORT}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reach the agent")?;
        answer.push(byte[0]);
        ensure!(answer.len() < 64, "the machine's answer has no end");
    }
    ensure!(
        answer.starts_with(b"OK "),
        "the machine answered {:?}",
        String::from_utf8_lossy(&answer)
    );
    let hello = Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
    };
    write_frame(&mut stream, &hello).context("greet the agent")?;
    read_frame(&mut stream, MAX_GUEST_FRAME).context("hear the agent")
}
