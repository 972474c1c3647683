//! What all machines that are run by hand have in common: how a path becomes a disk and a name a network device, how mistakes are
//! collected, and how the end is told.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileTypeExt as _,
    path::Path,
    process::ExitCode,
};

use anyhow::bail;
use vmm_lib::{
    exit::MachineExit,
    spec::{Disk, Extent, FileSource, Limits, MAX_QUEUE_PAIRS, Net, NetLimits, Vsock},
};

use super::request::DiskWords;

/// Network addresses of guests but for the last byte, locally administered.
const MAC: [u8; 5] = [0x02, 0x6b, 0x76, 0x6d, 0];
const MTU: u16 = 1500;
/// The guest's identifier. Nobody else sees it.
const CID: u32 = 3;

/// Everything that is wrong with what was asked for, each with the option or field that is to blame.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<String>);

impl Mistakes {
    /// One more.
    pub(super) fn add(&mut self, what: &str, problem: impl std::fmt::Display) {
        self.0.push(format!("{what}: {problem}"));
    }

    /// Whether a machine's socket can be made here: one of a machine that is gone is replaced, and nothing else is.
    pub(super) fn check_socket(&mut self, what: &str, socket: &Path) {
        if let Ok(metadata) = socket.symlink_metadata()
            && !metadata.file_type().is_socket()
        {
            self.add(&format!("{what} {}", socket.display()), "is there, and is no socket");
        }
    }

    /// An error that tells all of them, if there are any.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => bail!("{one}"),
            all => bail!("{} mistakes:\n  {}", all.len(), all.join("\n  ")),
        }
    }

    #[cfg(test)]
    pub(super) fn all(&self) -> &[String] {
        &self.0
    }
}

/// A disk that is the whole of a file or block device, which is opened once to see that it can be.
pub(super) fn disk(serial: String, path: &Path, words: DiskWords) -> io::Result<Disk> {
    let DiskWords { format, engine, read_only } = words;
    let mut file = File::options().read(true).write(!read_only).open(path)?;
    Ok(Disk {
        serial,
        extents: vec![Extent {
            file: FileSource::Path(path.into()),
            offset: 0,
            // A block device has no length in its metadata.
            length: file.seek(SeekFrom::End(0))?,
        }],
        read_only,
        format,
        limits: Limits::default(),
        engine,
    })
}

/// Network devices on taps with so many queues each, on the first descriptors that are passed.
pub(super) fn nets(taps: &[Tap<'_>]) -> Vec<Net> {
    let mut next = 0..;
    let mut passed = || FileSource::Passed(next.next().expect("there are fewer descriptors than numbers"));
    let net = |(tap, last): (&Tap<'_>, u8)| Net {
        tap: passed(),
        more_queues: (1..tap.queues).map(|_| passed()).collect(),
        mac: [MAC[0], MAC[1], MAC[2], MAC[3], MAC[4], last],
        mtu: MTU,
        limits: NetLimits::default(),
    };
    // More than 255 are refused with the specification, and must get that far.
    taps.iter().zip(1..=u8::MAX).map(net).collect()
}

/// A tap to be made: `name`, or `name,queues=4`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tap<'t> {
    /// The interface's.
    pub(super) name: &'t str,
    /// As many pairs of queues does the device have.
    pub(super) queues: usize,
}

impl<'t> Tap<'t> {
    /// Reads an option.
    pub(super) fn parse(text: &'t str, mistakes: &mut Mistakes) -> Self {
        let Some((name, queues)) = text.split_once(",queues=") else {
            return Self { name: text, queues: 1 };
        };
        let queues = queues.parse().ok().filter(|queues| (1..=MAX_QUEUE_PAIRS).contains(queues));
        if queues.is_none() {
            mistakes.add(
                &format!("--tap {text}"),
                format!("has no number of queues from 1 to {MAX_QUEUE_PAIRS}"),
            );
        }
        Self {
            name,
            queues: queues.unwrap_or(1),
        }
    }
}

/// A vsock device at this path.
pub(super) fn vsock(socket: &Path) -> Vsock {
    Vsock {
        cid: CID,
        socket: FileSource::Path(socket.into()),
    }
}

/// Says on standard error why a machine ended, unless its guest powered off.
pub(super) fn tell_end(exit: &MachineExit) -> ExitCode {
    if *exit == MachineExit::PoweredOff {
        return ExitCode::SUCCESS;
    }
    eprintln!("kvmlet: the machine ended: {exit:?}");
    ExitCode::FAILURE
}
