//! Owns what is remembered of a pod's network across a daemon's death: one file a pod, written before the act.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cni::{Attachment, ConfigList};
use crate::types::PodInterface;

/// Why a record could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Writing one.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reading one, or their directory.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read is no record.
    #[error("{path} is not a record of a pod's network")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Removing one.
    #[error("cannot remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A pod's network as far as it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// The list that ADD was begun with: DEL uses the same, whatever the configuration says by then.
    pub(crate) list: ConfigList,
    pub(crate) attachment: Attachment,
    /// The last plugin's answer, once ADD was through.
    pub(crate) result: Option<Value>,
    /// What the guest was given, once the tap was joined.
    pub(crate) interface: Option<PodInterface>,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("pods"),
        }
    }

    pub(crate) fn save(&self, uid: &str, record: &Record) -> Result<(), RecordError> {
        let path = self.path(uid);
        self.replace(uid, &path, record)
            .map_err(|source| RecordError::Write { path, source })
    }

    pub(crate) fn load(&self, uid: &str) -> Result<Option<Record>, RecordError> {
        let path = self.path(uid);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path, source }),
            Ok(bytes) => bytes,
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| RecordError::Parse { path, source })
    }

    pub(crate) fn remove(&self, uid: &str) -> Result<(), RecordError> {
        let path = self.path(uid);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| RecordError::Remove { path, source }),
        }
    }

    /// The UIDs of all records.
    pub(crate) fn uids(&self) -> Result<Vec<String>, RecordError> {
        let read = |source| RecordError::Read {
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(read)?,
        };
        let mut uids = Vec::new();
        for entry in entries {
            if let Some(uid) = entry
                .map_err(read)?
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
            {
                uids.push(uid.to_owned());
            }
        }
        Ok(uids)
    }

    fn path(&self, uid: &str) -> PathBuf {
        self.dir.join(format!("{uid}.json"))
    }

    fn replace(&self, uid: &str, path: &Path, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let temporary = self.dir.join(format!("{uid}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(&self.dir)?.sync_all()
    }
}
