//! Checks a [`MachineSpec`] as a whole: every field out of range is named with its path, all at once. Opens nothing.

use std::collections::BTreeSet;
use std::fmt;

use crate::spec::{
    Extent, FileSource, MAX_COMMAND_LINE, MAX_CPUS, MAX_DISKS, MAX_MEMORY, MAX_NETS, MAX_PMEM, MAX_SERIAL, MAX_STORES, MAX_TAG, MIN_MEMORY,
    MachineSpec, SPEC_VERSION,
};

/// Granularity of guest memory.
const MEMORY_STEP: u64 = 2 << 20;
/// virtio-blk's unit.
const SECTOR: u64 = 512;
/// What a file is mapped in.
const PAGE: u64 = 4096;

/// A field that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SpecError {
    /// Path of the field, as in the JSON: `disks[2].extents[0].length`.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// All that is wrong with a specification; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<SpecError>);

impl fmt::Display for SpecErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(out, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

/// Collects problems.
struct Checker {
    passed: usize,
    errors: Vec<SpecError>,
}

impl Checker {
    fn require(&mut self, holds: bool, path: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.errors.push(SpecError {
                path: path.to_owned(),
                problem: problem(),
            });
        }
    }

    /// Pieces of files in units of `unit` bytes; their lengths together, where 64 bits can say it.
    fn extents(&mut self, extents: &[Extent], path: &str, unit: u64) -> Option<u64> {
        self.require(!extents.is_empty(), path, || "is empty".to_owned());
        let mut size = Some(0u64);
        for (number, extent) in extents.iter().enumerate() {
            let path = format!("{path}[{number}]");
            self.file(&extent.file, &format!("{path}.file"));
            let whole = extent.length > 0 && extent.length.is_multiple_of(unit);
            self.require(whole, &format!("{path}.length"), || {
                format!("{} is not a multiple of {unit} above 0", extent.length)
            });
            let end = extent.offset.checked_add(extent.length).filter(|end| *end <= i64::MAX as u64);
            self.require(end.is_some(), &format!("{path}.offset"), || {
                format!("{} plus the length is no file offset", extent.offset)
            });
            size = size.and_then(|sum| sum.checked_add(extent.length));
        }
        self.require(size.is_some(), path, || "are together larger than 64 bits can say".to_owned());
        size
    }

    fn file(&mut self, source: &FileSource, path: &str) {
        match source {
            FileSource::Path(file) => {
                self.require(!file.as_os_str().is_empty(), path, || "is an empty path".to_owned());
            }
            FileSource::Passed(index) => {
                let passed = self.passed;
                self.require((*index as usize) < passed, path, || {
                    format!("names descriptor {index}, but {passed} were passed")
                });
            }
        }
    }
}

impl MachineSpec {
    /// Checks every field; `passed` is the number of descriptors that come with the specification.
    pub fn validate(&self, passed: usize) -> Result<(), SpecErrors> {
        let mut check = Checker {
            passed,
            errors: Vec::new(),
        };
        self.shape(&mut check);
        self.boot(&mut check);
        self.disks(&mut check);
        self.pmems(&mut check);
        self.shares(&mut check);
        self.nets(&mut check);
        if let Some(vsock) = &self.vsock {
            check.require((3..u32::MAX).contains(&vsock.cid), "vsock.cid", || {
                format!("{} is not 3 to {}", vsock.cid, u32::MAX - 1)
            });
            check.file(&vsock.socket, "vsock.socket");
        }
        if let Some(serial) = &self.serial {
            check.file(&serial.output, "serial.output");
        }
        if check.errors.is_empty() {
            Ok(())
        } else {
            Err(SpecErrors(check.errors))
        }
    }

    fn shape(&self, check: &mut Checker) {
        check.require(self.version == SPEC_VERSION, "version", || {
            format!("{} is not {SPEC_VERSION}", self.version)
        });
        check.require(!self.name.is_empty(), "name", || "is empty".to_owned());
        check.require((1..=MAX_CPUS).contains(&self.cpus), "cpus", || {
            format!("{} is not 1 to {MAX_CPUS}", self.cpus)
        });
        let range = MIN_MEMORY..=MAX_MEMORY;
        check.require(range.contains(&self.memory), "memory", || {
            format!("{} is not {MIN_MEMORY} to {MAX_MEMORY}", self.memory)
        });
        check.require(self.memory.is_multiple_of(MEMORY_STEP), "memory", || {
            format!("{} is not a multiple of {MEMORY_STEP}", self.memory)
        });
    }

