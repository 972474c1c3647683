//! Templates: one small machine that has booted, of which all others that fit are copies. Knows what a template is like, which machines can be
//! copies of it, and what a copy is told. How a template comes about is [`keep`]'s, what it depends on [`key`]'s,
//! and what its copies touch first [`observe`]'s.

mod keep;
mod key;
mod look;
mod observe;

use std::{collections::BTreeMap, path::Path};

use kvmlet_protocol::{Renewal, Request, TEMPLATE_WORD};
use vmm_lib::{
    boot::FAST_COMMAND_LINE,
    spec::{Boot, Comb, FileSource, HOTPLUG_STEP, Hotplug, MAX_STORES, MachineSpec, Pmem, Restore, SPEC_VERSION, Vsock},
};

pub use keep::{Start, Templates};
pub use look::{Standing, look};

use crate::{
    act::now_nanoseconds,
    config::{Guest, Machines},
    lower::IN_PLACE,
    random,
};

/// Memory of a template, bytes; what a pod needs above that comes by virtio-mem.
pub const MEMORY: u64 = 128 << 20;
/// Name of the file that says what copies touch first.
const WORKING_SET: &str = "working-set";
/// Bytes that a copy is given for its random number generator.
const ENTROPY: usize = 64;
/// What an image in place begins and ends on, bytes.
const PMEM_STEP: u64 = 2 << 20;
/// Context identifier of every guest: each machine has a multiplexer of its own.
pub const GUEST_CID: u32 = 3;

/// A pod's annotation: whether its machine may be a copy of the node's template, `node`, or boots by itself, `none`.
pub const ANNOTATION: &str = "kvmlet.io/template";

/// Whether a pod's machine may be a copy; the error is for the pod's owner.
pub fn wanted(annotations: Option<&BTreeMap<String, String>>) -> Result<bool, String> {
    match annotations.and_then(|all| all.get(ANNOTATION)).map(String::as_str) {
        None | Some("node") => Ok(true),
        Some("none") => Ok(false),
        Some(other) => Err(format!(
            "metadata.annotations[{ANNOTATION}]: {other:?} is neither \"node\" nor \"none\""
        )),
    }
}

/// The places of a template: what most pods have at the most. What a pod has besides stands behind them, for its guest to look for.
pub fn comb() -> Comb {
    Comb {
        cpus: 8,
        disks: 4,
        pmems: 8,
        nets: 1,
        pmem_bytes: IN_PLACE + MAX_STORES as u64 * PMEM_STEP,
        memory_bytes: 64 << 30,
    }
}

/// A template's kernel command line: further processors are started by the agent of a copy that has them, and it does nothing before it was
/// renewed.
pub fn command_line(line: &str) -> String {
    format!("{line} maxcpus=1 {TEMPLATE_WORD}")
}

/// The kernel command line of a node's guests.
pub fn guest_command_line(guest: &Guest, machines: &Machines) -> String {
    let mut line = FAST_COMMAND_LINE.to_owned();
    if !guest.extra_command_line.is_empty() {
        line = format!("{line} {}", guest.extra_command_line);
    }
    if machines.watchdog_seconds > 0 {
        // How long is the driver's to know; the agent finds it there.
        line.push_str(&format!(" i6300esb.heartbeat={}", machines.watchdog_seconds));
    }
    line
}

/// The machine that a template is made of: no disk, no image, no network, no watchdog.
pub fn original(guest: &Guest, machines: &Machines, vsock: &Path) -> MachineSpec {
    MachineSpec {
        version: SPEC_VERSION,
        name: "template".into(),
        cpus: 1,
        memory: MEMORY,
        boot: Boot {
            kernel: FileSource::Path(guest.kernel.clone()),
            initramfs: Some(FileSource::Path(guest.initramfs.clone())),
            command_line: command_line(&guest_command_line(guest, machines)),
        },
        disks: Vec::new(),
        pmems: Vec::new(),
        shares: Vec::new(),
        nets: Vec::new(),
        vsock: Some(Vsock {
            cid: GUEST_CID,
            socket: FileSource::Path(vsock.into()),
        }),
        rng: true,
        balloon: true,
        hotplug: None,
        serial: None,
        comb: Some(comb()),
        restore: None,
        pmem_room: 0,
        dirty_log: false,
        console: None,
        watchdog: None,
        count_exits: false,
    }
}

