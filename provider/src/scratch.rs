//! Scratch disks: ext4 in a sparse file, copied from a template of the same size, so that making one costs a few kilobytes of writes.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// mkfs.ext4 (package e2fsprogs) is missing or failed.
    #[error("make a scratch disk: mkfs.ext4: {0}")]
    Format(String),
    /// The file system failed.
    #[error("make a scratch disk: {what} {path}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes `target`, of `size` bytes. Templates are kept in `templates`.
pub fn make(templates: &Path, target: &Path, size: u64) -> Result<(), ScratchError> {
    let template = templates.join(format!("scratch-{size}.ext4"));
    if !template.exists() {
        format(templates, &template, size)?;
    }
    copy_sparse(&template, target, size)
}

fn on<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ScratchError + 'a {
    move |source| ScratchError::Io {
        what,
        path: path.into(),
        source,
    }
}

fn format(dir: &Path, template: &Path, size: u64) -> Result<(), ScratchError> {
    fs::create_dir_all(dir).map_err(on("create", dir))?;
    let temporary = template.with_extension("new");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(on("create", &temporary))?;
    file.set_len(size).map_err(on("size", &temporary))?;
    // No journal: a scratch disk does not outlive its machine. Tables are written lazily, the file stays sparse.
    let output = Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-m",
            "0",
            "-O",
            "^has_journal,^resize_inode",
            "-E",
            "lazy_itable_init=1,nodiscard,root_owner=0:0",
        ])
        .arg(&temporary)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| ScratchError::Format(format!("{e} (is e2fsprogs installed?)")))?;
    if !output.status.success() {
        return Err(ScratchError::Format(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    file.sync_all().map_err(on("sync", &temporary))?;
    fs::rename(&temporary, template).map_err(on("rename", &temporary))
}

/// Copies only what is not a hole.
fn copy_sparse(from: &Path, to: &Path, size: u64) -> Result<(), ScratchError> {
    let source = File::open(from).map_err(on("open", from))?;
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)
        .map_err(on("create", to))?;
    target.set_len(size).map_err(on("size", to))?;
    let mut at = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let start = match rustix::fs::seek(&source, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(on("search", from)(error.into())),
        };
        let end = rustix::fs::seek(&source, rustix::fs::SeekFrom::Hole(start)).map_err(|e| on("search", from)(e.into()))?;
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let got = source.read_at(&mut buffer[..want], at).map_err(on("read", from))?;
            if got == 0 {
                return Ok(());
            }
            target.write_all_at(&buffer[..got], at).map_err(on("write", to))?;
            at += got as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_scratch_disk_is_an_ext4_of_its_size_and_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        for _ in 0..2 {
            make(dir.path(), &disk, 256 << 20).unwrap();
            let meta = fs::metadata(&disk).unwrap();
            assert_eq!(meta.size(), 256 << 20);
            assert!(meta.blocks() * 512 < 8 << 20, "{} bytes are allocated", meta.blocks() * 512);
            let mut magic = [0; 2];
            File::open(&disk).unwrap().read_exact_at(&mut magic, 1024 + 56).unwrap();
            assert_eq!(magic, [0x53, 0xef]);
        }
    }
}
