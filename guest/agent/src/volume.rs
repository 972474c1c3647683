//! The pod's volumes as directories of the guest. Owns how they are made and renewed, not how containers see them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kvmlet_protocol::{DirectoryFigures, ErrorKind, Failure, MAX_FILE, SHARED_FILE, VolumeContent, VolumeKind, VolumeSpec};
use rustix::fs::{FileType, fstat};
use rustix::mount::{MountFlags, mount};

use crate::atomic;
use crate::child::files;
use crate::device::SCRATCH;
use crate::failure::{Attempt, fail};
use crate::{stats, usage};

const MEMORY: &str = "/run/kvmlet/volumes";
const SHARES: &str = "/run/kvmlet/shares";

/// A volume that is there.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    /// Where it is in the guest.
    pub(crate) path: PathBuf,
    /// Written by the host only: containers see it read-only whatever they ask for, as under the kubelet.
    pub(crate) host_only: bool,
    /// An image's files: read-only, and no program of them runs.
    pub(crate) image: bool,
    group: Option<u32>,
}

/// All volumes, by name.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    by_name: BTreeMap<String, Volume>,
    /// One writer at a time.
    writing: Mutex<()>,
}

impl Volumes {
    /// Makes every volume; the directory of each is named by its number, so a name is never a path. `mount` says where the image of a name is.
    pub(crate) fn create(specs: &[VolumeSpec], mut mount: impl FnMut(&str) -> Result<PathBuf, Failure>) -> Result<Self, Failure> {
        let mut volumes = Self::default();
        for (number, spec) in specs.iter().enumerate() {
            let volume = match &spec.kind {
                VolumeKind::Image { device } => Volume {
                    path: mount(device)?,
                    host_only: false,
                    image: true,
                    group: None,
                },
                kind => create(number, spec, kind)?,
            };
            if volumes.by_name.insert(spec.name.clone(), volume).is_some() {
                return Err(fail(ErrorKind::Conflict, format!("two volumes are called {:?}", spec.name)));
            }
        }
        Ok(volumes)
    }

    /// The volume of that name.
    pub(crate) fn get(&self, name: &str) -> Result<&Volume, Failure> {
        self.by_name
            .get(name)
            .ok_or_else(|| fail(ErrorKind::BadContainer, format!("the pod has no volume {name:?}")))
    }

    /// New content for a volume of files.
    pub(crate) fn put(&self, name: &str, content: &VolumeContent) -> Result<(), Failure> {
        let volume = self.get(name)?;
        if !volume.host_only {
            return Err(fail(ErrorKind::Conflict, format!("volume {name:?} is not one of files")));
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        atomic::write(&volume.path, content, volume.group)
    }

    /// What a file holds. What containers have put there is not trusted: no link leads out of the volume, and nothing but a file is read.
    pub(crate) fn read(&self, name: &str, path: &str) -> Result<Vec<u8>, Failure> {
        read(&self.get(name)?.path, path).wanted(format_args!("read {path:?} of volume {name:?}"))
    }

    /// What volumes take on the scratch disk; nothing where the whole disk holds no more than `above`.
    pub(crate) fn usage(&self, names: &[String], above: u64) -> Result<Vec<(String, u64)>, Failure> {
        let disk = rustix::fs::statvfs(SCRATCH).attempt("look at the scratch disk")?;
        if (disk.f_blocks - disk.f_bfree).saturating_mul(disk.f_frsize) <= above {
            return Ok(Vec::new());
        }
        let used = |name: &String| {
            let path = &self.get(name)?.path;
            let used = usage::of_directory(path).attempt(format_args!("look at volume {name:?}"))?;
            Ok((name.clone(), used.bytes))
        };
        names.iter().map(used).collect()
    }

    /// What each of these volumes holds.
    pub(crate) fn storage(&self, names: &[String]) -> Result<Vec<(String, DirectoryFigures)>, Failure> {
        let figures = |name: &String| {
            let figures = stats::directory(&self.get(name)?.path).attempt(format_args!("look at volume {name:?}"))?;
            Ok((name.clone(), figures))
        };
        names.iter().map(figures).collect()
    }
}

fn read(root: &Path, path: &str) -> io::Result<Vec<u8>> {
    let found = files::open(File::open(root)?, path)?;
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

fn create(number: usize, spec: &VolumeSpec, kind: &VolumeKind) -> Result<Volume, Failure> {
    let what = format!("create volume {:?}", spec.name);
    let parent = match kind {
        VolumeKind::Directory => Path::new(SCRATCH).join("volumes"),
        VolumeKind::Share { .. } => PathBuf::from(SHARES),
        VolumeKind::Memory { .. } | VolumeKind::Files(_) | VolumeKind::Image { .. } => PathBuf::from(MEMORY),
    };
    let mut path = parent.join(number.to_string());
    fs::create_dir_all(&path).attempt(&what)?;
    match kind {
        VolumeKind::Directory => fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).attempt(&what)?,
        VolumeKind::Memory { size: 0 } => mount_memory(&path, "mode=1777").attempt(&what)?,
        VolumeKind::Memory { size } => mount_memory(&path, &format!("mode=1777,size={size}")).attempt(&what)?,
        VolumeKind::Files(content) => {
            mount_memory(&path, "mode=1777").attempt(&what)?;
            atomic::write(&path, content, spec.group)?;
        }
        VolumeKind::Share { tag, file } => {
            mount(tag.as_str(), &path, "virtiofs", MountFlags::NODEV, None).attempt(&what)?;
            if *file {
                path.push(SHARED_FILE);
            }
        }
        // Its files are where the image is.
        VolumeKind::Image { .. } => {}
    }
    if let Some(group) = spec.group {
        hand_to_group(&path, group).attempt(&what)?;
    }
    Ok(Volume {
        path,
        host_only: matches!(kind, VolumeKind::Files(_)),
        image: false,
        group: spec.group,
    })
}

fn mount_memory(path: &Path, options: &str) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(mount("tmpfs", path, "tmpfs", MountFlags::NODEV, options.as_c_str())?)
}

/// The root of a volume with an fsGroup: the group's, writable for it, and inherited by what is made in it.
fn hand_to_group(path: &Path, group: u32) -> io::Result<()> {
    chown(path, None, Some(group))?;
    let mode = fs::metadata(path)?.mode() & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o2770))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_volume_is_read_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("volume"), dir.path().join("secret"));
        fs::create_dir_all(root.join("deep")).unwrap();
        fs::write(root.join("deep/env"), "A='1'").unwrap();
        fs::write(&outside, "not yours").unwrap();
        std::os::unix::fs::symlink("/deep/env", root.join("inside")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("up")).unwrap();
        for path in ["deep/env", "/deep/env", "inside"] {
            assert_eq!(read(&root, path).unwrap(), b"A='1'", "{path}");
        }
        for path in ["link", "up", "../secret", "deep", "none"] {
            assert!(read(&root, path).is_err(), "{path}");
        }
        fs::write(root.join("large"), vec![b'x'; MAX_FILE + 1]).unwrap();
        assert!(read(&root, "large").unwrap_err().to_string().contains("more than"));
    }
}
