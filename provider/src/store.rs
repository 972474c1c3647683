//! Per-pod records under `<stateDir>/pods/<uid>/`, written whole before the act they describe: `state.json` (temporary file, fsync, rename, fsync of the
//! directory) where it says something that a crash of the host must not take, else `state.late.json`, which the daemon finds again when it alone ends,
//! and of which nothing is lost with the host but what went with the machine. Of two the one with the higher revision counts.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};

use crate::{
    state::{PodState, STATE_VERSION},
    volumes::Delivered,
};

/// The record that outlasts the host.
const STATE: &str = "state.json";
/// One that was written since and need not.
const LATE: &str = "state.late.json";
/// What was delivered to a pod's volumes.
const DELIVERED: &str = "volumes.json";

/// The directory of all pods' records.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

/// What is kept of a pod: the object as last seen, so that it can be wound down without the API server, and its state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// The object.
    pub pod: Arc<Pod>,
    /// The state.
    pub state: PodState,
    /// Counts the records of this pod.
    #[serde(default)]
    pub revision: u64,
}

/// What a pod's record says.
pub struct Written {
    /// The object, with whichever status.
    pub pod: Arc<Pod>,
    /// The status that the record gives it.
    pub status: Arc<PodStatus>,
    /// The state as it is written.
    pub state: Vec<u8>,
}

impl Written {
    /// Whether the record says this already. Of the object its version does not count, which each status that is reported changes.
    pub fn says(&mut self, pod: &Arc<Pod>, status: &Arc<PodStatus>, state: &[u8]) -> bool {
        let metadata = |pod: &Pod| ObjectMeta {
            resource_version: None,
            ..pod.metadata.clone()
        };
        let same = || self.pod.spec == pod.spec && metadata(&self.pod) == metadata(pod);
        let says = self.state == state && self.status == *status && (Arc::ptr_eq(&self.pod, pod) || same());
        if says {
            // The older one is held by nobody else.
            self.pod = pod.clone();
        }
        says
    }
}

