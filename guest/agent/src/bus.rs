//! Devices that come to the machine's bus and go from it while it runs. Nothing tells a guest of them: the host does, through this agent, which
//! looks for what has come and lets go of what is about to go.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kvmlet_protocol::{ErrorKind, Failure};

use crate::device::{Images, wait_for};
use crate::failure::{Attempt, fail};

/// What a virtio function says its vendor is.
const VIRTIO: &str = "0x1af4";

fn function(number: u8) -> PathBuf {
    PathBuf::from(format!("/sys/bus/pci/devices/0000:00:{number:02x}.0"))
}

/// The virtio device of a function, if it has one.
fn virtio(function: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(function).ok()?;
    let found = entries
        .flatten()
        .find(|entry| entry.file_name().as_encoded_bytes().starts_with(b"virtio"))?;
    Some(found.path())
}

/// Whether a function is a virtio device's.
fn is_virtio(function: &Path) -> bool {
    fs::read_to_string(function.join("vendor")).is_ok_and(|vendor| vendor.trim() == VIRTIO)
}

/// Whether a driver is at work on a function: of virtio ones, the device's own, not the bus's.
fn is_driven(function: &Path) -> bool {
    let device = if is_virtio(function) {
        virtio(function)
    } else {
        Some(function.into())
    };
    device.is_some_and(|device| device.join("driver").exists())
}

/// Finds a device that has come; its driver is at work on it then.
pub(crate) fn attached(number: u8) -> Result<(), Failure> {
    let function = function(number);
    // Of several that came at a time the first look has found all.
    if !is_driven(&function) {
        fs::write("/sys/bus/pci/rescan", "1").attempt("look for devices that have come")?;
    }
    // A driver that refused has said why in the kernel's log.
    wait_for(|| is_driven(&function).then_some(())).ok_or_else(|| fail(ErrorKind::Internal, format!("no driver took device {number}")))
}

/// Whether a device that was found is the machine's watchdog: all others are of virtio.
pub(crate) fn is_watchdog(number: u8) -> bool {
    !is_virtio(&function(number))
}

/// Lets go of a device that is about to go. A disk that a container is of, that is mounted, or that a program has for itself, is kept.
pub(crate) fn detaching(number: u8, images: &mut Images) -> Result<(), Failure> {
    let function = function(number);
    if let Some(disk) = virtio(&function).and_then(|virtio| fs::read_dir(virtio.join("block")).ok()?.flatten().next()) {
        images.release(&disk.file_name())?;
        let path = Path::new("/dev").join(disk.file_name());
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&path);
        match opened.map(drop) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(fail(ErrorKind::Conflict, format!("{} is in use", path.display())));
            }
            opened => opened.attempt(format_args!("open {}", path.display()))?,
        }
    }
    if function.exists() {
        fs::write(function.join("remove"), "1").attempt(format_args!("let go of device {number}"))?;
    }
    Ok(())
}
