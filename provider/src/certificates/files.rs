//! Where certificates by request are kept: `<stateDir>/pki/kubelet-client-<time>.pem` and `kubelet-server-<time>.pem`, certificate and key in one
//! file of root's alone, and a link `…-current.pem` to the newest, as the kubelet keeps them (client-go's certificate_store.go). Unlike it, files
//! that the link has left are removed: nobody needs their keys.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::{
    pair::{Pair, PairError},
    plan::Kind,
};

/// The directory, and whose files are meant.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
    kind: Kind,
}

/// Why certificates cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file system failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is damaged.
    #[error("{path}: {source}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: PairError,
    },
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError::Io {
        what,
        path: path.into(),
        source,
    }
}

impl Directory {
    /// Those of a kind in this directory, which is made with the first one.
    pub fn new(path: PathBuf, kind: Kind) -> Self {
        Self { path, kind }
    }

    /// Where the newest is.
    pub fn current(&self) -> PathBuf {
        self.path.join(format!("{}-current.pem", self.kind.prefix()))
    }

    /// The newest; nothing if there was never one.
    pub fn read(&self) -> Result<Option<Pair>, FileError> {
        let path = self.current();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(io("read", &path))?,
        };
        let pair = Pair::new(&text, &text).map_err(|source| FileError::Damaged { path, source })?;
        Ok(Some(pair))
    }

    /// Keeps a new one in place of the old; whoever reads meanwhile has either.
    pub fn write(&self, pair: &Pair, now: Timestamp) -> Result<(), FileError> {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(io("create", &self.path))?;
        let name = format!("{}-{}.pem", self.kind.prefix(), now.strftime("%Y-%m-%d-%H-%M-%S"));
        write_privately(&self.path.join(&name), pair.file().as_bytes())?;
        let link = self.path.join(format!("{}-current.pem.new", self.kind.prefix()));
        match fs::remove_file(&link) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", &link)(error)),
            _ => {}
        }
        symlink(&name, &link).map_err(io("create", &link))?;
        fs::rename(&link, self.current()).map_err(io("rename", &link))?;
        sync(&self.path)?;
        self.remove_all_but(&name);
        Ok(())
    }

    /// What is left over stays until the next time.
    fn remove_all_but(&self, name: &str) {
        let old = |found: &str| {
            let time = found.strip_prefix(self.kind.prefix()).and_then(|rest| rest.strip_suffix(".pem"));
            found != name && time.is_some_and(|time| time.chars().all(|c| c == '-' || c.is_ascii_digit()))
        };
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(old) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn sync(directory: &Path) -> Result<(), FileError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(io("sync", directory))
}

/// Writes a file that only root may read, whole or not at all.
pub(super) fn write_privately(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A file that an earlier attempt has left may have had any mode.
    let _ = fs::remove_file(&temporary);
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&temporary);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io("rename", &temporary))?;
    path.parent().map_or(Ok(()), sync)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{
        super::{plan::Template, testing::Authority},
        *,
    };

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_is_read_again_and_older_keys_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pki");
        let directory = Directory::new(path.clone(), Kind::Client);
        assert!(directory.read().unwrap().is_none());
        let authority = Authority::new();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("kubelet-client-mine.pem"), "").unwrap();
        for (begins, time) in [(1, "2026-11-22T10:00:00Z"), (2, "2026-11-22T11:00:00Z")] {
            let pair = authority.pair(&Template::client("n"), begins, 100);
            // Twice: the clock may stand still.
            for _ in 0..2 {
                directory.write(&pair, time.parse().unwrap()).unwrap();
            }
            let read = directory.read().unwrap().unwrap();
            assert_eq!((read.facts, read.key), (pair.facts, pair.key));
        }
        assert_eq!(
            names(&path),
            [
                "kubelet-client-2026-11-22-11-00-00.pem",
                "kubelet-client-current.pem",
                "kubelet-client-mine.pem"
            ]
        );
    }

    #[test]
    fn keys_are_roots_alone_and_the_kinds_do_not_mix() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pki");
        let authority = Authority::new();
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let directories = [Kind::Client, Kind::Serving].map(|kind| Directory::new(path.clone(), kind));
        for (number, directory) in (1..).zip(&directories) {
            fs::create_dir_all(&path).unwrap();
            fs::write(
                path.join(format!("{}-2026-11-22-10-00-00.pem.new", directory.kind.prefix())),
                "left",
            )
            .unwrap();
            directory.write(&authority.pair(&Template::client("n"), number, 100), now).unwrap();
        }
        for (number, directory) in (1..).zip(&directories) {
            assert_eq!(directory.read().unwrap().unwrap().facts.begins.as_second(), number);
            let mode = fs::metadata(directory.current()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(names(&path).len(), 4);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new(root.path().into(), Kind::Serving);
        fs::write(directory.current(), "nonsense").unwrap();
        let error = directory.read().unwrap_err().to_string();
        assert!(error.contains("kubelet-server-current.pem: there is no certificate"), "{error}");
    }
}
