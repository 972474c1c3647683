//! Block devices by their virtio serial; the scratch disk and the images on them, mounted once each.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvmlet_protocol::{ErrorKind, Failure};
use rustix::mount::{MountFlags, mount};

use crate::failure::{Attempt, fail};
use crate::sys;

/// Where the scratch disk is mounted.
pub(crate) const SCRATCH: &str = "/run/kvmlet/scratch";
const IMAGES: &str = "/run/kvmlet/images";
/// How long a device may take to appear.
pub(crate) const APPEARS: Duration = Duration::from_secs(5);

/// Calls `look` until it finds something, for at most [`APPEARS`].
pub(crate) fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + APPEARS;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The kernel's name (`vda`) of the device with this serial.
fn find(serial: &str) -> Option<String> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let name = entry.file_name().into_string().ok()?;
        if name.starts_with("vd")
            && fs::read_to_string(entry.path().join("serial")).is_ok_and(|s| s.trim_end_matches(['\0', '\n']) == serial)
        {
            return Some(name);
        }
    }
    None
}

fn wait(serial: &str) -> Result<String, Failure> {
    wait_for(|| find(serial).filter(|name| Path::new("/dev").join(name).exists()))
        .ok_or_else(|| fail(ErrorKind::Internal, format!("no disk with serial {serial:?} appeared")))
}

/// Mounts the scratch disk and grows its file system to the size of the disk.
pub(crate) fn mount_scratch(serial: &str) -> Result<(), Failure> {
    let name = wait(serial)?;
    fs::create_dir_all(SCRATCH).attempt("create the scratch disk's directory")?;
    mount(
        format!("/dev/{name}"),
        SCRATCH,
        "ext4",
        MountFlags::NOATIME | MountFlags::NODEV,
        None,
    )
    .attempt("mount the scratch disk")?;
    grow(&name).attempt("grow the scratch disk")
}

fn grow(name: &str) -> std::io::Result<()> {
    let root = fs::File::open(SCRATCH)?;
    let sectors = fs::read_to_string(format!("/sys/block/{name}/size"))?;
    let bytes = sectors.trim().parse::<u64>().map_err(std::io::Error::other)? << 9;
    let block = rustix::fs::fstatvfs(&root)?.f_bsize.max(1024);
    sys::ext4_resize(root.as_fd(), bytes / block)
}

/// The images mounted so far, by their devices' serial.
#[derive(Debug, Default)]
pub(crate) struct Images {
    mounted: BTreeMap<String, PathBuf>,
}

impl Images {
    /// Where the image on this device is mounted; mounts it when it is asked for first.
    pub(crate) fn mount(&mut self, serial: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = self.mounted.get(serial) {
            return Ok(path.clone());
        }
        let name = wait(serial)?;
        let path = Path::new(IMAGES).join(&name);
        fs::create_dir_all(&path).attempt("create an image's directory")?;
        mount(format!("/dev/{name}"), &path, "erofs", MountFlags::RDONLY | MountFlags::NODEV, None)
            .attempt(format_args!("mount the image on {serial:?}"))?;
        self.mounted.insert(serial.to_owned(), path.clone());
        Ok(path)
    }
}
