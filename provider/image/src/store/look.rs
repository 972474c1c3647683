//! A store seen from outside, while another process may have it open: takes no lock, mends nothing.

use std::{collections::HashMap, fs, io, os::unix::fs::MetadataExt, path::Path};

use super::records::ImageRecord;

/// What a store has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stored {
    /// Images.
    pub images: usize,
    /// Bytes of their files, what several of them share once.
    pub bytes: u64,
}

/// Counts the images of the store in `dir`; none where there is no store. One that goes meanwhile is left out.
///
/// # Errors
/// When the directory cannot be read.
pub fn look(dir: &Path) -> io::Result<Stored> {
    let entries = match fs::read_dir(dir.join("images")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Stored::default()),
        entries => entries?,
    };
    let (mut images, mut metadata, mut layers) = (0, 0, HashMap::new());
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let record = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<ImageRecord>(&bytes).ok());
        let Some(record) = record else { continue };
        images += 1;
        metadata += record.meta_len;
        layers.extend(record.layers.into_iter().map(|layer| (layer.diff_id, layer.data_len)));
    }
    let bytes = metadata + layers.into_values().sum::<u64>();
    Ok(Stored { images, bytes })
}

/// The process that has the store in `dir` open, if one has: its lock is looked at, not tried, since one who tries has it for a moment.
pub fn holder(dir: &Path) -> Option<u32> {
    let lock = dir.join("lock");
    let file = identity(&lock)?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    holders(&locks, file.1).find(|pid| has_open(*pid, file))
}

/// Processes with a flock(2) on a file of this number, of whichever file system (proc_locks(5)): its device is not always the one that stat(2)
/// tells.
fn holders(locks: &str, inode: u64) -> impl Iterator<Item = u32> {
    locks.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // Waiters have an arrow in place of the kind.
        let (kind, mut rest) = (fields.next()?, fields.skip(2));
        let (pid, file) = (rest.next()?, rest.next()?);
        let is_it = kind == "FLOCK" && file.rsplit(':').next()? == inode.to_string();
        is_it.then(|| pid.parse().ok()).flatten()
    })
}

fn has_open(pid: u32, file: (u64, u64)) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| identity(&entry.path()) == Some(file))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn the_lock_of_a_store_tells_whose_it_is_and_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None, "there is no store");
        let lock = File::create(dir.path().join("lock")).unwrap();
        assert_eq!(holder(dir.path()), None, "nobody has it open");
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(lock);
        assert_eq!(holder(dir.path()), None);
    }

    #[test]
    fn only_who_holds_a_lock_counts_not_who_waits_for_it_or_has_another_kind() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 fe:01:77 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 fe:01:77 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 13 fe:01:77 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 fe:01:78 0 EOF\n";
        assert_eq!(holders(locks, 77).collect::<Vec<_>>(), [12]);
    }

    #[test]
    fn what_images_share_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()).unwrap(), Stored::default());
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        for (name, own) in [("a", "x"), ("b", "y")] {
            let layer = |id: &str, bytes: u64| serde_json::json!({"diff_id": id, "data_len": bytes, "tar_len": 0});
            let record = serde_json::json!({"id": name, "config": crate::ImageConfig::default(), "meta_len": 10,
                "layers": [layer("shared", 1000), layer(own, 100)]});
            fs::write(images.join(format!("{name}.json")), record.to_string()).unwrap();
        }
        fs::write(images.join("c.json"), "half").unwrap();
        assert_eq!(look(dir.path()).unwrap(), Stored { images: 2, bytes: 1220 });
    }
}
