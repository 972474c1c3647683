//! Scratch disks: ext4 in a sparse file or a qcow2 image, copied from a template of the same size, so that making one costs a few kilobytes of writes.

mod qcow2;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use vmm_lib::spec::DiskFormat;

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

/// The template of disks of `size` bytes in this format, kept in `templates`, made if there is none yet: by one at a time.
pub fn template(templates: &Path, size: u64, as_a: DiskFormat) -> Result<PathBuf, ScratchError> {
    let raw = templates.join(format!("scratch-{size}.ext4"));
    if !raw.exists() {
        format(templates, &raw, size)?;
    }
    if as_a == DiskFormat::Raw {
        return Ok(raw);
    }
    let image = raw.with_extension("qcow2");
    if !image.exists() {
        convert(&raw, &image, size)?;
    }
    Ok(image)
}

/// The most bytes that the file of such a disk may have.
pub fn most(size: u64, as_a: DiskFormat) -> u64 {
    match as_a {
        DiskFormat::Raw => size,
        DiskFormat::Qcow2 => qcow2::most(size),
    }
}

fn convert(raw: &Path, template: &Path, size: u64) -> Result<(), ScratchError> {
    let from = File::open(raw).map_err(on("open", raw))?;
    let temporary = template.with_extension("new");
    let to = create(&temporary)?;
    qcow2::make(&from, size, &to).map_err(on("write", &temporary))?;
    to.sync_all().map_err(on("sync", &temporary))?;
    fs::rename(&temporary, template).map_err(on("rename", &temporary))
}

fn create(path: &Path) -> Result<File, ScratchError> {
    let mut how = OpenOptions::new();
    how.write(true).create(true).truncate(true).mode(0o600);
    how.open(path).map_err(on("create", path))
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
    let file = create(&temporary)?;
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

/// Where a file has something: beginnings and ends.
fn runs(file: &File) -> io::Result<Vec<(u64, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(runs),
            Err(error) => return Err(error.into()),
        };
        at = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start))?;
        runs.push((start, at));
    }
}

/// Makes a disk as its template is: only what is not a hole is copied.
pub fn copy(from: &Path, to: &Path) -> Result<(), ScratchError> {
    let source = File::open(from).map_err(on("open", from))?;
    let target = create(to)?;
    let length = source.metadata().map_err(on("look at", from))?.len();
    target.set_len(length).map_err(on("size", to))?;
    let mut buffer = vec![0; 64 << 10];
    for (mut at, end) in runs(&source).map_err(on("search", from))? {
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
    Ok(())
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
            copy(&template(dir.path(), 256 << 20, DiskFormat::Raw).unwrap(), &disk).unwrap();
            let meta = fs::metadata(&disk).unwrap();
            assert_eq!(meta.size(), 256 << 20);
            assert!(meta.blocks() * 512 < 8 << 20, "{} bytes are allocated", meta.blocks() * 512);
            let mut magic = [0; 2];
            File::open(&disk).unwrap().read_exact_at(&mut magic, 1024 + 56).unwrap();
            assert_eq!(magic, [0x53, 0xef]);
        }
    }

    #[test]
    fn a_scratch_disk_may_be_an_image_as_small_as_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        for _ in 0..2 {
            copy(&template(dir.path(), 4 << 30, DiskFormat::Qcow2).unwrap(), &disk).unwrap();
            let mut magic = [0; 4];
            File::open(&disk).unwrap().read_exact_at(&mut magic, 0).unwrap();
            let length = fs::metadata(&disk).unwrap().size();
            assert!(magic == *b"QFI\xfb" && length < 16 << 20, "{magic:?}, {length} bytes");
        }
        assert!(most(4 << 30, DiskFormat::Qcow2) > 4 << 30 && most(4 << 30, DiskFormat::Raw) == 4 << 30);
    }
}
