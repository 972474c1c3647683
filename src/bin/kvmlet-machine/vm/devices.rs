//! `kvmlet vm attach`, `detach` and `devices`: what is on the bus of a machine that runs, through its control socket. Files are opened here, with
//! the rights of whoever asks, and passed. The guest hears of it through kvmlet's agent, or from whoever is in it.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use kvmlet_machine::Control;
use kvmlet_protocol::{DEVICES_VERSION, Request};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_lib::{
    Attachment,
    spec::{Extent, FileSource, MAX_SERIAL, Net, Pmem},
    tap,
};

use super::{
    agent, by_hand,
    by_hand::{Mistakes, Tap},
    request,
};
use crate::cli::{AttachArguments, DetachArguments, DevicesArguments};

/// For a guest to find a device, or to let go of one.
const GUEST: Duration = Duration::from_secs(30);

fn reach(socket: &Path) -> anyhow::Result<Control> {
    Control::open(socket).with_context(|| format!("reach the machine at {}", socket.display()))
}

/// The guest's name of a place.
fn address(slot: u8) -> String {
    format!("0000:00:{slot:02x}.0")
}

/// Attaches a disk, an image or a network interface.
pub(super) fn attach(arguments: &AttachArguments) -> anyhow::Result<ExitCode> {
    let (attachment, files) = match (&arguments.disk, &arguments.pmem, &arguments.tap) {
        (Some(text), ..) => disk(text, arguments.serial.as_deref())?,
        (None, Some(path), _) => pmem(path)?,
        (None, None, Some(name)) => net(name, arguments.mac.as_deref())?,
        (None, None, None) => bail!("neither --disk nor --pmem nor --tap says what to attach"),
    };
    // Without its agent nothing is attached that it should find.
    let agent = arguments.agent.as_deref().map(greet).transpose()?;
    let slot = reach(&arguments.socket)?.attach(&attachment, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    let place = address(slot);
    println!("{slot} {place}");
    match agent {
        Some(mut agent) => {
            let found = agent::ask(&mut agent, &Request::Attached { device: slot });
            found.with_context(|| format!("it is at {place}, but the guest does not drive it"))?;
        }
        None => eprintln!("in the guest it is found by: echo 1 >/sys/bus/pci/rescan"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Detaches what is in a place.
pub(super) fn detach(arguments: &DetachArguments) -> anyhow::Result<ExitCode> {
    let slot = arguments.slot;
    if let Some(agent) = &arguments.agent {
        agent::ask(&mut greet(agent)?, &Request::Detaching { device: slot })
            .with_context(|| format!("have the guest let go of {}", address(slot)))?;
    }
    let mut control = reach(&arguments.socket)?;
    let detached = control.detach(slot, arguments.force);
    let mut in_use = || {
        control
            .devices()
            .is_ok_and(|all| all.iter().any(|device| device.slot == slot && device.in_use))
    };
    match detached {
        Err(error) if arguments.agent.is_none() && in_use() => {
            let address = address(slot);
            Err(error).with_context(|| format!("first, in the guest: echo 1 >/sys/bus/pci/devices/{address}/remove"))?;
        }
        detached => detached?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Lists places that have devices.
pub(super) fn list(arguments: &DevicesArguments) -> anyhow::Result<ExitCode> {
    for device in reach(&arguments.socket)?.devices()? {
        let state = if device.in_use { "in use" } else { "idle" };
        println!("{} {} {state} {}", device.slot, address(device.slot), device.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// A connection to an agent that knows of devices.
fn greet(socket: &Path) -> anyhow::Result<UnixStream> {
    let (stream, welcome) = agent::hello(socket)?;
    ensure!(
        welcome.version >= DEVICES_VERSION,
        "the guest's agent is too old: it speaks version {}, not {DEVICES_VERSION}",
        welcome.version
    );
    stream.set_read_timeout(Some(GUEST))?;
    Ok(stream)
}

fn disk(text: &str, serial: Option<&str>) -> anyhow::Result<(Attachment, Vec<OwnedFd>)> {
    let mut mistakes = Mistakes::default();
    let (path, words) = request::disk_words(text, &mut mistakes);
    mistakes.check()?;
    let path = Path::new(path);
    let serial = match serial {
        Some(serial) => serial.to_owned(),
        None => file_serial(path).with_context(|| format!("{}: --serial is to name the disk", path.display()))?,
    };
    let opened = || -> std::io::Result<_> {
        let disk = by_hand::disk(serial, path, words)?;
        Ok((disk, File::options().read(true).write(!words.read_only).open(path)?))
    };
    let (mut disk, file) = opened().with_context(|| format!("open {}", path.display()))?;
    disk.extents.iter_mut().for_each(|extent| extent.file = FileSource::Passed(0));
    Ok((Attachment::Disk(disk), vec![file.into()]))
}

/// An image, named after its file.
fn pmem(path: &Path) -> anyhow::Result<(Attachment, Vec<OwnedFd>)> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let length = file.seek(SeekFrom::End(0)).context("find the image's end")?;
    let image = Pmem {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length,
        }],
    };
    Ok((Attachment::Pmem(image), vec![file.into()]))
}

/// The beginning of a file's name, where that can be a serial.
fn file_serial(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let serial: String = name.chars().take(MAX_SERIAL).collect();
    serial.bytes().all(|byte| byte.is_ascii_graphic()).then_some(serial)
}

fn net(text: &str, mac: Option<&str>) -> anyhow::Result<(Attachment, Vec<OwnedFd>)> {
    let mut mistakes = Mistakes::default();
    let tap = Tap::parse(text, &mut mistakes);
    mistakes.check()?;
    let mac = match mac {
        Some(text) => parse_mac(text).with_context(|| format!("--mac {text} is no address like 02:00:00:00:00:01"))?,
        None => random_mac()?,
    };
    let queues = tap::open_tap_queues(tap.name, tap.queues).with_context(|| format!("--tap {text}"))?;
    let net = Net {
        mac,
        ..by_hand::nets(&[tap]).remove(0)
    };
    Ok((Attachment::Net(net), queues))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<_> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect::<Option<_>>()?;
    bytes.try_into().ok()
}

/// Locally administered, and no other machine's, with luck.
fn random_mac() -> anyhow::Result<[u8; 6]> {
    let mut bytes = [0; 6];
    // Six bytes come whole.
    getrandom(&mut bytes, GetRandomFlags::empty()).context("read random bytes")?;
    bytes[0] = bytes[0] & !3 | 2;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_after_its_file_where_that_can_be_a_name() {
        assert_eq!(file_serial(Path::new("/a/data.img")).as_deref(), Some("data.img"));
        assert_eq!(
            file_serial(Path::new("a-name-that-is-far-too-long")).as_deref(),
            Some("a-name-that-is-far-t")
        );
        for path in ["/a/with space", "/a/ü", "/", ".."] {
            assert_eq!(file_serial(Path::new(path)), None, "{path}");
        }
    }

    #[test]
    fn addresses_are_six_bytes_and_ours_are_locally_administered() {
        assert_eq!(parse_mac("02:00:00:00:00:ff"), Some([2, 0, 0, 0, 0, 255]));
        for text in ["", "02:00:00:00:00", "02:00:00:00:00:00:00", "02:00:00:00:00:100", "x"] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
        assert_eq!(random_mac().expect("the host has random bytes")[0] & 3, 2);
    }
}
