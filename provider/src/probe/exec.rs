//! A command in a container, for its exit code. It is killed when its time is over or nobody waits for it any more.

use std::{path::Path, time::Duration};

use kvmlet_protocol::{ErrorKind, ExecOutput, ExecSpec, Request, Response};
use tokio::time::timeout;

use super::ask::{MOST, Outcome};
use crate::{
    agent::{self, Agent, AgentError},
    config::Span,
};

/// Runs it once.
pub(super) async fn run(socket: &Path, container: &str, command: &[String], limit: Duration) -> Outcome {
    // Dropping the connection kills the command.
    match timeout(limit, session(socket, container, command)).await {
        Ok(Ok((0, _))) => Outcome::Success,
        Ok(Ok((_, output))) => Outcome::Failure(String::from_utf8_lossy(&output).into_owned()),
        // The program is not there: its container is unwell. Anything else says nothing of it.
        Ok(Err(AgentError::Failed(failure))) if matches!(failure.kind, ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable) => {
            Outcome::Failure(failure.message)
        }
        Ok(Err(error)) => Outcome::Errored(format!("command error: {error}")),
        Err(_) => Outcome::Failure(format!(
            "command timed out: {:?} timed out after {}",
            command.join(" "),
            Span(limit)
        )),
    }
}

/// The exit code and the beginning of what it wrote.
async fn session(socket: &Path, container: &str, command: &[String]) -> Result<(i32, Vec<u8>), AgentError> {
    let mut agent = Agent::connect(socket).await?;
    let spec = ExecSpec {
        container: container.to_owned(),
        args: command.to_vec(),
        stdin: false,
        stdout: true,
        stderr: true,
        terminal: false,
    };
    match agent.ask(&Request::Exec(spec)).await? {
        Response::Started { .. } => {}
        _ => return Err(AgentError::Unexpected("a command")),
    }
    let mut stream = agent.into_stream();
    let mut output = Vec::new();
    loop {
        match agent::receive(&mut stream).await? {
            ExecOutput::Stdout(bytes) | ExecOutput::Stderr(bytes) => {
                let room = MOST.saturating_sub(output.len());
                output.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            ExecOutput::Exited { code } => return Ok((code, output)),
            ExecOutput::Failed { kind, message } => return Err(AgentError::Failed(kvmlet_protocol::Failure { kind, message })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmlet_protocol::{Hello, VERSION, Welcome};
    use tokio::{io::AsyncReadExt, io::AsyncWriteExt, net::UnixListener};

    /// A guest that answers one command with these frames, then closes or stays silent.
    async fn guest(frames: Vec<ExecOutput>, stays: bool) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.read_u8().await.unwrap() != b'\n' {}
            stream.write_all(b"OK 1\n").await.unwrap();
            agent::receive::<Hello>(&mut stream).await.unwrap();
            let welcome = Welcome {
                version: VERSION,
                agent: String::new(),
                kernel: String::new(),
            };
            agent::send(&mut stream, &welcome).await.unwrap();
            agent::receive::<Request>(&mut stream).await.unwrap();
            agent::send(&mut stream, &Response::Started { pid: 1 }).await.unwrap();
            for frame in frames {
                // The other end may have had enough.
                let _ = agent::send(&mut stream, &frame).await;
            }
            if stays {
                let _ = stream.read_u8().await;
            }
        });
        (dir, socket)
    }

    async fn of(frames: Vec<ExecOutput>, stays: bool) -> Outcome {
        let (_dir, socket) = guest(frames, stays).await;
        run(&socket, "id", &["sh".into(), "-c".into(), "x".into()], Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_the_output_is_what_is_told() {
        assert_eq!(of(vec![ExecOutput::Exited { code: 0 }], false).await, Outcome::Success);
        let frames = vec![
            ExecOutput::Stdout(b"out ".to_vec()),
            ExecOutput::Stderr(b"err".to_vec()),
            ExecOutput::Exited { code: 3 },
        ];
        assert_eq!(of(frames, false).await, Outcome::Failure("out err".into()));
    }

    #[tokio::test]
    async fn a_command_that_hangs_fails_at_its_timeout() {
        assert_eq!(
            of(vec![], true).await,
            Outcome::Failure("command timed out: \"sh -c x\" timed out after 1s".into())
        );
    }

    #[tokio::test]
    async fn output_without_end_costs_ten_kibibytes() {
        let mut frames = vec![ExecOutput::Stdout(vec![b'x'; 60 << 10]); 40];
        frames.push(ExecOutput::Exited { code: 1 });
        match of(frames, false).await {
            Outcome::Failure(text) => assert_eq!(text.len(), MOST),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_session_that_is_cut_says_nothing_of_the_container() {
        assert!(matches!(of(vec![], false).await, Outcome::Errored(_)));
    }
}
