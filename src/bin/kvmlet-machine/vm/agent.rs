//! Greets kvmlet's agent in a machine run by hand, and makes a copy of a machine one of its own.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kvmlet_protocol::{CONTROL_PORT, Hello, MAX_GUEST_FRAME, OLDEST_VERSION, Request, Response, VERSION, Welcome, read_frame, write_frame};
use vmm_lib::spec::MachineSpec;

/// A connection through the machine's vsock socket, and the agent's answer to its first frame.
pub(super) fn hello(socket: &Path) -> anyhow::Result<(UnixStream, Welcome)> {
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
    let welcome = read_frame(&mut stream, MAX_GUEST_FRAME).context("hear the agent")?;
    Ok((stream, welcome))
}

/// Makes a copy of a machine one of its own.
pub(super) fn renew(stream: &mut UnixStream, spec: &MachineSpec) -> anyhow::Result<()> {
    let requests = kvmlet_provider::template::requests(spec, spec.cpus).context("read random bytes")?;
    requests.iter().try_for_each(|request| ask(stream, request))
}

/// Asks for what is answered without a word.
pub(super) fn ask(stream: &mut UnixStream, request: &Request) -> anyhow::Result<()> {
    write_frame(stream, request).context("ask the agent")?;
    match read_frame(stream, MAX_GUEST_FRAME).context("hear the agent")? {
        Response::Done => Ok(()),
        Response::Failed(failure) => Err(failure.into()),
        other => bail!("the agent answered with something else: {other:?}"),
    }
}
