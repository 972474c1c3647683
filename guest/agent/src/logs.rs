//! Containers' output between their pipes and the host: kept until acknowledged, sent again after a reconnect, and no more read
//! from a pipe than [`LOG_WINDOW`] allows.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvmlet_protocol::{FrameError, LOG_WINDOW, LogAck, LogRecord, LogStream, MAX_HOST_FRAME, encode, read_frame};
use vsock::VsockStream;

use crate::attach;
use crate::lines::{LIMIT, Splitter};
use crate::reaper::now;
use crate::session::readable;

/// What a kept line costs besides its bytes.
const OVERHEAD: usize = 64;
/// Frames are written together up to this size.
const BATCH: usize = 64 << 10;
/// The kubelet takes at most this much of a log as a termination message.
const TAIL_BYTES: usize = 2048;
const TAIL_LINES: usize = 80;

static HUB: LazyLock<Mutex<Hub>> = LazyLock::new(Mutex::default);
/// Something was read, or there is another client.
static FRESH: Condvar = Condvar::new();
/// Something was acknowledged, or a pipe has ended.
static RELEASED: Condvar = Condvar::new();

#[derive(Default)]
struct Hub {
    by_container: BTreeMap<String, Output>,
    /// Counts the clients: only the newest is served.
    client: u64,
    connection: Option<VsockStream>,
}

#[derive(Default)]
struct Output {
    next: u64,
    unacknowledged: VecDeque<Line>,
    /// How many of them went to the present client.
    sent: usize,
    bytes: usize,
    open_pipes: usize,
    /// The end of the output, for a termination message.
    tail: VecDeque<u8>,
    /// Removed once all is acknowledged.
    forgotten: bool,
}

struct Line {
    sequence: u64,
    stream: LogStream,
    time: u64,
    partial: bool,
    data: Vec<u8>,
}

fn hub() -> MutexGuard<'static, Hub> {
    HUB.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wait(condition: &Condvar, hub: MutexGuard<'static, Hub>) -> MutexGuard<'static, Hub> {
    condition.wait(hub).unwrap_or_else(PoisonError::into_inner)
}

/// Reads a container's output from now on: its pipes, or its terminal.
pub(crate) fn collect(container: &str, sources: Vec<(LogStream, File)>) -> io::Result<()> {
    hub().by_container.insert(
        container.to_owned(),
        Output {
            next: 1,
            open_pipes: sources.len(),
            ..Output::default()
        },
    );
    for (stream, pipe) in sources {
        let container = container.to_owned();
        let name = if stream == LogStream::Stdout { "stdout" } else { "stderr" };
        std::thread::Builder::new()
            .name(name.into())
            .stack_size(64 << 10)
            .spawn(move || read(&container, stream, pipe))?;
    }
    Ok(())
}

fn read(container: &str, stream: LogStream, mut pipe: File) {
    let mut buffer = vec![0; LIMIT];
    let mut splitter = Splitter::default();
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let time = now();
                attach::offer(container, stream, &buffer[..length]);
                splitter.push(&buffer[..length], |data, partial| keep(container, stream, time, data, partial));
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A terminal's master does not block.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && readable(&pipe).is_ok() => {}
            // Of a terminal: its last process has left.
            Err(_) => break,
        }
    }
    let time = now();
    splitter.finish(|data, partial| keep(container, stream, time, data, partial));
    if let Some(output) = hub().by_container.get_mut(container) {
        output.open_pipes = output.open_pipes.saturating_sub(1);
    }
    RELEASED.notify_all();
}

/// Keeps a line, when there is room for it.
fn keep(container: &str, stream: LogStream, time: u64, data: Vec<u8>, partial: bool) {
    let mut hub = hub();
    loop {
        let Some(output) = hub.by_container.get_mut(container) else {
            return;
        };
        if output.bytes < LOG_WINDOW || output.forgotten {
            output.push(stream, time, data, partial);
            break;
        }
        hub = wait(&RELEASED, hub);
    }
    FRESH.notify_all();
}

impl Output {
    fn push(&mut self, stream: LogStream, time: u64, data: Vec<u8>, partial: bool) {
        self.tail.extend(&data);
        if !partial {
            self.tail.push_back(b'\n');
        }
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.bytes += data.len() + OVERHEAD;
        self.unacknowledged.push_back(Line {
            sequence: self.next,
            stream,
            time,
            partial,
            data,
        });
        self.next += 1;
    }

    fn acknowledge(&mut self, sequence: u64) {
        while self.unacknowledged.front().is_some_and(|line| line.sequence <= sequence) {
            if let Some(line) = self.unacknowledged.pop_front() {
                self.bytes -= line.data.len() + OVERHEAD;
                self.sent = self.sent.saturating_sub(1);
            }
        }
    }

    /// The frames of what was not sent yet, as far as they fit into one write.
    fn next_frames(&mut self, container: &str, frames: &mut Vec<u8>) {
        while frames.len() < BATCH
            && let Some(line) = self.unacknowledged.get(self.sent)
        {
            frames.extend(encode(&LogRecord {
                container: container.to_owned(),
                sequence: line.sequence,
                stream: line.stream,
                time: line.time,
                partial: line.partial,
                data: line.data.clone(),
            }));
            self.sent += 1;
        }
    }

    fn done(&self) -> bool {
        self.open_pipes == 0 && self.unacknowledged.is_empty()
    }
}

