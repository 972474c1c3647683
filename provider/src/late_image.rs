//! An image that a machine has not been started with, for an ephemeral container or one whose image was changed: attached as a disk while the machine
//! runs.
//!
//! The daemon opens the image's files and passes them; the machine's process opens nothing. The disk stays until another one comes and no container is of
//! it any more.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use kvmlet_image::ImageDevice;
use kvmlet_machine::Control;
use kvmlet_protocol::{DEVICES_VERSION, Request};
use tracing::debug;
use vmm_lib::{
    Attachment,
    spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MAX_SERIAL},
};

use crate::{act::chain, agent::Agent, machine::Running};

/// The disk's serial: the beginning of the image's digest, which fits.
fn serial(image: &str) -> String {
    let digest = image.rsplit(':').next().unwrap_or(image);
    let letters = digest.chars().filter(char::is_ascii_alphanumeric).take(MAX_SERIAL - 1);
    std::iter::once('i').chain(letters).collect()
}

/// The disk of an image, and the files that its extents name by their numbers.
fn disk(serial: &str, device: &ImageDevice) -> std::io::Result<(Disk, Vec<OwnedFd>)> {
    let (mut numbers, mut files) = (HashMap::<PathBuf, u32>::new(), Vec::new());
    let mut extents = Vec::with_capacity(device.extents.len());
    for extent in &device.extents {
        let number = match numbers.get(&extent.path) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(files.len()).map_err(std::io::Error::other)?;
                files.push(OwnedFd::from(File::open(&extent.path)?));
                numbers.insert(extent.path.clone(), number);
                number
            }
        };
        extents.push(Extent {
            file: FileSource::Passed(number),
            offset: extent.offset,
            length: extent.length,
        });
    }
    let disk = Disk {
        serial: serial.to_owned(),
        extents,
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    };
    Ok((disk, files))
}

/// The serial of a disk that came so, by what its machine calls it.
fn late(name: &str) -> Option<&str> {
    name.strip_prefix("block ")
        .filter(|serial| serial.len() == MAX_SERIAL && serial.starts_with('i'))
}

/// Takes disks away whose images no container is of any more, so that there are places for others. One that the guest keeps stays.
async fn take_away(running: &Running, agent: &mut Agent, needed: &[String]) {
    let needed: HashSet<String> = needed.iter().map(|image| serial(image)).collect();
    let there = running.with_control(|control| control.devices().map_err(|e| chain(&e))).await;
    for disk in there.unwrap_or_default() {
        if late(&disk.name).is_none_or(|serial| needed.contains(serial)) {
            continue;
        }
        let gone = match agent.command(&Request::Detaching { device: disk.slot }).await {
            Ok(()) => {
                let detach = move |control: &mut Control| control.detach(disk.slot, false).map_err(|e| chain(&e));
                running.with_control(detach).await
            }
            Err(error) => Err(chain(&error)),
        };
        if let Err(error) = gone {
            debug!(error, disk = disk.name, "a disk that no container needs stays");
        }
    }
}

/// Gives the machine an image that it has not, and has its guest find it; the device's name in the guest. Asked again, it is the same. `needed` are
/// the images that the pod's containers are of.
pub async fn attach(running: &Running, image: &str, device: &ImageDevice, needed: &[String]) -> Result<String, String> {
    let mut agent = Agent::connect(&running.vsock).await.map_err(|e| chain(&e))?;
    let version = agent.welcome().version;
    if version < DEVICES_VERSION {
        return Err(format!(
            "image {image} is not in the machine, and cannot be attached: its agent speaks version {version} of the protocol, and {DEVICES_VERSION} is needed"
        ));
    }
    take_away(running, &mut agent, needed).await;
    let (name, own) = (serial(image), device.clone());
    let wanted = name.clone();
    let slot = running
        .with_control(move |control| {
            let there = control.devices().map_err(|e| chain(&e))?;
            // As the machine names its disks.
            let named = format!("block {wanted}");
            if let Some(occupied) = there.into_iter().find(|occupied| occupied.name == named) {
                return Ok(occupied.slot);
            }
            let (disk, files) = disk(&wanted, &own).map_err(|e| format!("open the image: {e}"))?;
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let attached = control.attach(&Attachment::Disk(disk), &files);
            attached.map_err(|e| format!("attach the image to the machine: {}", chain(&e)))
        })
        .await?;
    let found = agent.command(&Request::Attached { device: slot }).await;
    found.map_err(|e| format!("have the guest find the image: {}", chain(&e)))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvmlet_image::Extent as Part;

    #[test]
    fn a_serial_fits_and_is_the_images_own() {
        let serial = serial("sha256:0123456789abcdef0123456789abcdef");
        assert_eq!(serial, "i0123456789abcdef012");
        assert_eq!(serial.len(), MAX_SERIAL);
        assert_eq!(late(&format!("block {serial}")), Some(serial.as_str()));
        for other in ["block img0", "block scratch", "pmem i0123456789abcdef012"] {
            assert_eq!(late(other), None, "{other} was there from the beginning");
        }
    }

    #[test]
    fn each_file_is_passed_once_and_each_extent_names_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        for path in [&one, &two] {
            std::fs::write(path, "x").unwrap();
        }
        let part = |path: &PathBuf, offset| Part {
            path: path.clone(),
            offset,
            length: 2 << 20,
        };
        let device = ImageDevice {
            extents: vec![part(&one, 0), part(&two, 0), part(&one, 2 << 20)],
            size: 6 << 20,
        };
        let (disk, files) = disk("i", &device).unwrap();
        assert_eq!(files.len(), 2);
        let numbers: Vec<_> = disk.extents.iter().map(|extent| extent.file.clone()).collect();
        assert_eq!(numbers, [FileSource::Passed(0), FileSource::Passed(1), FileSource::Passed(0)]);
        assert!(disk.read_only);
    }
}
