//! Reads one instance's log from file to file and renders what the options ask for. Blocking; waits for nothing.
//!
//! A part is left for the next one only when the next one has content: the writer uses a fresh file only after its last
//! byte into the old one.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use super::files::{FileId, Part, parts, tail};
use super::options::{LogOptions, StreamFilter};
use super::record::{Record, Stream, push_time};

/// About how many bytes one batch has.
const BATCH: usize = 64 * 1024;
/// A line longer than this is no log record: the rest of it is skipped.
const MAX_LINE: usize = 1024 * 1024;

/// Why a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// There is more to read now.
    More,
    /// All that is there was read.
    CaughtUp,
    /// `limitBytes` were read.
    Limit,
}

/// The reading position in a log.
#[derive(Debug)]
pub(super) struct LogReader {
    directory: PathBuf,
    restart_count: u32,
    options: LogOptions,
    open: Option<OpenPart>,
    /// The newest rotated part that was read to its end.
    finished: Option<String>,
    remaining: u64,
    /// Whether the last record shown of stdout and of stderr was a partial one.
    mid_line: [bool; 2],
}

#[derive(Debug)]
struct OpenPart {
    file: File,
    id: FileId,
    /// What was read of a record whose end is still to come.
    pending: Vec<u8>,
    skipping: bool,
}

impl LogReader {
    /// Finds where to begin.
    pub(super) fn open(directory: PathBuf, restart_count: u32, options: LogOptions) -> io::Result<Self> {
        let remaining = options.limit_bytes.unwrap_or(u64::MAX);
        let mut reader = Self {
            directory,
            restart_count,
            options,
            open: None,
            finished: None,
            remaining,
            mid_line: [false; 2],
        };
        if let Some(lines) = reader.options.tail_lines {
            let all = parts(&reader.directory, restart_count)?;
            let (index, offset) = tail(&all, lines)?;
            reader.finished = index.checked_sub(1).and_then(|before| all[before].rotated.clone());
            if let Some(part) = all.get(index) {
                reader.open_part(part)?;
                if let Some(open) = &mut reader.open {
                    open.file.seek(SeekFrom::Start(offset))?;
                }
            }
        }
        Ok(reader)
    }

    /// Appends what comes next to `out`.
    pub(super) fn next_batch(&mut self, out: &mut Vec<u8>) -> io::Result<End> {
        loop {
            if self.remaining == 0 {
                return Ok(End::Limit);
            }
            if out.len() >= BATCH {
                return Ok(End::More);
            }
            if self.read_some(out)? {
                continue;
            }
            let Some(next) = self.next_part()? else { return Ok(End::CaughtUp) };
            // The next part has content, so the present one is complete: this is the last look at it.
            if self.read_some(out)? {
                continue;
            }
            self.finish(out);
            self.open_part(&next)?;
        }
    }

    /// Shows what is left of a record that will not be completed.
    pub(super) fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(mut open) = self.open.take() {
            let line = std::mem::take(&mut open.pending);
            if !open.skipping {
                self.render(&line, out);
            }
        }
    }

    /// Reads one block of the open part; false at its end.
    fn read_some(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(mut open) = self.open.take() else { return Ok(false) };
        let mut block = [0; 16 * 1024];
        let size = open.file.read(&mut block)?;
        let mut rest = &block[..size];
        while let Some(newline) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = (&rest[..newline], &rest[newline + 1..]);
            if !std::mem::take(&mut open.skipping) {
                if open.pending.is_empty() {
                    self.render(line, out);
                } else {
                    open.pending.extend_from_slice(line);
                    self.render(&open.pending, out);
                }
            }
            open.pending.clear();
            rest = after;
        }
        if open.pending.len() + rest.len() > MAX_LINE {
            open.pending.clear();
            open.skipping = true;
        }
        if !open.skipping {
            open.pending.extend_from_slice(rest);
        }
        self.open = Some(open);
        Ok(size > 0)
    }

    /// The part after the open one, if it has content.
    fn next_part(&mut self) -> io::Result<Option<Part>> {
        // A part renamed while the directory is read can be missed once.
        for _ in 0..3 {
            let all = parts(&self.directory, self.restart_count)?;
            let next = match &self.open {
                None => Some(self.first_unfinished(&all)),
                Some(open) => all.iter().position(|part| part.id == open.id).map(|index| {
                    self.finished = all[index].rotated.clone().or_else(|| self.finished.clone());
                    all.get(index + 1)
                }),
            };
            if let Some(next) = next {
                return Ok(next.filter(|part| part.size > 0).cloned());
            }
        }
        // The open part was deleted by rotation.
        let all = parts(&self.directory, self.restart_count)?;
        Ok(self.first_unfinished(&all).filter(|part| part.size > 0).cloned())
    }

    fn first_unfinished<'a>(&self, all: &'a [Part]) -> Option<&'a Part> {
        all.iter().find(|part| part.rotated.is_none() || part.rotated > self.finished)
    }

    fn open_part(&mut self, part: &Part) -> io::Result<()> {
        match File::open(&part.path) {
            Ok(file) => {
                // The path may name another file by now: what was opened counts.
                let id = FileId::of(&file.metadata()?);
                self.open = Some(OpenPart {
                    file,
                    id,
                    pending: Vec::new(),
                    skipping: false,
                });
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = Record::parse(line) else { return };
        let index = match (record.stream, self.options.stream) {
            (Stream::Stdout, StreamFilter::All | StreamFilter::Stdout) => 0,
            (Stream::Stderr, StreamFilter::All | StreamFilter::Stderr) => 1,
            _ => return,
        };
        if let Some(since) = self.options.since
            && record.timestamp().is_none_or(|time| time < since)
        {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.mid_line[index] {
            push_time(out, record.time);
            out.push(b' ');
        }
        out.extend_from_slice(record.content);
        if !record.partial {
            out.push(b'\n');
        }
        self.mid_line[index] = record.partial;
        let allowed = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        out.truncate(start.saturating_add(allowed));
        self.remaining -= (out.len() - start) as u64;
    }
}
