//! How many bytes a directory takes on its disk, as `du` counts: blocks, links once, nothing of another file system. Containers change it
//! meanwhile: what has gone is not counted, and nothing is followed out of it but by who hurts himself alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// Bytes that a directory and all in it take.
pub(crate) fn of_directory(path: &Path) -> io::Result<u64> {
    let top = fs::symlink_metadata(path)?;
    let mut blocks = top.blocks();
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
        }
    }
    Ok(blocks.saturating_mul(BLOCK))
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
        let used = of_directory(dir.path()).unwrap() - empty;
        assert!((300 << 10..400 << 10).contains(&used), "{used}");
    }

    #[test]
    fn a_hole_takes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("sparse")).unwrap().set_len(1 << 30).unwrap();
        assert!(of_directory(dir.path()).unwrap() < 1 << 20);
    }
}
