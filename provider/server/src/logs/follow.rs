//! Joins the blocking reader with the waiting: a log as a stream of bytes at the pace its client reads.

use std::io;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;

use super::options::LogOptions;
use super::reader::{End, LogReader};
use super::watch::DirectoryWatch;
use crate::backend::LogSource;

/// Batches that may wait for the client.
const QUEUE: usize = 2;

/// The bytes of a log. Dropping it ends the reading.
pub type LogBody = mpsc::Receiver<io::Result<Bytes>>;

/// Opens a log and starts to read it.
pub async fn open(source: LogSource, options: LogOptions) -> io::Result<LogBody> {
    // Before the first look at the files, so that no change falls between.
    let watch = options.follow.then(|| DirectoryWatch::new(&source.directory));
    let running = source.running;
    let directory = source.directory.clone();
    let reader = spawn_blocking(move || LogReader::open(directory, source.restart_count, options));
    let reader = reader.await.map_err(io::Error::other)??;
    let (out, body) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let pump = Pump {
            reader: Some(reader),
            out: out.clone(),
        };
        let pumped = tokio::select! {
            pumped = pump.run(watch, running, source.directory) => pumped,
            () = out.closed() => Ok(()),
        };
        if let Err(error) = pumped {
            tracing::warn!(%error, "read container log");
            // Cuts the answer off, so that the client does not take it for complete.
            let _ = out.send(Err(error)).await;
        }
    });
    Ok(body)
}

struct Pump {
    reader: Option<LogReader>,
    out: mpsc::Sender<io::Result<Bytes>>,
}

impl Pump {
    async fn run(
        mut self,
        mut watch: Option<DirectoryWatch>,
        mut running: watch::Receiver<bool>,
        directory: std::path::PathBuf,
    ) -> io::Result<()> {
        loop {
            // Asked before the files are read: what was written until the end is then seen.
            let ended = running.has_changed().is_err() || !*running.borrow_and_update();
            let last = ended || watch.is_none();
            if self.read_all(last).await? || last {
                return Ok(());
            }
            if let Some(watch) = &mut watch {
                tokio::select! {
                    () = watch.changed() => {}
                    // Changed or gone: both are looked at above.
                    _ = running.changed() => {}
                }
                if !watch.is_watching() {
                    *watch = DirectoryWatch::new(&directory);
                }
            }
        }
    }

    /// Sends all that is there; true if no more is wanted.
    async fn read_all(&mut self, last: bool) -> io::Result<bool> {
        loop {
            let mut reader = self.reader.take().ok_or_else(|| io::Error::other("log reader was lost"))?;
            let read = spawn_blocking(move || {
                let mut out = Vec::new();
                let end = reader.next_batch(&mut out)?;
                if last && end == End::CaughtUp {
                    reader.finish(&mut out);
                }
                io::Result::Ok((reader, out, end))
            });
            let (reader, out, end) = read.await.map_err(io::Error::other)??;
            self.reader = Some(reader);
            if !out.is_empty() && self.out.send(Ok(out.into())).await.is_err() {
                return Ok(true);
            }
            match end {
                End::More => {}
                End::CaughtUp => return Ok(false),
                End::Limit => return Ok(true),
            }
        }
    }
}
