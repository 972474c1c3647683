//! Checks a [`MachineSpec`] as a whole: every field out of range is named with its path, all at once. Opens nothing.

use std::collections::BTreeSet;
use std::fmt;

use crate::memory::IMAGE_STEP;
use crate::pci::DEVICES;
use crate::spec::{
    Bucket, ConsoleSize, DiskFormat, Extent, FileSource, HOTPLUG_BLOCK, HOTPLUG_STEP, Limits, MAX_COMMAND_LINE, MAX_CPUS, MAX_DISKS,
    MAX_MEMORY, MAX_NETS, MAX_PMEM, MAX_SERIAL, MAX_STORES, MAX_TAG, MIN_MEMORY, MachineSpec, SPEC_VERSION,
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

    fn limits(&mut self, limits: &Limits, path: &str) {
        for (name, bucket) in [("bytes", limits.bytes), ("operations", limits.operations)] {
            let Some(Bucket { size, refill, .. }) = bucket else { continue };
            for (field, value) in [("size", size), ("refill", refill)] {
                self.require(value > 0, &format!("{path}.{name}.{field}"), || "is 0".to_owned());
            }
        }
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
        self.comb(&mut check);
        self.functions(&mut check);
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
        self.hotplug(&mut check);
        if let Some(serial) = &self.serial {
            check.file(&serial.output, "serial.output");
            if let Some(input) = &serial.input {
                check.file(input, "serial.input");
            }
        }
        if let Some(console) = &self.console {
            check.file(&console.output, "console.output");
            if let Some(input) = &console.input {
                check.file(input, "console.input");
            }
            if let Some(ConsoleSize { columns, rows }) = console.size {
                check.require(columns > 0 && rows > 0, "console.size", || {
                    format!("{columns} by {rows} is no size")
                });
            }
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

    fn hotplug(&self, check: &mut Checker) {
        let Some(hotplug) = &self.hotplug else { return };
        let (size, requested) = (hotplug.size, hotplug.requested);
        let whole = size > 0 && size <= MAX_MEMORY && size.is_multiple_of(HOTPLUG_STEP);
        check.require(whole, "hotplug.size", || {
            format!("{size} is not a multiple of {HOTPLUG_STEP} above 0, up to {MAX_MEMORY}")
        });
        check.require(requested <= size, "hotplug.requested", || {
            format!("{requested} is more than the size, {size}")
        });
        check.require(requested.is_multiple_of(HOTPLUG_BLOCK), "hotplug.requested", || {
            format!("{requested} is not a multiple of {HOTPLUG_BLOCK}")
        });
    }

    /// The bus has room for all functions.
    fn functions(&self, check: &mut Checker) {
        let single = [
            self.vsock.is_some(),
            self.rng,
            self.balloon,
            self.has_memory_place(),
            self.console.is_some(),
            self.watchdog.is_some(),
        ];
        let counts = [self.disks.len(), self.pmems.len(), self.nets.len(), self.shares.len()];
        // Each of these is refused by itself when it is too large.
        if counts.into_iter().all(|count| count <= MAX_STORES) {
            let functions = usize::from(self.places().others) + self.shares.len() + single.into_iter().filter(|there| *there).count();
            check.require(functions <= DEVICES, "disks", || {
                format!("and all other devices are {functions}, more than the {DEVICES} of a bus")
            });
        }
    }

    fn boot(&self, check: &mut Checker) {
        if let Some(restore) = &self.restore {
            check.file(&restore.state, "restore.state");
            check.file(&restore.memory, "restore.memory");
            if let Some(set) = &restore.working_set {
                check.file(set, "restore.workingSet");
            }
        } else {
            check.file(&self.boot.kernel, "boot.kernel");
            if let Some(initramfs) = &self.boot.initramfs {
                check.file(initramfs, "boot.initramfs");
            }
        }
        let line = &self.boot.command_line;
        let path = "boot.commandLine";
        check.require(line.len() <= MAX_COMMAND_LINE, path, || {
            format!("has {} bytes, more than {MAX_COMMAND_LINE}", line.len())
        });
        check.require(!line.contains('\0'), path, || "contains a NUL byte".to_owned());
    }

    fn comb(&self, check: &mut Checker) {
        let Some(comb) = &self.comb else { return };
        let mut room = |path: &str, places: u8, least: usize, most: usize| {
            check.require((least..=most).contains(&usize::from(places)), path, || {
                format!("{places} is not {least} to {most}")
            });
        };
        room("comb.cpus", comb.cpus, usize::from(self.cpus), usize::from(MAX_CPUS));
        room("comb.disks", comb.disks, self.disks.len(), MAX_DISKS);
        let left = MAX_STORES.saturating_sub(usize::from(comb.disks));
        room("comb.pmems", comb.pmems, self.pmems.len(), left);
        room("comb.nets", comb.nets, self.nets.len(), MAX_NETS);
        let needs = self
            .pmems
            .iter()
            .map(|pmem| pmem.length().saturating_add(IMAGE_STEP - 1) / IMAGE_STEP * IMAGE_STEP);
        let needs = needs.fold(0u64, u64::saturating_add);
        let (least, room) = (self.hotplug.map_or(0, |hotplug| hotplug.size), comb.memory_bytes);
        let whole = (least..=MAX_MEMORY).contains(&room) && room.is_multiple_of(HOTPLUG_STEP);
        check.require(whole, "comb.memoryBytes", || {
            format!("{room} is not a multiple of {HOTPLUG_STEP} from {least} to {MAX_MEMORY}")
        });
        check.require((needs..=MAX_PMEM).contains(&comb.pmem_bytes), "comb.pmemBytes", || {
            format!("{} is not {needs} to {MAX_PMEM}", comb.pmem_bytes)
        });
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
            let path = format!("disks[{index}].extents");
            match disk.format {
                DiskFormat::Raw => check.extents(&disk.extents, &path, SECTOR),
                DiskFormat::Qcow2 => check.extents(&disk.extents, &path, 1),
            };
            let whole = disk.format == DiskFormat::Raw || matches!(disk.extents.as_slice(), [] | [Extent { offset: 0, .. }]);
            check.require(whole, &path, || {
                "are not the one file, from its beginning on, that a qcow2 image is".to_owned()
            });
            check.limits(&disk.limits, &format!("disks[{index}].limits"));
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
            check.limits(&net.limits.receive, &format!("nets[{index}].limits.receive"));
            check.limits(&net.limits.transmit, &format!("nets[{index}].limits.transmit"));
            check.require(net.mtu >= 68, &format!("nets[{index}].mtu"), || format!("{} is below 68", net.mtu));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Boot, Console, Disk, Hotplug, Net, NetLimits, Pmem, Serial, Share, Vsock, Watchdog, WatchdogAction};

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
            hotplug: None,
            serial: None,
            comb: None,
            restore: None,
            console: None,
            watchdog: None,
            count_exits: false,
        }
    }

    /// One bucket that holds nothing, and one that never fills.
    const EMPTY: Limits = Limits {
        bytes: Some(Bucket {
            size: 0,
            refill: 1,
            burst: 0,
        }),
        operations: Some(Bucket {
            size: 1,
            refill: 0,
            burst: 1,
        }),
    };

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
                format: DiskFormat::Raw,
                limits: EMPTY,
            },
            Disk {
                serial: "same".into(),
                extents: Vec::new(),
                read_only: true,
                format: DiskFormat::Raw,
                limits: Limits::default(),
            },
            Disk {
                serial: "far too long for virtio-blk".into(),
                extents: Vec::new(),
                read_only: true,
                format: DiskFormat::Raw,
                limits: Limits::default(),
            },
            Disk {
                serial: "image".into(),
                extents: vec![Extent {
                    file: FileSource::Passed(0),
                    offset: 1,
                    length: 1,
                }],
                read_only: true,
                format: DiskFormat::Qcow2,
                limits: Limits::default(),
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
            limits: NetLimits {
                receive: EMPTY,
                transmit: EMPTY,
            },
        }];
        spec.vsock = Some(Vsock {
            cid: 2,
            socket: FileSource::Passed(1),
        });
        spec.hotplug = Some(Hotplug {
            size: 1 << 20,
            requested: (1 << 20) + 1,
        });
        spec.serial = Some(Serial {
            output: FileSource::Passed(0),
            input: Some(FileSource::Passed(1)),
        });
        spec.console = Some(Console {
            output: FileSource::Passed(1),
            input: Some(FileSource::Path("".into())),
            size: Some(ConsoleSize { columns: 0, rows: 25 }),
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
            "disks[0].limits.bytes.size",
            "disks[0].limits.operations.refill",
            "disks[1].serial",
            "disks[1].extents",
            "disks[2].serial",
            "disks[2].serial",
            "disks[2].extents",
            "disks[3].extents",
            "pmems[0].extents",
            "pmems[0].extents[0].offset",
            "shares[1].tag",
            "shares[1].socket",
            "shares[2].tag",
            "shares[2].socket",
            "nets[0].tap",
            "nets[0].mac",
            "nets[0].limits.receive.bytes.size",
            "nets[0].limits.receive.operations.refill",
            "nets[0].limits.transmit.bytes.size",
            "nets[0].limits.transmit.operations.refill",
            "nets[0].mtu",
            "vsock.cid",
            "vsock.socket",
            "hotplug.size",
            "hotplug.requested",
            "hotplug.requested",
            "serial.input",
            "console.output",
            "console.input",
            "console.size",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn more_devices_than_a_bus_has_room_for_are_refused() {
        let mut spec = spec();
        let disk = |index| Disk {
            serial: format!("disk{index}"),
            extents: vec![Extent {
                file: FileSource::Passed(0),
                offset: 0,
                length: SECTOR,
            }],
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
        };
        spec.disks = (0..MAX_DISKS).map(disk).collect();
        let net = |index: usize| Net {
            tap: FileSource::Passed(index as u32),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            limits: NetLimits::default(),
        };
        spec.nets = (0..MAX_NETS).map(net).collect();
        spec.vsock = Some(Vsock {
            cid: 3,
            socket: FileSource::Passed(0),
        });
        (spec.rng, spec.balloon) = (true, true);
        assert_eq!(spec.validate(MAX_NETS), Ok(()));
        spec.watchdog = Some(Watchdog {
            action: WatchdogAction::Reset,
        });
        let errors = spec.validate(MAX_NETS).expect_err("32 beside the bridge do not fit");
        assert_eq!(errors.0[0].path, "disks", "{errors}");
        spec.disks.pop();
        assert_eq!(spec.validate(MAX_NETS), Ok(()));
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
