//! All that a specification may be, and what it must not.

mod rooms;

use super::*;
use crate::spec::{
    Boot, Console, Disk, DiskEngine, DiskFormat, Hotplug, MAX_COMMAND_LINE, MAX_DISKS, MAX_NETS, MAX_PMEM, MAX_QUEUE_PAIRS, MAX_STORES,
    Net, NetLimits, Pmem, Serial, Share, Vsock, Watchdog, WatchdogAction,
};
use crate::testing;

fn spec() -> MachineSpec {
    MachineSpec {
        name: "m".into(),
        memory: 64 << 20,
        boot: Boot {
            kernel: FileSource::Passed(0),
            initramfs: None,
            command_line: "quiet".into(),
        },
        ..testing::spec(FileSource::Passed(0))
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
    spec.boot.initramfs = Some(FileSource::Path("".into()));
    spec.pmem_room = 4096;
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
            engine: DiskEngine::Calls,
        },
        Disk {
            serial: "same".into(),
            extents: Vec::new(),
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        },
        Disk {
            serial: "far too long for virtio-blk".into(),
            extents: Vec::new(),
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
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
            engine: DiskEngine::Calls,
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
        more_queues: vec![FileSource::Passed(9), FileSource::Path("/dev/y".into())],
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
    let expected = [
        "version",
        "name",
        "cpus",
        "memory",
        "memory",
        "boot.kernel",
        "boot.initramfs",
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
        "pmemRoom",
        "shares[1].tag",
        "shares[1].socket",
        "shares[2].tag",
        "shares[2].socket",
        "nets[0].tap",
        "nets[0].moreQueues[0]",
        "nets[0].moreQueues[1]",
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
    assert_eq!(wrong(&spec, 1), expected);
}

/// Paths of all that is wrong with a specification that came with so many descriptors.
fn wrong(spec: &MachineSpec, passed: usize) -> Vec<String> {
    let errors = spec.validate(passed).expect_err("something is wrong").0;
    errors.into_iter().map(|error| error.path).collect()
}

/// A disk that is as it should be.
fn disk(index: usize) -> Disk {
    Disk {
        serial: format!("disk{index}"),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: SECTOR,
        }],
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

/// An interface that is as it should be, whose tap is this descriptor.
fn net(tap: usize) -> Net {
    Net {
        tap: FileSource::Passed(tap as u32),
        more_queues: Vec::new(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetLimits::default(),
    }
}

#[test]
fn more_devices_than_a_bus_has_room_for_are_refused() {
    let mut spec = spec();
    spec.disks = (0..MAX_DISKS).map(disk).collect();
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

#[test]
fn a_tap_has_so_many_queues_and_each_descriptor_is_one_of_them() {
    let mut spec = spec();
    spec.nets = vec![Net {
        tap: FileSource::Passed(0),
        more_queues: (1..MAX_QUEUE_PAIRS as u32).map(FileSource::Passed).collect(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetLimits::default(),
    }];
    assert_eq!(spec.validate(MAX_QUEUE_PAIRS), Ok(()));
    spec.nets[0].more_queues.push(FileSource::Passed(0));
    let errors = spec.validate(MAX_QUEUE_PAIRS).expect_err("one too many, and that twice").0;
    let paths: Vec<_> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["nets[0].moreQueues[7]", "nets[0].moreQueues"]);
}

#[test]
fn a_ring_is_for_disks_as_they_are() {
    let disk = |format| Disk {
        serial: "disk".into(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: 512,
        }],
        read_only: true,
        format,
        limits: Limits::default(),
        engine: DiskEngine::IoUring,
    };
    let of = |format| MachineSpec {
        disks: vec![disk(format)],
        ..spec()
    };
    assert_eq!(of(DiskFormat::Raw).validate(1), Ok(()));
    let refused = of(DiskFormat::Qcow2).validate(1).expect_err("an image of a format").to_string();
    assert_eq!(refused, "disks[0].engine: io_uring is for raw disks only");
}

#[test]
fn room_for_images_is_whole_and_not_endless() {
    let of = |pmem_room| MachineSpec { pmem_room, ..spec() }.validate(1);
    for room in [0, 2 << 20, MAX_PMEM] {
        assert_eq!(of(room), Ok(()), "{room}");
    }
    for room in [1, 4096, MAX_PMEM + (2 << 20)] {
        let refused = of(room).expect_err("it is neither").to_string();
        assert!(refused.starts_with("pmemRoom: "), "{refused}");
    }
}
