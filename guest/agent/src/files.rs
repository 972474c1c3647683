//! Finds and makes files below a directory whose content is not trusted: no link leads out of it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Links followed while missing parts are made.
const LINKS: u32 = 40;

/// What is made when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens (O_PATH) what `path` is in `root`, as if `root` were `/`.
pub(crate) fn open(root: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    // An empty path would be refused; the kernel takes `/` as the root itself.
    let path = if path.is_empty() { "/" } else { path };
    let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: something was renamed meanwhile, and the kernel cannot vouch for `..`.
        match openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), flags) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

/// Like [`open`], and makes what is missing: directories (with `mode`), and at the end a `kind`.
pub(crate) fn ensure(root: impl AsFd, path: &str, kind: Kind, mode: u32) -> io::Result<OwnedFd> {
    make(root.as_fd(), path, kind, Mode::from_raw_mode(mode), LINKS)
}

/// What the file that `path` is in `root` holds, as if `root` were `/`. Nothing but a file of at most `most` bytes is read.
pub(crate) fn read(root: &Path, path: &str, most: usize) -> io::Result<Vec<u8>> {
    let found = open(File::open(root)?, path)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// What kind of thing this is; anything but a directory counts as a file.
pub(crate) fn kind_of(fd: impl AsFd) -> io::Result<Kind> {
    Ok(if FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Directory {
        Kind::Directory
    } else {
        Kind::File
    })
}

fn make(root: BorrowedFd<'_>, path: &str, kind: Kind, mode: Mode, links: u32) -> io::Result<OwnedFd> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        result => return result.map_err(io::Error::from),
    }
    let path = path.trim_end_matches('/');
    let (parent_path, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = make(root, parent_path, Kind::Directory, mode, links)?;
    let made = match kind {
        _ if matches!(name, "" | "." | "..") => return Err(Errno::NOENT.into()),
        Kind::Directory => mkdirat(&parent, name, mode),
        Kind::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Ok(()) => Ok(open(root, path)?),
        // It is there and yet was not found: a link that leads nowhere, whose target is made instead.
        Err(Errno::EXIST) if links > 0 => {
            let target = readlinkat(&parent, name, Vec::new())?;
            let target = OsStr::from_bytes(target.to_bytes()).to_str().ok_or(Errno::ILSEQ)?;
            let target = if target.starts_with('/') {
                target.to_owned()
            } else {
                format!("{parent_path}/{target}")
            };
            make(root, &target, kind, mode, links - 1)
        }
        Err(Errno::EXIST) => Err(Errno::LOOP.into()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn missing_parts_are_made_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        ensure(&root, "/a/b/c", Kind::Directory, 0o755).unwrap();
        ensure(&root, "a/b/file", Kind::File, 0o755).unwrap();
        ensure(&root, "/a/b/c/", Kind::Directory, 0o755).unwrap();
        assert!(dir.path().join("a/b/c").is_dir() && dir.path().join("a/b/file").is_file());
        assert_eq!(kind_of(ensure(&root, "", Kind::File, 0o755).unwrap()).unwrap(), Kind::Directory);
    }

    #[test]
    fn links_are_followed_inside_the_root_only() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let inside = dir.path().join("inside");
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(inside.join("run")).unwrap();
        fs::create_dir_all(inside.join("var")).unwrap();
        symlink("/run", inside.join("var/run")).unwrap();
        symlink("../../../../outside", inside.join("climbs")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        let root = File::open(&inside).unwrap();
        ensure(&root, "/var/run/secrets/token", Kind::File, 0o755).unwrap();
        assert!(inside.join("run/secrets/token").is_file());
        ensure(&root, "/climbs/x", Kind::Directory, 0o755).unwrap();
        ensure(&root, "/absolute/y", Kind::Directory, 0o755).unwrap();
        ensure(&root, "/../../z", Kind::Directory, 0o755).unwrap();
        assert!(inside.join("outside/x").is_dir() && inside.join("z").is_dir());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn links_in_a_circle_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        symlink("self/x", dir.path().join("self")).unwrap();
        let root = File::open(dir.path()).unwrap();
        for path in ["a", "self", "self/y"] {
            assert!(ensure(&root, path, Kind::Directory, 0o755).is_err(), "{path}");
        }
    }

    #[test]
    fn a_file_below_the_root_is_read_and_nothing_beside_it() {
        const MOST: usize = 16;
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("volume"), dir.path().join("secret"));
        fs::create_dir_all(root.join("deep")).unwrap();
        fs::write(root.join("deep/env"), "A='1'").unwrap();
        fs::write(&outside, "not yours").unwrap();
        symlink("/deep/env", root.join("inside")).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink("../secret", root.join("up")).unwrap();
        for path in ["deep/env", "/deep/env", "inside"] {
            assert_eq!(read(&root, path, MOST).unwrap(), b"A='1'", "{path}");
        }
        for path in ["link", "up", "../secret", "deep", "none"] {
            assert!(read(&root, path, MOST).is_err(), "{path}");
        }
        fs::write(root.join("large"), [b'x'; MOST + 1]).unwrap();
        assert!(read(&root, "large", MOST).unwrap_err().to_string().contains("more than"));
    }
}