/// The machine as a copy of the template in `directory`, or why it cannot be one.
fn copy(mut spec: MachineSpec, directory: &Path) -> Result<MachineSpec, (Box<MachineSpec>, &'static str)> {
    let comb = comb();
    let pmem_bytes: u64 = spec.pmems.iter().map(|pmem| Pmem::length(pmem).next_multiple_of(PMEM_STEP)).sum();
    let misfits = [
        (spec.serial.is_some(), "guest.serial is on"),
        (spec.console.is_some(), "it has a console"),
        (
            spec.hotplug.is_some_and(|hotplug| hotplug.requested > 0),
            "its memory comes and goes",
        ),
        (spec.memory < MEMORY, "it is smaller than a template"),
        (
            spec.memory - spec.memory.min(MEMORY) > comb.memory_bytes,
            "it has more memory than a copy can have",
        ),
        (spec.cpus > comb.cpus, "it has more processors than a copy can have"),
        (pmem_bytes > comb.pmem_bytes, "its images are larger than a copy's can be"),
    ];
    if let Some((_, why)) = misfits.into_iter().find(|(misfit, _)| *misfit) {
        return Err((Box::new(spec), why));
    }
    let booted = spec.clone();
    let more = spec.memory - MEMORY;
    let room = more + spec.hotplug.map_or(0, |hotplug| hotplug.size);
    spec.memory = MEMORY;
    spec.hotplug = (room > 0).then(|| Hotplug {
        size: room.next_multiple_of(HOTPLUG_STEP).min(comb.memory_bytes),
        requested: more,
    });
    spec.comb = Some(comb);
    spec.restore = Some(Restore {
        state: FileSource::Path(directory.join("state")),
        memory: FileSource::Path(directory.join("memory")),
        working_set: Some(FileSource::Path(directory.join(WORKING_SET))),
        verify: false,
    });
    if spec.fits_bus() {
        Ok(spec)
    } else {
        Err((Box::new(booted), "it has more devices than a copy can have"))
    }
}

/// What the agent of a copy is asked, in this order and before anything else, until the machine is one of its own; its guest uses so many of its
/// processors.
pub fn requests(spec: &MachineSpec, cpus: u8) -> std::io::Result<Vec<Request>> {
    let mut requests = vec![Request::Renew(renewal(spec, cpus)?)];
    requests.extend(surplus(spec));
    Ok(requests)
}

/// What the agent of a copy is asked once it was renewed: to look for what stands behind the comb.
pub fn surplus(spec: &MachineSpec) -> Vec<Request> {
    spec.surplus_places().map(|device| Request::Attached { device }).collect()
}

/// What a machine that is a copy is told; its guest uses so many of its processors.
pub fn renewal(spec: &MachineSpec, cpus: u8) -> std::io::Result<Renewal> {
    Ok(Renewal {
        entropy: random::bytes::<ENTROPY>()?.to_vec(),
        time: now_nanoseconds(),
        cpus,
        memory: spec.hotplug.map_or(0, |hotplug| hotplug.requested),
        devices: spec.filled_places(),
    })
}

