//! Where functions stand.

use super::*;
use crate::spec::{
    Disk, DiskEngine, DiskFormat, Extent, FileSource, Hotplug, Limits, MachineSpec, Net, NetLimits, Pmem, Restore, Share, Watchdog,
    WatchdogAction,
};
use crate::testing;

/// A comb with 2 places for disks, 2 for images and 1 for a network interface.
const COMB: Comb = Comb {
    cpus: 1,
    disks: 2,
    pmems: 2,
    nets: 1,
    pmem_bytes: 1 << 30,
    memory_bytes: 1 << 30,
};
/// Where its place for memory is: behind the bridge, those of [`COMB`], entropy and balloon.
const MEMORY: u8 = 8;

fn file() -> FileSource {
    FileSource::Path("/f".into())
}

fn extents() -> Vec<Extent> {
    vec![Extent {
        file: file(),
        offset: 0,
        length: 4096,
    }]
}

/// A copy with so many disks and images.
fn copy(disks: usize, pmems: usize) -> MachineSpec {
    let disk = |number: usize| Disk {
        serial: format!("disk{number}"),
        extents: extents(),
        read_only: true,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    };
    let pmem = |number: usize| Pmem {
        name: format!("pmem{number}"),
        extents: extents(),
    };
    MachineSpec {
        memory: 64 << 20,
        disks: (0..disks).map(disk).collect(),
        pmems: (0..pmems).map(pmem).collect(),
        rng: true,
        balloon: true,
        comb: Some(COMB),
        restore: Some(Restore {
            state: file(),
            memory: file(),
            working_set: None,
            verify: false,
        }),
        ..testing::spec(file())
    }
}

fn net(queues: u32) -> Net {
    Net {
        tap: FileSource::Passed(0),
        more_queues: (1..queues).map(FileSource::Passed).collect(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        limits: NetLimits::default(),
    }
}

fn share(number: u32) -> Share {
    Share {
        tag: format!("share{number}"),
        socket: FileSource::Passed(number),
    }
}

#[test]
fn what_fits_into_the_comb_stands_there_and_nothing_is_left() {
    let mut spec = copy(2, 1);
    spec.nets = vec![net(1)];
    spec.hotplug = Some(Hotplug {
        size: 128 << 20,
        requested: 0,
    });
    assert_eq!(spec.filled_places(), [MEMORY, 1, 2, 3, 5]);
    assert!(spec.surplus_places().is_empty());
    assert_eq!(spec.validate(1), Ok(()));
}

#[test]
fn what_a_copy_has_besides_stands_behind_the_comb_and_moves_nothing_of_it() {
    let mut spec = copy(3, 4);
    spec.shares = vec![share(0), share(1)];
    spec.watchdog = Some(Watchdog {
        action: WatchdogAction::Reset,
    });
    assert_eq!(spec.places(), copy(0, 0).places());
    assert_eq!(spec.filled_places(), [1, 2, 3, 4]);
    // A disk, two images, two shares and the watchdog.
    assert_eq!(spec.surplus_places(), MEMORY + 1..MEMORY + 7);
    assert_eq!(spec.validate(2), Ok(()));
}

#[test]
fn an_interface_with_several_pairs_of_queues_is_none_of_the_combs() {
    let mut spec = copy(0, 0);
    spec.nets = vec![net(2)];
    assert_eq!((spec.filled_places(), spec.surplus_places().len()), (Vec::new(), 1));
    assert_eq!(spec.validate(2), Ok(()));
}

#[test]
fn what_has_no_place_on_the_bus_either_is_refused() {
    // Bridge, comb, entropy, balloon and memory are 9: of 32 that leaves 23.
    let (fits, none) = (copy(2 + 23, 0), copy(2 + 24, 0));
    assert!(fits.fits_bus() && !none.fits_bus());
    let spec = copy(12, 12);
    assert_eq!((spec.fits_bus(), spec.surplus_places().end), (true, 29));
    let spec = MachineSpec {
        shares: (0..4).map(share).collect(),
        ..spec
    };
    assert!(
        spec.validate(4)
            .is_err_and(|errors| errors.to_string().contains("more than the 32 of a bus"))
    );
}

#[test]
fn a_machine_that_boots_has_all_of_it_in_its_comb() {
    let spec = MachineSpec {
        restore: None,
        ..copy(3, 4)
    };
    assert!(spec.surplus_places().is_empty());
    let errors = spec.validate(0).unwrap_err().to_string();
    assert!(errors.contains("comb.disks") && errors.contains("comb.pmems"), "{errors}");
}
