//! Users of machines: one each, out of a range that nothing else on the host uses. A machine's user is in its `machine.json` from before its
//! order on, so that a daemon that starts again knows which are taken.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::record::ProcessRecord;

/// No user is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("all {} users for machines, {} to {}, are taken", range.len(), range.start, range.end - 1)]
pub struct UidError {
    range: Range<u32>,
}

/// Who has which user; machines are known by their directories.
#[derive(Debug)]
pub struct Uids {
    range: Range<u32>,
    taken: Mutex<BTreeMap<PathBuf, u32>>,
}

impl Uids {
    /// Gives out users of `range`, but none that a machine in one of `directories` has, running or not.
    pub fn new(range: Range<u32>, directories: impl IntoIterator<Item = PathBuf>) -> Self {
        let known = directories.into_iter().filter_map(|directory| {
            // A record that cannot be read belongs to no machine that can be adopted.
            let uid = ProcessRecord::read(&directory).ok().flatten()?.uid?;
            Some((directory, uid))
        });
        let taken = Mutex::new(known.collect());
        Self { range, taken }
    }

    /// The user of the machine in `directory`, the same until it is released.
    pub fn claim(&self, directory: &Path) -> Result<u32, UidError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(uid) = taken.get(directory) {
            return Ok(*uid);
        }
        let free = self.range.clone().find(|uid| !taken.values().any(|other| other == uid));
        let uid = free.ok_or_else(|| UidError { range: self.range.clone() })?;
        taken.insert(directory.to_owned(), uid);
        Ok(uid)
    }

    /// The machine's process and directory are gone.
    pub fn release(&self, directory: &Path) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::open_directory;

    #[test]
    fn no_two_machines_share_a_user_and_a_new_daemon_knows_those_of_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let directories = ["a", "b", "c"].map(|name| root.path().join(name));
        for (directory, uid) in directories.iter().zip([Some(200_001), None]) {
            std::fs::create_dir(directory).unwrap();
            let record = ProcessRecord {
                version: 1,
                pid: 1,
                start_time: 1,
                boot_id: String::new(),
                uid,
            };
            record.write(&open_directory(directory).unwrap()).unwrap();
        }
        let uids = Uids::new(200_000..200_003, directories.clone());
        assert_eq!(uids.claim(&directories[2]), Ok(200_000));
        assert_eq!(uids.claim(&directories[1]), Ok(200_002));
        assert_eq!(uids.claim(&directories[0]), Ok(200_001));
        let error = uids.claim(&root.path().join("d")).unwrap_err();
        assert_eq!(error.to_string(), "all 3 users for machines, 200000 to 200002, are taken");
        uids.release(&directories[0]);
        assert_eq!(uids.claim(&root.path().join("d")), Ok(200_001));
    }
}