#[cfg(test)]
mod tests {
    use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, Limits, Net, NetLimits, Share, Watchdog, WatchdogAction};

    use super::*;

    fn machine(change: impl FnOnce(&mut MachineSpec)) -> MachineSpec {
        let mut spec = MachineSpec {
            memory: 324 << 20,
            cpus: 2,
            comb: None,
            ..original(&Guest::default(), &Machines::default(), Path::new("/m/vsock.sock"))
        };
        change(&mut spec);
        spec
    }

    fn several_queues() -> Net {
        Net {
            tap: FileSource::Passed(0),
            more_queues: vec![FileSource::Passed(1)],
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            limits: NetLimits::default(),
        }
    }

    #[test]
    fn a_copy_has_the_templates_memory_and_gets_the_rest() {
        let copied = copy(machine(|_| {}), Path::new("/t")).unwrap();
        assert_eq!(copied.memory, MEMORY);
        assert_eq!(
            copied.hotplug,
            Some(Hotplug {
                size: 256 << 20,
                requested: 196 << 20
            })
        );
        assert_eq!(copied.validate(0), Ok(()));
        let told = renewal(&copied, 2).unwrap();
        assert_eq!((told.cpus, told.memory, told.entropy.len()), (2, 196 << 20, ENTROPY));
        assert_eq!(told.devices, [17]);
        let room = Hotplug {
            size: 1 << 30,
            requested: 0,
        };
        let roomy = copy(machine(|spec| spec.hotplug = Some(room)), Path::new("/t")).unwrap();
        let grown = Hotplug {
            size: (1 << 30) + (256 << 20),
            requested: 196 << 20,
        };
        assert_eq!((roomy.hotplug, roomy.validate(0)), (Some(grown), Ok(())));
        let exact = copy(machine(|spec| spec.memory = MEMORY), Path::new("/t")).unwrap();
        assert_eq!((exact.hotplug, exact.validate(0)), (None, Ok(())));
    }

    #[test]
    fn a_pod_may_ask_for_a_machine_that_boots() {
        let of = |value: &str| wanted(Some(&BTreeMap::from([(ANNOTATION.to_owned(), value.to_owned())])));
        assert_eq!((wanted(None), of("node"), of("none")), (Ok(true), Ok(true), Ok(false)));
        assert!(
            of("host")
                .unwrap_err()
                .contains("metadata.annotations[kvmlet.io/template]: \"host\"")
        );
    }

    #[test]
    fn no_two_copies_are_told_the_same_random_bytes() {
        let spec = machine(|_| {});
        assert_ne!(renewal(&spec, 1).unwrap().entropy, renewal(&spec, 1).unwrap().entropy);
    }

    #[test]
    fn a_machine_that_does_not_fit_is_left_as_it_is_with_the_reason() {
        let refused = |change: fn(&mut MachineSpec)| {
            let spec = machine(change);
            let (same, why) = copy(spec.clone(), Path::new("/t")).unwrap_err();
            assert_eq!(*same, spec);
            why
        };
        assert!(refused(|spec| spec.cpus = 9).contains("processors"));
        assert!(refused(|spec| spec.memory = MEMORY + (64 << 30) + (2 << 20)).contains("more memory"));
        assert!(refused(|spec| spec.memory = MEMORY - (2 << 20)).contains("smaller"));
        // Of 32 functions the bridge and the comb have 18: there are 14 more.
        assert!(refused(|spec| spec.shares = (0..15).map(share).collect()).contains("more devices"));
        assert!(refused(|spec| spec.pmems = vec![image(1 << 30), image(64 << 20)]).contains("images are larger"));
    }

    fn share(number: u32) -> Share {
        Share {
            tag: format!("share{number}"),
            socket: FileSource::Passed(2 + number),
        }
    }

    fn image(length: u64) -> Pmem {
        let extents = vec![Extent {
            file: FileSource::Path("/image".into()),
            offset: 0,
            length,
        }];
        Pmem {
            name: "image".into(),
            extents,
        }
    }

    fn disk(number: u32) -> Disk {
        Disk {
            serial: format!("disk{number}"),
            extents: image(4096).extents,
            read_only: true,
            format: DiskFormat::Raw,
            limits: Limits::default(),
            engine: DiskEngine::Calls,
        }
    }

    #[test]
    fn what_the_comb_lacks_is_looked_for_once_the_copy_is_one_of_its_own() {
        let most = machine(|spec| {
            spec.nets = vec![several_queues()];
            spec.disks = (0..6).map(disk).collect();
            spec.pmems = (0..11).map(|_| image(4096)).collect();
            spec.shares = vec![share(0), share(1)];
            spec.watchdog = Some(Watchdog {
                action: WatchdogAction::Reset,
            });
        });
        let copied = copy(most, Path::new("/t")).unwrap();
        assert_eq!(copied.validate(4), Ok(()));
        let requests = requests(&copied, 2).unwrap();
        let (renew, devices) = requests.split_first().unwrap();
        let Request::Renew(renewal) = renew else { panic!("{renew:?}") };
        // Memory, then what is at the places: 4 disks, 8 images.
        let places: Vec<u8> = [17].into_iter().chain(1..=12).collect();
        assert_eq!(renewal.devices, places);
        // 2 disks, 3 images, the network, 2 directories, the watchdog.
        let surplus: Vec<_> = (18..27).map(|device| Request::Attached { device }).collect();
        assert_eq!(devices, surplus);
        // One that fits is asked nothing more than before.
        let small = copy(machine(|spec| spec.disks = vec![disk(0)]), Path::new("/t")).unwrap();
        assert_eq!(super::requests(&small, 2).unwrap().len(), 1);
    }

    #[test]
    fn images_of_small_files_fit_with_all_that_rounding_takes() {
        // The comb's, and as many as the bus has places besides.
        const MOST: usize = 8 + 14;
        let mut left = IN_PLACE;
        let many = machine(|spec| {
            for _ in 1..MOST {
                spec.pmems.push(image((2 << 20) + 4096));
                left -= (2 << 20) + 4096;
            }
            spec.pmems.push(image(left));
            spec.disks = vec![disk(0)];
        });
        let copied = copy(many, Path::new("/t")).unwrap();
        assert_eq!((copied.pmems.len(), copied.validate(0)), (MOST, Ok(())));
    }
}
