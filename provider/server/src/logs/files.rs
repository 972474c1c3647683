//! The files of one container instance's log: which there are, in which order, and where the last lines begin.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::record::{MAX_HEAD, head_is_partial};

/// One file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    /// What follows `<n>.log.`; none for the file that is written now.
    pub(super) rotated: Option<String>,
    pub(super) size: u64,
}

/// What stays of a file when it is renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// All parts, the oldest first. A directory that is not there has none; compressed and temporary files are left out.
pub(super) fn parts(directory: &Path, restart_count: u32) -> io::Result<Vec<Part>> {
    let current = format!("{restart_count}.log");
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(&current)) else {
            continue;
        };
        let rotated = match rest.strip_prefix('.') {
            None if rest.is_empty() => None,
            Some(suffix) if is_timestamp(suffix) => Some(suffix.to_owned()),
            _ => continue,
        };
        // Gone meanwhile: rotated, and then found under its new name at the next look.
        let Ok(metadata) = entry.path().symlink_metadata() else { continue };
        if metadata.is_file() {
            parts.push(Part {
                path: entry.path(),
                id: FileId::of(&metadata),
                rotated,
                size: metadata.len(),
            });
        }
    }
    parts.sort_by(|a, b| (a.rotated.is_none(), &a.rotated).cmp(&(b.rotated.is_none(), &b.rotated)));
    Ok(parts)
}

fn is_timestamp(suffix: &str) -> bool {
    !suffix.is_empty()
        && suffix
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"-TZ:".contains(&byte) || byte == b'.')
}

/// Where the last `lines` lines begin: the index of a part and an offset in it.
pub(super) fn tail(parts: &[Part], lines: u64) -> io::Result<(usize, u64)> {
    let mut search = TailSearch {
        wanted: lines,
        seen: 0,
        first: true,
    };
    for (index, part) in parts.iter().enumerate().rev() {
        let file = match File::open(&part.path) {
            Ok(file) => file,
            // Deleted by rotation: nothing older is left either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((index + 1, 0)),
            Err(error) => return Err(error),
        };
        if let Some(offset) = search.in_file(&file)? {
            return Ok((index, offset));
        }
    }
    Ok((0, 0))
}

/// Counts lines from the end, over several files. Records of one line count once.
struct TailSearch {
    wanted: u64,
    seen: u64,
    first: bool,
}

impl TailSearch {
    fn in_file(&mut self, file: &File) -> io::Result<Option<u64>> {
        const BLOCK: u64 = 64 * 1024;
        let size = file.metadata()?.len();
        let mut block = Vec::new();
        let mut record_end = size;
        let mut position = size;
        while position > 0 {
            let start = position.saturating_sub(BLOCK);
            block.resize(usize::try_from(position - start).unwrap_or(0), 0);
            file.read_exact_at(&mut block, start)?;
            for (index, byte) in block.iter().enumerate().rev() {
                let record_start = start + index as u64 + 1;
                // The newline at the very end belongs to the last record.
                if *byte == b'\n' && record_start < size {
                    if self.record(file, record_start)? {
                        return Ok(Some(record_end));
                    }
                    record_end = record_start;
                }
            }
            position = start;
        }
        if size > 0 && self.record(file, 0)? {
            return Ok(Some(record_end));
        }
        Ok(None)
    }

    /// Counts the record at `start`; true if the wanted lines begin after it.
    fn record(&mut self, file: &File, start: u64) -> io::Result<bool> {
        let mut head = [0; MAX_HEAD];
        let length = file.read_at(&mut head, start)?;
        let ends_a_line = self.first || !head_is_partial(&head[..length]);
        self.first = false;
        if !ends_a_line {
            return Ok(false);
        }
        if self.seen == self.wanted {
            return Ok(true);
        }
        self.seen += 1;
        Ok(false)
    }
}
