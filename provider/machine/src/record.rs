//! The files of a machine's directory that outlive everybody: `machine.json` (who runs it) and `exit.json` (how it ended). The first is written whole or
//! not at all (temporary file, fsync, rename, fsync of the directory); the second by a process that can rename nothing any more: one that is
//! empty or cut short is none.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::fs::{AtFlags, Mode, OFlags};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vmm_lib::exit::MachineReport;

const MACHINE: &str = "machine.json";
const EXIT: &str = "exit.json";
const MAX_RECORD: u64 = 16 << 20;

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory or file could not be opened, read, written or renamed.
    #[error("{what} {name}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The file's name in the machine's directory.
        name: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("understand {name}")]
    Malformed {
        /// The file's name.
        name: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// 1.
    pub version: u32,
    /// When the process was told to start it, nanoseconds since 1970.
    pub started: u64,
    /// When it ended.
    pub ended: u64,
    /// What the machine itself reports.
    pub report: MachineReport,
}

/// Who runs a machine: enough to know the process again, or to know that it is another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessRecord {
    pub(crate) version: u32,
    pub(crate) pid: u32,
    /// Field 22 of /proc/pid/stat, in clock ticks since boot.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
    /// User and group of the process; none before machines had their own.
    #[serde(default)]
    pub(crate) uid: Option<u32>,
}

impl ExitRecord {
    /// The record in a machine's directory; `None` when there is none.
    pub fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        read(directory, EXIT)
    }
}

/// `exit.json`, open and empty: whoever writes it can open nothing by then.
#[derive(Debug)]
pub(crate) struct ExitFile(File);

impl ExitFile {
    pub(crate) fn create(directory: &OwnedFd) -> Result<Self, RecordError> {
        let io = |what| move |source| RecordError::Io { what, name: EXIT, source };
        let file = create(directory, EXIT).map_err(io("create"))?;
        rustix::fs::fsync(directory.as_fd()).map_err(|error| io("sync the directory of")(error.into()))?;
        Ok(Self(file))
    }

    pub(crate) fn write(mut self, record: &ExitRecord) -> Result<(), RecordError> {
        let io = |what| move |source| RecordError::Io { what, name: EXIT, source };
        let text = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Malformed { name: EXIT, source })?;
        self.0.write_all(&text).map_err(io("write"))?;
        self.0.sync_all().map_err(io("sync"))
    }
}

impl ProcessRecord {
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, RecordError> {
        read(directory, MACHINE)
    }

    pub(crate) fn write(&self, directory: &OwnedFd) -> Result<(), RecordError> {
        write(directory, MACHINE, self)
    }
}

/// Opens a machine's directory.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY,
        Mode::empty(),
    )?)
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn read<T: DeserializeOwned>(directory: &Path, name: &'static str) -> Result<Option<T>, RecordError> {
    let io = |source| RecordError::Io {
        what: "read",
        name,
        source,
    };
    let file = match File::open(directory.join(name)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_RECORD).read_to_end(&mut text).map_err(io)?;
    match serde_json::from_slice(&text) {
        // Empty while the process runs, cut short when it was killed while it wrote.
        Err(error) if error.is_eof() => Ok(None),
        record => record.map(Some).map_err(|source| RecordError::Malformed { name, source }),
    }
}

fn write<T: Serialize>(directory: &OwnedFd, name: &'static str, record: &T) -> Result<(), RecordError> {
    let io = |what| move |source: io::Error| RecordError::Io { what, name, source };
    let text = serde_json::to_vec_pretty(record).map_err(|source| RecordError::Malformed { name, source })?;
    let temporary = format!("{name}.tmp");
    let mut file = create(directory, &temporary).map_err(io("create"))?;
    file.write_all(&text).map_err(io("write"))?;
    file.sync_all().map_err(io("sync"))?;
    rustix::fs::renameat(directory, temporary.as_str(), directory, name).map_err(|error| io("rename")(error.into()))?;
    rustix::fs::fsync(directory.as_fd()).map_err(|error| io("sync the directory of")(error.into()))
}

fn create(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?))
}

/// Removes a file of the directory, if it is there.
pub(crate) fn remove(directory: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
