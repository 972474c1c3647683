//! Connections from the host: who may connect, the handshake, and one request after the other.

use std::io;
use std::sync::Arc;

use kvmlet_protocol::{FrameError, Hello, MAX_HOST_FRAME, OLDEST_VERSION, Request, Response, VERSION, Welcome, read_frame, write_frame};
use vsock::{VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::agent::Agent;
use crate::boot::{power_off, say};
use crate::{attach, exec, forward};

/// Requests are decoded on these stacks.
const STACK: usize = 192 << 10;

/// Takes connections for ever, each on a thread of its own.
pub(crate) fn listen(
    name: &'static str,
    listener: VsockListener,
    serve: impl Fn(VsockStream) -> Result<(), FrameError> + Clone + Send + 'static,
) -> io::Result<()> {
    let accept = move || {
        loop {
            let (connection, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors or memory: some will be free again.
                    say(&format!("accept a {name} connection: {e}"));
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    continue;
                }
            };
            // A container can reach this port by the loopback; the agent obeys the host alone.
            if peer.cid() != VMADDR_CID_HOST {
                continue;
            }
            let serve = serve.clone();
            let conversation = move || match serve(connection) {
                // A host that goes in the middle of something is no news.
                Ok(()) | Err(FrameError::Closed | FrameError::Io(_)) => {}
                Err(e) => say(&format!("{name} connection: {e}")),
            };
            if let Err(e) = std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(conversation) {
                say(&format!("serve a {name} connection: {e}"));
            }
        }
    };
    std::thread::Builder::new()
        .name(format!("{name} listener"))
        .stack_size(64 << 10)
        .spawn(accept)
        .map(drop)
}

/// Agrees on a version; `None` when there is none in common.
fn agree(hello: &Hello) -> Option<u16> {
    let version = hello.newest.min(VERSION);
    (version >= OLDEST_VERSION && version >= hello.oldest).then_some(version)
}

/// Answers [`Hello`]; false when the connection must be closed.
fn handshake(connection: &mut VsockStream) -> Result<bool, FrameError> {
    let hello: Hello = read_frame(connection, MAX_HOST_FRAME)?;
    let version = agree(&hello);
    let welcome = Welcome {
        version: version.unwrap_or(0),
        agent: env!("CARGO_PKG_VERSION").into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    write_frame(connection, &welcome)?;
    Ok(version.is_some())
}

/// Serves a connection for logs.
pub(crate) fn log(mut connection: VsockStream) -> Result<(), FrameError> {
    if handshake(&mut connection)? {
        crate::logs::serve(connection).map_err(FrameError::Io)?;
    }
    Ok(())
}

/// Serves a connection for requests.
pub(crate) fn control(agent: &Arc<Agent>, mut connection: VsockStream) -> Result<(), FrameError> {
    if !handshake(&mut connection)? {
        return Ok(());
    }
    loop {
        let request = read_frame(&mut connection, MAX_HOST_FRAME)?;
        if let Err(failure) = agent.admit(&request) {
            write_frame(&mut connection, &Response::Failed(failure))?;
            continue;
        }
        let response = match request {
            Request::Exec(spec) => match exec::start(agent, &spec) {
                Ok(session) => return session.run(connection),
                Err(failure) => Response::Failed(failure),
            },
            Request::Attach(spec) => match attach::start(agent, spec, &connection) {
                Ok(session) => return session.run(connection),
                Err(failure) => Response::Failed(failure),
            },
            Request::Forward { port } => match forward::connect(port) {
                Ok(forward) => return forward.run(connection),
                Err(failure) => Response::Failed(failure),
            },
            Request::PowerOff => {
                write_frame(&mut connection, &Response::Done)?;
                power_off();
            }
            request => agent.answer(request),
        };
        write_frame(&mut connection, &response)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_speak_the_newest_version_that_both_know() {
        let hello = |oldest, newest| agree(&Hello { oldest, newest });
        assert_eq!(hello(1, 1), Some(1));
        assert_eq!(hello(1, VERSION + 1), Some(VERSION));
        assert_eq!(hello(0, OLDEST_VERSION - 1), None);
        assert_eq!(hello(VERSION + 1, VERSION + 7), None);
    }
}