/// Waits until a container's pipes have ended and all of its output is acknowledged, at most for `limit`.
pub(crate) fn drain(container: &str, limit: Duration) {
    let deadline = Instant::now() + limit;
    let mut hub = hub();
    while hub.by_container.get(container).is_some_and(|output| !output.done()) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        hub = RELEASED.wait_timeout(hub, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The end of a container's output: at most 2,048 bytes and 80 lines.
pub(crate) fn tail(container: &str) -> String {
    let tail: Vec<u8> = hub()
        .by_container
        .get(container)
        .map(|o| o.tail.iter().copied().collect())
        .unwrap_or_default();
    last_lines(&tail)
}

fn last_lines(tail: &[u8]) -> String {
    let text = String::from_utf8_lossy(tail);
    let starts = text
        .trim_end_matches('\n')
        .rmatch_indices('\n')
        .nth(TAIL_LINES - 1)
        .map_or(0, |(at, _)| at + 1);
    text[starts..].to_owned()
}

/// Forgets a container's output, once it is acknowledged.
pub(crate) fn forget(container: &str) {
    let mut hub = hub();
    if let Some(output) = hub.by_container.get_mut(container) {
        output.forgotten = true;
    }
    hub.by_container
        .retain(|_, output| !(output.forgotten && output.unacknowledged.is_empty()));
    RELEASED.notify_all();
}

/// Serves one client, instead of the one before, until its connection ends.
pub(crate) fn serve(connection: VsockStream) -> io::Result<()> {
    let mut from = connection.try_clone()?;
    let me = {
        let mut hub = hub();
        if let Some(before) = hub.connection.replace(connection.try_clone()?) {
            drop(before.shutdown(std::net::Shutdown::Both));
        }
        hub.client += 1;
        hub.by_container.values_mut().for_each(|output| output.sent = 0);
        hub.client
    };
    FRESH.notify_all();
    let sender = std::thread::Builder::new()
        .name("log sender".into())
        .stack_size(64 << 10)
        .spawn(move || send(connection, me))?;
    let result = loop {
        match read_frame::<LogAck>(&mut from, MAX_HOST_FRAME) {
            Ok(ack) => acknowledge(&ack),
            Err(FrameError::Closed) => break Ok(()),
            Err(e) => break Err(io::Error::other(e)),
        }
    };
    drop(from.shutdown(std::net::Shutdown::Both));
    {
        let mut hub = hub();
        if hub.client == me {
            hub.client += 1;
            hub.connection = None;
        }
    }
    FRESH.notify_all();
    drop(sender.join());
    result
}

fn acknowledge(ack: &LogAck) {
    let mut hub = hub();
    if let Some(output) = hub.by_container.get_mut(&ack.container) {
        output.acknowledge(ack.sequence);
        if output.forgotten && output.unacknowledged.is_empty() {
            hub.by_container.remove(&ack.container);
        }
    }
    RELEASED.notify_all();
}

fn send(mut connection: VsockStream, me: u64) {
    let mut frames = Vec::new();
    loop {
        {
            let mut hub = hub();
            while frames.is_empty() {
                if hub.client != me {
                    return;
                }
                for (container, output) in &mut hub.by_container {
                    output.next_frames(container, &mut frames);
                }
                if frames.is_empty() {
                    hub = wait(&FRESH, hub);
                }
            }
        }
        if connection.write_all(&frames).is_err() {
            // The reader notices too and ends the service.
            drop(connection.shutdown(std::net::Shutdown::Both));
            return;
        }
        frames.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(lines: &[&str]) -> Output {
        let mut output = Output {
            next: 1,
            ..Output::default()
        };
        for line in lines {
            output.push(LogStream::Stdout, 7, line.as_bytes().to_vec(), false);
        }
        output
    }

    fn sequences(output: &mut Output) -> Vec<u64> {
        let mut frames = Vec::new();
        output.next_frames("c", &mut frames);
        let mut from = frames.as_slice();
        std::iter::from_fn(|| read_frame::<LogRecord>(&mut from, 1 << 20).ok().map(|r| r.sequence)).collect()
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again_to_the_next_client() {
        let mut output = output(&["a", "b", "c"]);
        assert_eq!(sequences(&mut output), [1, 2, 3]);
        assert!(sequences(&mut output).is_empty());
        output.acknowledge(2);
        output.sent = 0;
        assert_eq!(sequences(&mut output), [3]);
        output.acknowledge(3);
        assert!(output.done() && output.bytes == 0);
    }

    #[test]
    fn acknowledgements_of_what_was_never_sent_do_no_harm() {
        let mut output = output(&["a"]);
        output.acknowledge(u64::MAX);
        output.acknowledge(0);
        assert_eq!((output.sent, output.bytes), (0, 0));
        output.push(LogStream::Stderr, 8, vec![], false);
        assert_eq!(sequences(&mut output), [2]);
    }

    #[test]
    fn the_tail_keeps_the_last_bytes_and_lines() {
        assert_eq!(last_lines(b"a\nb\n"), "a\nb\n");
        let many: String = (0..100).map(|i| format!("{i}\n")).collect();
        let kept = last_lines(many.as_bytes());
        assert_eq!((kept.lines().count(), kept.lines().next()), (80, Some("20")));
        let mut output = output(&[]);
        output.push(LogStream::Stdout, 0, vec![b'x'; 5000], false);
        assert_eq!(output.tail.len(), TAIL_BYTES);
    }
}
