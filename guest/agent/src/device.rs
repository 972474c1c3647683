//! Disks by their virtio serial, memory devices by their place on the PCI bus; the scratch disk and the images on them, mounted once each.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kvmlet_protocol::{ErrorKind, Failure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

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

/// Mounts the scratch disk and grows its file system to the size of the disk. What is deleted is given back to the host at once (`discard`):
/// a timer that trims would leave it the host's loss until then, and wake guests that do nothing.
pub(crate) fn mount_scratch(serial: &str) -> Result<(), Failure> {
    let name = wait(serial)?;
    fs::create_dir_all(SCRATCH).attempt("create the scratch disk's directory")?;
    mount(
        format!("/dev/{name}"),
        SCRATCH,
        "ext4",
        MountFlags::NOATIME | MountFlags::NODEV,
        Some(c"discard"),
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

/// What a virtio-pmem function says it is: the vendor's, and 0x1040 plus the device type 27.
const PMEM_FUNCTION: (&str, &str) = ("0x1af4", "0x105b");

/// The kernel's name (`pmem0`) of the device of this number among those of the PCI functions of virtio-pmem. Its memory is read-only to
/// this machine: a write to it would end the machine, so the kernel is told first.
fn find_pmem(number: usize) -> Option<String> {
    let says = |function: &Path, what: &str, value: &str| fs::read_to_string(function.join(what)).is_ok_and(|text| text.trim() == value);
    let mut functions: Vec<PathBuf> = fs::read_dir("/sys/bus/pci/devices")
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    functions.retain(|function| says(function, "vendor", PMEM_FUNCTION.0) && says(function, "device", PMEM_FUNCTION.1));
    functions.sort();
    let region = below(&below(&below(functions.get(number)?, "virtio")?, "ndbus")?, "region")?;
    let block = below(&below(&region, "namespace")?.join("block"), "pmem")?;
    fs::write(region.join("read_only"), "1").ok()?;
    Some(block.file_name()?.to_str()?.to_owned())
}

/// The entry of a directory whose name is this and a number (`region0`, `namespace0.0`).
fn below(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let numbered = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let mut entries = fs::read_dir(directory).ok()?.flatten();
    let found = entries.find(|entry| entry.file_name().to_str().is_some_and(numbered))?;
    Some(found.path())
}

/// The images mounted so far, by their names.
#[derive(Debug, Default)]
pub(crate) struct Images {
    mounted: BTreeMap<String, PathBuf>,
}

impl Images {
    /// Where the image of this name is mounted; mounts it when it is asked for first. `pmems` are the names of those that are read in place.
    pub(crate) fn mount(&mut self, image: &str, pmems: &[String]) -> Result<PathBuf, Failure> {
        if let Some(path) = self.mounted.get(image) {
            return Ok(path.clone());
        }
        let (name, options) = match pmems.iter().position(|pmem| pmem == image) {
            Some(number) => (wait_for_pmem(image, number)?, Some(c"dax=always")),
            None => (wait(image)?, None),
        };
        let path = Path::new(IMAGES).join(&name);
        fs::create_dir_all(&path).attempt("create an image's directory")?;
        let flags = MountFlags::RDONLY | MountFlags::NODEV;
        mount(format!("/dev/{name}"), &path, "erofs", flags, options).attempt(format_args!("mount the image {image:?}"))?;
        self.mounted.insert(image.to_owned(), path.clone());
        Ok(path)
    }

    /// Unmounts the image on the disk of this name of the kernel's, if there is one. Containers that are of it keep it.
    pub(crate) fn release(&mut self, disk: &OsStr) -> Result<(), Failure> {
        let path = Path::new(IMAGES).join(disk);
        if self.mounted.values().any(|mounted| *mounted == path) {
            unmount(&path, UnmountFlags::empty()).attempt(format_args!("unmount {}", path.display()))?;
            self.mounted.retain(|_, mounted| *mounted != path);
        }
        Ok(())
    }
}

fn wait_for_pmem(image: &str, number: usize) -> Result<String, Failure> {
    wait_for(|| find_pmem(number).filter(|name| Path::new("/dev").join(name).exists()))
        .ok_or_else(|| fail(ErrorKind::Internal, format!("no memory device with image {image:?} appeared")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numbered_entry_is_found_and_its_like_is_not() {
        let directory = std::env::temp_dir().join(format!("kvmlet-agent-{}", std::process::id()));
        for name in ["ndctl0", "nd", "ndbus", "ndbus7"] {
            fs::create_dir_all(directory.join(name)).unwrap();
        }
        assert_eq!(below(&directory, "ndbus"), Some(directory.join("ndbus7")));
        assert_eq!(below(&directory, "region"), None);
        fs::remove_dir_all(directory).unwrap();
    }
}
