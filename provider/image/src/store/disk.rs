//! The store's files: how they are named, made durable, and cleaned when their making fails.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::look::holder;
use super::with_suffix;
use crate::erofs::Encoder;
use crate::error::{OpenError, StoreError};
use crate::layer::{Converted, Expected, LayerError, LayerIndex, Limits, convert};

/// The directory of a store, locked.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    temps: AtomicU64,
    /// Held as long as it is open.
    _lock: File,
}

/// How long what a process that is gone has left behind may keep its lock.
const LEFT_TIME: Duration = Duration::from_secs(5);

/// Locks the store for this process. One that has just died in the middle of starting a program leaves a child that has its lock, too, until it is that
/// program: it is waited for. One that lives is not.
fn take(lock: &File, dir: &Path) -> Result<(), OpenError> {
    let deadline = Instant::now() + LEFT_TIME;
    while flock(lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if holder(dir).is_some() || Instant::now() > deadline {
            return Err(OpenError::InUse(dir.to_owned()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A file under `tmp/` that vanishes unless it is renamed into place.
struct Temp {
    path: PathBuf,
}

impl Drop for Temp {
    fn drop(&mut self) {
        // After a rename there is nothing left; else `open` tries again.
        let _ = fs::remove_file(&self.path);
    }
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Self, OpenError> {
        for dir in [dir.to_path_buf(), dir.join("layers"), dir.join("images")] {
            fs::create_dir_all(&dir).map_err(StoreError::on("make directory", &dir))?;
        }
        let dir = dir.canonicalize().map_err(StoreError::on("find directory", dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(StoreError::on("open", &path))?;
        take(&lock, &dir)?;
        let tmp = dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::on("empty directory", &tmp)(error).into());
            }
            _ => fs::create_dir(&tmp).map_err(StoreError::on("make directory", &tmp))?,
        }
        let disk = Self {
            dir,
            temps: AtomicU64::new(0),
            _lock: lock,
        };
        disk.sweep_orphans()?;
        Ok(disk)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn data_path(&self, diff_id: &str) -> PathBuf {
        with_suffix(self.dir.join("layers"), diff_id, "data")
    }

    pub(crate) fn index_path(&self, diff_id: &str) -> PathBuf {
        with_suffix(self.dir.join("layers"), diff_id, "index")
    }

    pub(crate) fn meta_path(&self, id: &str) -> PathBuf {
        with_suffix(self.dir.join("images"), id, "meta")
    }

    pub(crate) fn record_path(&self, id: &str) -> PathBuf {
        with_suffix(self.dir.join("images"), id, "json")
    }

    pub(crate) fn names_path(&self) -> PathBuf {
        self.dir.join("names.json")
    }

    pub(crate) fn access_path(&self) -> PathBuf {
        self.dir.join("access.json")
    }

    /// A layer's index, if the layer is here and whole.
    pub(crate) fn layer(&self, diff_id: &str) -> Option<LayerIndex> {
        let index = LayerIndex::decode(&fs::read(self.index_path(diff_id)).ok()?)?;
        let data = fs::metadata(self.data_path(diff_id)).ok()?;
        (data.len() == index.data_len).then_some(index)
    }

    /// Converts a layer and puts it into place. Whatever fails leaves nothing behind.
    pub(crate) fn convert(&self, input: impl Read + Send, expected: &Expected, limits: &Limits) -> Result<Converted, LayerError> {
        let (temp, file) = self.temp().map_err(|error| LayerError::write(error.source))?;
        let converted = convert(input, expected, limits, file)?;
        let place = || {
            self.place(&temp, &self.data_path(&converted.diff_id))?;
            self.write(&self.index_path(&converted.diff_id), &converted.index.encode())
        };
        place().map_err(|error: StoreError| {
            // A data file without its index is of no use.
            let _ = fs::remove_file(self.data_path(&converted.diff_id));
            LayerError::write(error.source)
        })?;
        Ok(converted)
    }

    /// Writes the metadata of an image and puts it into place.
    pub(crate) fn write_meta(&self, id: &str, encoder: &Encoder<'_>, uuid: [u8; 16]) -> Result<(), StoreError> {
        let (temp, file) = self.temp()?;
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        encoder.write(uuid, &mut out).map_err(StoreError::on("write", &temp.path))?;
        drop(out);
        file.set_len(encoder.meta_len()).map_err(StoreError::on("write", &temp.path))?;
        file.sync_all().map_err(StoreError::on("write", &temp.path))?;
        self.place(&temp, &self.meta_path(id))
    }

    /// Writes a small file whole or not at all.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let (temp, mut file) = self.temp()?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(StoreError::on("write", path))?;
        self.place(&temp, path)
    }

    /// Unlinks a file and tells how much disk it took.
    pub(crate) fn remove(&self, path: &Path) -> Result<u64, StoreError> {
        use std::os::unix::fs::MetadataExt;
        let freed = fs::metadata(path).map_or(0, |data| data.blocks() * 512);
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::on("remove", path)(error)),
            _ => Ok(freed),
        }
    }

    /// Names in a directory that end so, without that ending.
    pub(crate) fn names(&self, dir: &str, suffix: &str) -> Result<Vec<String>, StoreError> {
        let dir = self.dir.join(dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(StoreError::on("list", &dir))? {
            let name = entry.map_err(StoreError::on("list", &dir))?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(suffix)).map(str::to_owned));
        }
        Ok(names)
    }

    fn temp(&self) -> Result<(Temp, File), StoreError> {
        let path = self.dir.join("tmp").join(self.temps.fetch_add(1, Ordering::Relaxed).to_string());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(StoreError::on("make", &path))?;
        Ok((Temp { path }, file))
    }

    fn place(&self, temp: &Temp, path: &Path) -> Result<(), StoreError> {
        let dir = path.parent().expect("every file of the store is in a directory");
        fs::rename(&temp.path, path).map_err(StoreError::on("rename", path))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::on("sync", dir))
    }

    /// Removes data without an index and metadata without a record: their makers died in between.
    fn sweep_orphans(&self) -> Result<(), StoreError> {
        for (dir, made_first, made_last) in [("layers", "data", "index"), ("images", "meta", "json")] {
            for name in self.names(dir, &format!(".{made_first}"))? {
                let dir = self.dir.join(dir);
                if !dir.join(format!("{name}.{made_last}")).exists() {
                    self.remove(&dir.join(format!("{name}.{made_first}")))?;
                }
            }
        }
        Ok(())
    }
}