/// A pod's UID with its record, or why that cannot be used.
pub type Loaded = (String, Result<Record, StoreError>);

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("{what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The record is damaged or of an unknown version.
    #[error("read {path}: {message}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Store {
    /// Opens the directory, creating it for root alone: records hold no secrets, but machines' sockets are beside them.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = state_dir.join("pods");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(|source| StoreError::Io {
                what: "create",
                path: dir.clone(),
                source,
            })?;
        Ok(Self(dir))
    }

    /// The directory of a node that may serve it right now: to be looked at, not to be changed.
    ///
    /// # Errors
    /// When there is none, or it cannot be listed.
    pub fn look(state_dir: &Path) -> Result<Self, StoreError> {
        let store = Self(state_dir.join("pods"));
        store.entries().map(drop)?;
        Ok(store)
    }

    /// The directory of one pod.
    pub fn dir(&self, uid: &str) -> PathBuf {
        self.0.join(uid)
    }

    /// Where one pod's machine keeps its files.
    pub fn machine_dir(&self, uid: &str) -> PathBuf {
        self.dir(uid).join("machine")
    }

    /// Where the machines of all pods keep their files, as far as they have any.
    pub fn machine_dirs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let names = self.entries()?.map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(names.map(|uid| self.machine_dir(&uid)).collect())
    }

    fn entries(&self) -> Result<impl Iterator<Item = fs::DirEntry>, StoreError> {
        let entries = fs::read_dir(&self.0).map_err(|source| StoreError::Io {
            what: "list",
            path: self.0.clone(),
            source,
        })?;
        Ok(entries.flatten())
    }

    /// Writes a record, so that it outlasts the host if it `lasts`, else the daemon alone.
    pub fn save(&self, uid: &str, record: &Record, lasts: bool) -> Result<(), StoreError> {
        let dir = self.dir(uid);
        let bytes = serde_json::to_vec(record).expect("plain data becomes JSON");
        if lasts {
            write_atomically(&dir, STATE, &bytes)
        } else {
            write_whole(&dir, LATE, &bytes)
        }
    }

    /// Writes what was delivered to a pod's volumes; it holds nothing of their content. Whole, but not synced: a host that crashes loses the
    /// machine that it is about.
    pub fn save_delivered(&self, uid: &str, delivered: &Delivered) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(delivered).expect("plain data becomes JSON");
        write_whole(&self.dir(uid), DELIVERED, &bytes)
    }

    /// What was delivered to a pod's volumes, if that is known.
    pub fn delivered(&self, uid: &str) -> Option<Delivered> {
        let bytes = fs::read(self.dir(uid).join(DELIVERED)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// One pod's record.
    ///
    /// # Errors
    /// When it is missing, damaged or of another version.
    pub fn read(&self, uid: &str) -> Result<Record, StoreError> {
        let lasting = self.read_one(uid, STATE);
        // What the host lost is no error: it says no more than the other one.
        match (lasting, self.read_one(uid, LATE)) {
            (Ok(lasting), Ok(late)) if late.revision > lasting.revision => Ok(late),
            (Err(StoreError::Io { source, .. }), Ok(late)) if source.kind() == io::ErrorKind::NotFound => Ok(late),
            (lasting, _) => lasting,
        }
    }

    fn read_one(&self, uid: &str, name: &str) -> Result<Record, StoreError> {
        let path = self.dir(uid).join(name);
        let damaged = |message| StoreError::Damaged {
            path: path.clone(),
            message,
        };
        let bytes = fs::read(&path).map_err(|source| StoreError::Io {
            what: "read",
            path: path.clone(),
            source,
        })?;
        let record: Record = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if record.state.version == STATE_VERSION {
            Ok(record)
        } else {
            Err(damaged(format!("version {} is not known", record.state.version)))
        }
    }

    /// Reads all records, by UID; a directory whose record is missing or damaged comes with the error, so that it can be swept.
    pub fn load(&self) -> Result<Vec<Loaded>, StoreError> {
        let mut records = Vec::new();
        for entry in self.entries()? {
            let uid = entry.file_name().to_string_lossy().into_owned();
            let record = self.read(&uid);
            records.push((uid, record));
        }
        Ok(records)
    }

    /// Removes everything of a pod.
    pub fn remove(&self, uid: &str) -> Result<(), StoreError> {
        let dir = self.dir(uid);
        match fs::remove_dir_all(&dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io {
                what: "remove",
                path: dir,
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// Writes `dir/name` so that whoever reads it sees the old or the new content; a crash of the host may leave neither.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (temporary, path) = (dir.join(format!("{name}.new")), dir.join(name));
    let io = |what| {
        let path = path.clone();
        move |source| StoreError::Io { what, path, source }
    };
    fs::create_dir_all(dir).map_err(io("make the directory of"))?;
    fs::write(&temporary, bytes).map_err(io("write"))?;
    fs::rename(&temporary, &path).map_err(io("rename"))
}

/// Writes `dir/name` so that a crash leaves the old or the new content.
pub fn write_atomically(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { what, path, source }
    };
    fs::create_dir_all(dir).map_err(io("create", dir))?;
    let temporary = dir.join(format!("{name}.new"));
    let target = dir.join(name);
    let mut file = File::create(&temporary).map_err(io("create", &temporary))?;
    file.write_all(bytes).map_err(io("write", &temporary))?;
    file.sync_all().map_err(io("sync", &temporary))?;
    fs::rename(&temporary, &target).map_err(io("rename", &temporary))?;
    File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync", dir))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::desired::DesiredPod;

    #[test]
    fn of_two_records_the_later_one_counts_and_what_the_host_lost_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let pod = pod("1", "l", "Pending");
        let state = PodState::new(&DesiredPod::read(pod.clone()).0, None, jiff::Timestamp::UNIX_EPOCH);
        let save = |revision, lasts| {
            let (pod, state) = (pod.clone(), state.clone());
            store.save("u", &Record { pod, state, revision }, lasts).unwrap();
        };
        let found = || store.read("u").unwrap().revision;
        save(1, false);
        assert_eq!(found(), 1, "one that never had to outlast the host");
        save(2, true);
        assert_eq!(found(), 2);
        save(3, false);
        assert_eq!(found(), 3);
        fs::write(store.dir("u").join(LATE), "").unwrap();
        assert_eq!(found(), 2, "a host that crashed may have left it empty");
        fs::write(store.dir("u").join(STATE), "{").unwrap();
        save(4, false);
        assert!(store.read("u").is_err(), "but what was to outlast the host did not");
    }

    fn pod(version: &str, label: &str, phase: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": "p", "resourceVersion": version, "labels": {"l": label}}, "spec": {"containers": []},
            "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_status_on_its_way_back_is_nothing_to_write() {
        let status = |phase: &str| {
            Arc::new(PodStatus {
                phase: Some(phase.into()),
                ..PodStatus::default()
            })
        };
        let (pending, running) = (status("Pending"), status("Running"));
        let mut written = Written {
            pod: pod("1", "a", "Pending"),
            status: running.clone(),
            state: b"state".to_vec(),
        };
        let back = pod("2", "a", "Running");
        assert!(written.says(&back, &running, b"state"));
        assert!(Arc::ptr_eq(&written.pod, &back), "the older object is let go");
        assert!(!written.says(&back, &pending, b"state"), "another status");
        assert!(!written.says(&back, &running, b"other"), "another state");
        assert!(!written.says(&pod("3", "b", "Running"), &running, b"state"), "another label");
    }
}
