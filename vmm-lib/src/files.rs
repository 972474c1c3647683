//! The files a specification names: opened by path, or taken from the descriptors that came with it. Disks that are read-only are opened
//! so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::spec::{Extent, FileSource, MachineSpec};

/// A file that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{field}")]
pub struct FileError {
    /// Where the specification names it.
    pub field: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Opens everything that a specification names by a path, so that it names descriptors only: for a process that will not be able to open
/// anything when it builds the machine. `passed` are the descriptors that it names already.
pub fn open_files(mut spec: MachineSpec, passed: Vec<OwnedFd>) -> Result<(MachineSpec, Vec<OwnedFd>), FileError> {
    let mut opener = Opener {
        files: Files(passed),
        opened: Vec::new(),
    };
    if let Some(restore) = &mut spec.restore {
        opener.existing("restore.state", &mut restore.state, false)?;
        opener.existing("restore.memory", &mut restore.memory, false)?;
        if let Some(set) = &mut restore.working_set {
            opener.existing("restore.workingSet", set, false)?;
        }
    } else {
        opener.existing("boot.kernel", &mut spec.boot.kernel, false)?;
        if let Some(initramfs) = &mut spec.boot.initramfs {
            opener.existing("boot.initramfs", initramfs, false)?;
        }
    }
    for (index, disk) in spec.disks.iter_mut().enumerate() {
        opener.extents(&format!("disks[{index}]"), &mut disk.extents, !disk.read_only)?;
    }
    for (index, pmem) in spec.pmems.iter_mut().enumerate() {
        opener.extents(&format!("pmems[{index}]"), &mut pmem.extents, false)?;
    }
    for (index, share) in spec.shares.iter_mut().enumerate() {
        opener.existing(&format!("shares[{index}].socket"), &mut share.socket, true)?;
    }
    for (index, net) in spec.nets.iter_mut().enumerate() {
        opener.existing(&format!("nets[{index}].tap"), &mut net.tap, true)?;
        for (number, queue) in net.more_queues.iter_mut().enumerate() {
            opener.existing(&format!("nets[{index}].moreQueues[{number}]"), queue, true)?;
        }
    }
    if let Some(vsock) = &mut spec.vsock {
        opener.take(&mut vsock.socket, |files, socket| {
            files.listen("vsock.socket", socket).map(OwnedFd::from)
        })?;
    }
    if let Some(serial) = &mut spec.serial {
        opener.take(&mut serial.output, |files, output| {
            files.open_log("serial.output", output).map(OwnedFd::from)
        })?;
    }
    if let Some(input) = spec.serial.as_mut().and_then(|serial| serial.input.as_mut()) {
        opener.unblocking("serial.input", input, false)?;
    }
    if let Some(console) = &mut spec.console {
        opener.unblocking("console.output", &mut console.output, true)?;
        if let Some(input) = &mut console.input {
            opener.unblocking("console.input", input, false)?;
        }
    }
    Ok((spec, opener.files.0))
}

/// Puts what it opens behind the descriptors that are there.
struct Opener {
    files: Files,
    /// What is open already, for writing or not: an image of many layers names some files many times.
    opened: Vec<(PathBuf, bool, u32)>,
}

impl Opener {
    fn existing(&mut self, field: &str, source: &mut FileSource, write: bool) -> Result<(), FileError> {
        let FileSource::Path(path) = source else { return Ok(()) };
        let path = path.clone();
        if let Some((.., index)) = self.opened.iter().find(|(known, writable, _)| (known, *writable) == (&path, write)) {
            *source = FileSource::Passed(*index);
            return Ok(());
        }
        let index = self.take(source, |files, source| files.open_existing(field, source, write).map(OwnedFd::from))?;
        self.opened.extend(index.map(|index| (path, write, index)));
        Ok(())
    }

    fn extents(&mut self, of: &str, extents: &mut [Extent], write: bool) -> Result<(), FileError> {
        for (number, extent) in extents.iter_mut().enumerate() {
            self.existing(&format!("{of}.extents[{number}].file"), &mut extent.file, write)?;
        }
        Ok(())
    }

    fn unblocking(&mut self, field: &str, source: &mut FileSource, write: bool) -> Result<(), FileError> {
        self.take(source, |files, source| {
            files.open_unblocking(field, source, write).map(OwnedFd::from)
        })
        .map(drop)
    }

    /// The number that a path's file got.
    fn take(
        &mut self,
        source: &mut FileSource,
        open: impl FnOnce(&Files, &FileSource) -> Result<OwnedFd, FileError>,
    ) -> Result<Option<u32>, FileError> {
        if matches!(source, FileSource::Passed(_)) {
            return Ok(None);
        }
        let file = open(&self.files, source)?;
        let index = self.files.0.len() as u32;
        self.files.0.push(file);
        *source = FileSource::Passed(index);
        Ok(Some(index))
    }
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

    /// Opens a file to be read from, or appended to, without ever waiting for it; it may be new where it is appended to.
    pub(crate) fn open_unblocking(&self, field: &str, source: &FileSource, write: bool) -> Result<File, FileError> {
        let mut options = OpenOptions::new();
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let file = self.open(
            field,
            source,
            if write {
                options.append(true).create(true)
            } else {
                options.read(true)
            },
        )?;
        match blocks(&file) {
            Ok(false) => Ok(file),
            Ok(true) => Err(io::Error::new(io::ErrorKind::InvalidInput, "can block: it is to have O_NONBLOCK")),
            Err(error) => Err(error),
        }
        .map_err(|source| FileError {
            field: field.to_owned(),
            source,
        })
    }

    /// Binds a new socket, or takes one that listens.
    pub(crate) fn listen(&self, field: &str, source: &FileSource) -> Result<UnixListener, FileError> {
        match source {
            FileSource::Path(path) => bind(path).map_err(|source| FileError {
                field: field.to_owned(),
                source,
            }),
            FileSource::Passed(_) => Ok(UnixListener::from(OwnedFd::from(self.open_existing(field, source, true)?))),
        }
    }

    fn open(&self, field: &str, source: &FileSource, options: &OpenOptions) -> Result<File, FileError> {
        let opened = match source {
            FileSource::Path(path) => options.open(path),
            FileSource::Passed(index) => match self.0.get(*index as usize) {
                Some(fd) => fd.try_clone().map(File::from),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        opened.map_err(|source| FileError {
            field: field.to_owned(),
            source,
        })
    }
}

/// Whether reading from a file, or writing to it, may wait for somebody else.
fn blocks(file: &File) -> io::Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(!flags.contains(rustix::fs::OFlags::NONBLOCK) && !file.metadata()?.is_file())
}

/// Binds a new socket; one that a dead machine has left behind makes room.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}
