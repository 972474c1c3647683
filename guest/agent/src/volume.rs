//! The pod's volumes as directories of the guest. Owns how they are made and renewed, not how containers see them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kvmlet_protocol::{DirectoryFigures, ErrorKind, Failure, MAX_FILE, SHARED_FILE, VolumeContent, VolumeKind, VolumeSpec};
use rustix::mount::{MountFlags, mount};

use crate::atomic;
use crate::device::SCRATCH;
use crate::failure::{Attempt, fail};
use crate::{files, stats, usage};

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
        files::read(&self.get(name)?.path, path, MAX_FILE).wanted(format_args!("read {path:?} of volume {name:?}"))
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
