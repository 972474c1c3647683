//! The program that machine processes run.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

/// A program, opened once: a daemon whose files are replaced under it, as by an upgrade, goes on with those that it was started with.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    /// Keeps what the path leads to.
    _file: File,
}

impl Program {
    /// The one at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            // A child has the descriptor until it becomes the program.
            path: format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
            _file: file,
        })
    }

    /// Where this process and its children find it.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
