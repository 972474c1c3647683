//! Snapshots, rooms for what may come, and numbers of devices.

use super::*;
use crate::spec::{Comb, MAX_CPUS, MAX_MEMORY, Restore};

#[test]
fn every_field_of_a_snapshot_that_is_out_of_range_is_named_at_once_and_the_kernel_is_not_looked_at() {
    let mut spec = spec();
    spec.boot.kernel = FileSource::Passed(7);
    spec.boot.initramfs = Some(FileSource::Passed(8));
    spec.boot.command_line = "\0".to_owned();
    spec.restore = Some(Restore {
        state: FileSource::Passed(1),
        memory: FileSource::Path("".into()),
        working_set: Some(FileSource::Passed(u32::MAX)),
        verify: true,
    });
    assert_eq!(
        wrong(&spec, 1),
        ["restore.state", "restore.memory", "restore.workingSet", "boot.commandLine"]
    );
}

#[test]
fn every_field_of_a_comb_that_is_too_small_or_too_large_is_named_at_once() {
    let all = ["cpus", "disks", "pmems", "nets", "memoryBytes", "pmemBytes"].map(|field| format!("comb.{field}"));
    let mut machine = spec();
    machine.cpus = 2;
    machine.disks = vec![disk(0)];
    machine.pmems = vec![Pmem {
        name: "image".into(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: PAGE,
        }],
    }];
    machine.nets = vec![net(0)];
    machine.hotplug = Some(Hotplug {
        size: 128 << 20,
        requested: 0,
    });
    let least = Comb {
        cpus: 2,
        disks: 1,
        pmems: 1,
        nets: 1,
        pmem_bytes: 2 << 20,
        memory_bytes: 128 << 20,
    };
    let with = |comb| MachineSpec {
        comb: Some(comb),
        ..machine.clone()
    };
    assert_eq!(with(least.clone()).validate(1), Ok(()));
    let small = Comb {
        cpus: 1,
        disks: 0,
        pmems: 0,
        nets: 0,
        pmem_bytes: (2 << 20) - 1,
        memory_bytes: (128 << 20) - 1,
    };
    assert_eq!(wrong(&with(small), 1), all);
    let large = Comb {
        cpus: MAX_CPUS + 1,
        disks: MAX_DISKS as u8 + 1,
        pmems: 1,
        nets: MAX_NETS as u8 + 1,
        pmem_bytes: MAX_PMEM + 1,
        memory_bytes: MAX_MEMORY + (128 << 20),
    };
    // Together they are more than a bus has room for, too.
    assert_eq!(wrong(&with(large), 1), [&all[..], &["disks".to_owned()]].concat());
    let half = Comb {
        memory_bytes: 192 << 20,
        pmems: MAX_STORES as u8,
        ..least
    };
    assert_eq!(wrong(&with(half), 1), ["comb.pmems", "comb.memoryBytes"]);
}

#[test]
fn more_disks_images_and_networks_than_there_may_be_are_named_at_once() {
    let mut spec = spec();
    spec.disks = (0..=MAX_DISKS).map(disk).collect();
    spec.pmems = vec![Pmem {
        name: "image".into(),
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: PAGE,
        }],
    }];
    spec.nets = (0..=MAX_NETS).map(net).collect();
    assert_eq!(wrong(&spec, MAX_NETS + 1), ["disks", "pmems", "nets"]);
}