    fn boot(&self, check: &mut Checker) {
        check.file(&self.boot.kernel, "boot.kernel");
        if let Some(initramfs) = &self.boot.initramfs {
            check.file(initramfs, "boot.initramfs");
        }
        let line = &self.boot.command_line;
        let path = "boot.commandLine";
        check.require(line.len() <= MAX_COMMAND_LINE, path, || {
            format!("has {} bytes, more than {MAX_COMMAND_LINE}", line.len())
        });
        check.require(!line.contains('\0'), path, || "contains a NUL byte".to_owned());
    }

    fn disks(&self, check: &mut Checker) {
        check.require(self.disks.len() <= MAX_DISKS, "disks", || {
            format!("{} are more than {MAX_DISKS}", self.disks.len())
        });
        let mut serials = BTreeSet::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let path = format!("disks[{index}].serial");
            let length = disk.serial.len();
            check.require((1..=MAX_SERIAL).contains(&length), &path, || {
                format!("has {length} bytes, not 1 to {MAX_SERIAL}")
            });
            let printable = disk.serial.bytes().all(|byte| byte.is_ascii_graphic());
            check.require(printable, &path, || "is not printable ASCII without spaces".to_owned());
            check.require(serials.insert(&disk.serial), &path, || format!("{:?} is not unique", disk.serial));
            check.extents(&disk.extents, &format!("disks[{index}].extents"), SECTOR);
        }
    }

    fn pmems(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len();
        check.require(stores <= MAX_STORES, "pmems", || {
            format!("and disks together are {stores}, more than {MAX_STORES}")
        });
        for (index, pmem) in self.pmems.iter().enumerate() {
            let path = format!("pmems[{index}].extents");
            let size = check.extents(&pmem.extents, &path, PAGE);
            check.require(size.is_none_or(|size| size <= MAX_PMEM), &path, || {
                format!("are together larger than {MAX_PMEM}")
            });
            for (number, extent) in pmem.extents.iter().enumerate() {
                check.require(extent.offset.is_multiple_of(PAGE), &format!("{path}[{number}].offset"), || {
                    format!("{} is not a multiple of {PAGE}", extent.offset)
                });
            }
        }
    }

    fn shares(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len() + self.shares.len();
        check.require(self.shares.is_empty() || stores <= MAX_STORES, "shares", || {
            format!("with disks and pmems are {stores}, more than {MAX_STORES}")
        });
        let (mut tags, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        for (index, share) in self.shares.iter().enumerate() {
            let path = format!("shares[{index}].tag");
            let length = share.tag.len();
            check.require((1..=MAX_TAG).contains(&length), &path, || {
                format!("has {length} bytes, not 1 to {MAX_TAG}")
            });
            check.require(!share.tag.contains('\0'), &path, || "contains a NUL byte".to_owned());
            check.require(tags.insert(&share.tag), &path, || format!("{:?} is not unique", share.tag));
            let path = format!("shares[{index}].socket");
            check.file(&share.socket, &path);
            match share.socket {
                FileSource::Path(_) => check.require(false, &path, || "is a path: a socket must be passed connected".to_owned()),
                FileSource::Passed(number) => check.require(sockets.insert(number), &path, || {
                    format!("descriptor {number} serves another share already")
                }),
            }
        }
    }

    fn nets(&self, check: &mut Checker) {
        check.require(self.nets.len() <= MAX_NETS, "nets", || {
            format!("{} are more than {MAX_NETS}", self.nets.len())
        });
        let mut taps = BTreeSet::new();
        for (index, net) in self.nets.iter().enumerate() {
            let path = format!("nets[{index}].tap");
            check.file(&net.tap, &path);
            check.require(!matches!(net.tap, FileSource::Path(_)), &path, || {
                "is a path: a tap must be passed open".to_owned()
            });
            if let FileSource::Passed(number) = net.tap {
                check.require(taps.insert(number), &path, || {
                    format!("descriptor {number} serves another interface already")
                });
            }
            let unicast = net.mac[0] & 1 == 0 && net.mac != [0; 6];
            check.require(unicast, &format!("nets[{index}].mac"), || "is not a unicast address".to_owned());
            check.require(net.mtu >= 68, &format!("nets[{index}].mtu"), || format!("{} is below 68", net.mtu));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Boot, Disk, Net, Pmem, Share, Vsock};

    fn spec() -> MachineSpec {
        MachineSpec {
            version: SPEC_VERSION,
            name: "m".into(),
            cpus: 1,
            memory: 64 << 20,
            boot: Boot {
                kernel: FileSource::Passed(0),
                initramfs: None,
                command_line: "quiet".into(),
            },
            disks: Vec::new(),
            pmems: Vec::new(),
            shares: Vec::new(),
            nets: Vec::new(),
            vsock: None,
            rng: false,
            balloon: false,
            serial: None,
            count_exits: false,
        }
    }

    #[test]
    fn a_plain_machine_is_valid() {
        assert_eq!(spec().validate(1), Ok(()));
    }

    #[test]
    fn every_field_out_of_range_is_named_at_once() {
        let mut spec = spec();
        spec.version = 9;
        spec.name.clear();
        spec.cpus = 0;
        spec.memory = (16 << 20) + 1;
        spec.boot.kernel = FileSource::Passed(7);
        spec.boot.command_line = format!("{}\0", "x".repeat(MAX_COMMAND_LINE));
        let extent = Extent {
            file: FileSource::Path("".into()),
            offset: u64::MAX,
            length: 513,
        };
        spec.disks = vec![
            Disk {
                serial: "same".into(),
                extents: vec![extent],
                read_only: true,
            },
            Disk {
                serial: "same".into(),
                extents: Vec::new(),
                read_only: true,
            },
            Disk {
                serial: "far too long for virtio-blk".into(),
                extents: Vec::new(),
                read_only: true,
            },
        ];
        spec.pmems = vec![Pmem {
            name: "image".into(),
            extents: vec![Extent {
                file: FileSource::Passed(0),
                offset: 512,
                length: MAX_PMEM + PAGE,
            }],
        }];
        let share = |tag: &str, socket| Share { tag: tag.into(), socket };
        spec.shares = vec![
            share("same", FileSource::Passed(0)),
            share("same", FileSource::Passed(0)),
            share("", FileSource::Path("/run/s".into())),
        ];
        spec.nets = vec![Net {
            tap: FileSource::Path("/dev/x".into()),
            mac: [1, 0, 0, 0, 0, 0],
            mtu: 67,
        }];
        spec.vsock = Some(Vsock {
            cid: 2,
            socket: FileSource::Passed(1),
        });
        let paths: Vec<_> = spec
            .validate(1)
            .expect_err("all of it is wrong")
            .0
            .into_iter()
            .map(|error| error.path)
            .collect();
        let expected = [
            "version",
            "name",
            "cpus",
            "memory",
            "memory",
            "boot.kernel",
            "boot.commandLine",
            "boot.commandLine",
            "disks[0].extents[0].file",
            "disks[0].extents[0].length",
            "disks[0].extents[0].offset",
            "disks[1].serial",
            "disks[1].extents",
            "disks[2].serial",
            "disks[2].serial",
            "disks[2].extents",
            "pmems[0].extents",
            "pmems[0].extents[0].offset",
            "shares[1].tag",
            "shares[1].socket",
            "shares[2].tag",
            "shares[2].socket",
            "nets[0].tap",
            "nets[0].mac",
            "nets[0].mtu",
            "vsock.cid",
            "vsock.socket",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn shares_have_their_places_on_the_bus_with_disks_and_images() {
        let mut spec = spec();
        let share = |number| Share {
            tag: format!("s{number}"),
            socket: FileSource::Passed(number),
        };
        spec.shares = (0..MAX_STORES as u32).map(share).collect();
        assert_eq!(spec.validate(MAX_STORES), Ok(()));
        spec.shares.push(share(MAX_STORES as u32));
        let errors = spec.validate(MAX_STORES + 1).expect_err("one too many").0;
        assert_eq!(errors.iter().map(|error| error.path.as_str()).collect::<Vec<_>>(), ["shares"]);
    }
}
