//! The files a specification names: opened by path, or taken from the descriptors that came with it.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;

use crate::spec::FileSource;

/// A file that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{field}")]
pub struct FileError {
    /// Where the specification names it.
    pub field: String,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// The descriptors of a machine.
pub(crate) struct Files(Vec<OwnedFd>);

impl Files {
    /// These.
    pub(crate) fn new(passed: Vec<OwnedFd>) -> Self {
        Self(passed)
    }

    /// Opens a file that is there for reading, or for reading and writing. A passed descriptor may be named more than once.
    pub(crate) fn open_existing(&self, field: &str, source: &FileSource, write: bool) -> Result<File, FileError> {
        self.open(field, source, OpenOptions::new().read(true).write(write))
    }

    /// Opens a file to be appended to, which may be new.
    pub(crate) fn open_log(&self, field: &str, source: &FileSource) -> Result<File, FileError> {
        self.open(field, source, OpenOptions::new().append(true).create(true))
    }

    fn open(&self, field: &str, source: &FileSource, options: &OpenOptions) -> Result<File, FileError> {
        let opened = match source {
            FileSource::Path(path) => options.open(path),
            FileSource::Passed(index) => match self.0.get(*index as usize) {
                Some(fd) => fd.try_clone().map(File::from),
                None => Err(std::io::ErrorKind::NotFound.into()),
            },
        };
        opened.map_err(|source| FileError {
            field: field.to_owned(),
            source,
        })
    }
}
