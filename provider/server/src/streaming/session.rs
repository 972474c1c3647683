//! One remote command: copies bytes between the client's streams and the command's until the command has ended.
//!
//! Owns the order of the end: exit, then the last output, then the outcome. Refuses to buffer: one piece a direction is
//! in flight here, the rest waits where it comes from. A client that has gone drops the command's session.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::{ClientStreams, Input, Output, PeerGone, status};
use crate::backend::{ExecExit, ExecSession, StreamError, TerminalSize};

/// The size of one piece of output.
const PIECE: usize = 32 * 1024;
/// The most bytes one terminal size may take as JSON.
const MAX_RESIZE: usize = 1024;

/// Runs `session` for `client` to its end. An error means that the client went before it.
pub async fn run(client: ClientStreams, session: Result<ExecSession, StreamError>) -> Result<(), PeerGone> {
    let gone = client.gone.clone();
    tokio::select! {
        biased;
        done = run_until_told(client, session) => done,
        () = gone.cancelled() => Err(PeerGone),
    }
}

async fn run_until_told(client: ClientStreams, session: Result<ExecSession, StreamError>) -> Result<(), PeerGone> {
    let ClientStreams {
        stdin,
        stdout,
        stderr,
        resize,
        error,
        status,
        doing,
        gone: _,
    } = client;
    let outcome = match session {
        Ok(session) => copy(session, stdin, stdout, stderr, resize).await,
        Err(refusal) => Err(refusal),
    };
    if let Some(text) = status::outcome(status, doing, &outcome) {
        error.send(text).await?;
    }
    error.finish().await
}

async fn copy(
    session: ExecSession,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<Input>,
) -> Result<ExecExit, StreamError> {
    let inputs = async {
        tokio::join!(copy_input(stdin, session.stdin), copy_resize(resize, session.resize));
        std::future::pending::<Infallible>().await
    };
    let outputs = async {
        let (exit, (), ()) = tokio::join!(
            session.exit,
            copy_output(session.stdout, stdout),
            copy_output(session.stderr, stderr)
        );
        exit
    };
    // Input has no say in when a command has ended.
    tokio::select! {
        outcome = outputs => outcome,
        never = inputs => match never {},
    }
}

async fn copy_input(input: Option<Input>, command: Option<Box<dyn AsyncWrite + Send + Unpin>>) {
    let Some(mut input) = input else { return };
    let mut command = command;
    // A command that closed its input ends only this; what the client still sends is read and forgotten, so that it
    // does not stand before other streams.
    while let Some(piece) = input.recv().await {
        if let Some(writer) = &mut command
            && write_piece(writer, &piece).await.is_err()
        {
            command = None;
        }
    }
    if let Some(mut writer) = command {
        // The command may have ended meanwhile.
        let _ = writer.shutdown().await;
    }
}

async fn write_piece(writer: &mut (dyn AsyncWrite + Send + Unpin), piece: &Bytes) -> std::io::Result<()> {
    writer.write_all(piece).await?;
    writer.flush().await
}

/// Copies a command's output to the client, then ends the client's stream. A client that gave up this one stream closes
/// the command's end of it, as a closed pipe would.
async fn copy_output(command: Option<Box<dyn AsyncRead + Send + Unpin>>, client: Option<Output>) {
    if let Some(mut reader) = command {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            // A failing read ends the stream; why the command ended is told by its exit.
            if reader.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                break;
            }
            let piece = buffer.split().freeze();
            if let Some(client) = &client
                && client.send(piece).await.is_err()
            {
                return;
            }
        }
    }
    if let Some(client) = client {
        // A client that has gone altogether is noticed by the whole session.
        let _ = client.finish().await;
    }
}

async fn copy_resize(input: Option<Input>, sizes: Option<mpsc::Sender<TerminalSize>>) {
    let Some(mut input) = input else { return };
    let mut pending = Vec::new();
    while let Some(piece) = input.recv().await {
        pending.extend_from_slice(&piece);
        for size in take_sizes(&mut pending) {
            if let Some(sizes) = &sizes
                && sizes.send(size).await.is_err()
            {
                break;
            }
        }
        if pending.len() > MAX_RESIZE {
            // No terminal size is that long: what follows cannot be understood either.
            return;
        }
    }
}

/// Takes the complete sizes off the front of `pending`; what is malformed is thrown away.
fn take_sizes(pending: &mut Vec<u8>) -> Vec<TerminalSize> {
    let mut sizes = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(pending).into_iter::<TerminalSize>();
    let taken = loop {
        match stream.next() {
            Some(Ok(size)) => sizes.push(size),
            Some(Err(error)) if error.is_eof() => break stream.byte_offset(),
            Some(Err(_)) | None => break pending.len(),
        }
    };
    pending.drain(..taken);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sizes_are_taken_as_they_become_complete() {
        let mut pending = br#"{"Width":80,"Height":24}{"Width":1"#.to_vec();
        assert_eq!(take_sizes(&mut pending), [TerminalSize { width: 80, height: 24 }]);
        pending.extend_from_slice(br#"00,"Height":30}"#);
        assert_eq!(take_sizes(&mut pending), [TerminalSize { width: 100, height: 30 }]);
        assert_eq!(pending, b"");
    }

    #[test]
    fn what_is_no_terminal_size_is_thrown_away() {
        for garbage in [&b"nonsense"[..], br#"{"Width":-1,"Height":2}"#, br#"{"Width":70000,"Height":2}"#] {
            let mut pending = garbage.to_vec();
            assert_eq!(take_sizes(&mut pending), []);
            assert_eq!(pending, b"");
        }
    }
}
