//! How many bytes and inodes a directory takes on its disk, as `du` counts: blocks, links once, nothing of another file system. Containers change it
//! meanwhile: what has gone is not counted, and nothing is followed out of it but by who hurts himself alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// What a directory and all in it take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Inodes, its own too.
    pub(crate) inodes: u64,
}

/// What a directory and all in it take.
pub(crate) fn of_directory(path: &Path) -> io::Result<Usage> {
    let top = fs::symlink_metadata(path)?;
    let (mut blocks, mut inodes) = (top.blocks(), 1_u64);
    let mut linked = BTreeSet::new();
    let mut directories = vec![path.to_path_buf()];
    while let Some(directory) = directories.pop() {
        // It has gone, or its path has become too long to be named.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            if meta.is_dir() {
                directories.push(path);
            } else if meta.nlink() > 1 && !linked.insert(meta.ino()) {
                continue;
            }
            blocks = blocks.saturating_add(meta.blocks());
            inodes = inodes.saturating_add(1);
        }
    }
    let bytes = blocks.saturating_mul(BLOCK);
    Ok(Usage { bytes, inodes })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_of_all_depths_are_counted_once_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let empty = of_directory(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/file"), vec![1; 300 << 10]).unwrap();
        fs::hard_link(dir.path().join("a/b/file"), dir.path().join("again")).unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        let full = of_directory(dir.path()).unwrap();
        let used = full.bytes - empty.bytes;
        assert!((300 << 10..400 << 10).contains(&used), "{used}");
        let theirs = ["itself", "a", "a/b", "the file, of two names", "out"];
        assert_eq!((empty.inodes, full.inodes), (1, theirs.len() as u64));
    }

    #[test]
    fn a_hole_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        assert!(of_directory(dir.path()).unwrap().bytes < 1 << 20);
    }
}
