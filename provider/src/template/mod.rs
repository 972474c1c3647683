//! Templates: one small machine that has booted, of which all others that fit are copies. Knows what a template is like, which machines can be
//! copies of it, and what a copy is told. How a template comes about is [`keep`]'s, what it depends on [`key`]'s,
//! and what its copies touch first [`observe`]'s.

mod keep;
mod key;
mod observe;

use std::{collections::BTreeMap, path::Path};

use kvmlet_protocol::Renewal;
use vmm_lib::{
    boot::FAST_COMMAND_LINE,
    spec::{Boot, Comb, FileSource, HOTPLUG_STEP, Hotplug, MachineSpec, Pmem, Restore, SPEC_VERSION, Vsock},
};

pub use keep::{Start, Templates};

use crate::{act::now_nanoseconds, config::Guest, random};

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

/// The places of a template: what most pods have at the most. A pod with more is booted.
pub fn comb() -> Comb {
    Comb {
        cpus: 8,
        disks: 4,
        pmems: 8,
        nets: 1,
        pmem_bytes: (1 << 30) + 8 * PMEM_STEP,
        memory_bytes: 64 << 30,
    }
}

/// A template's kernel command line: further processors are started by the agent of a copy that has them.
pub fn command_line(line: &str) -> String {
    format!("{line} maxcpus=1")
}

/// The kernel command line of a node's guests.
pub fn guest_command_line(guest: &Guest) -> String {
    let extra = &guest.extra_command_line;
    if extra.is_empty() {
        FAST_COMMAND_LINE.to_owned()
    } else {
        format!("{FAST_COMMAND_LINE} {extra}")
    }
}

/// The machine that a template is made of: no disk, no image, no network.
pub fn original(guest: &Guest, vsock: &Path) -> MachineSpec {
    MachineSpec {
        version: SPEC_VERSION,
        name: "template".into(),
        cpus: 1,
        memory: MEMORY,
        boot: Boot {
            kernel: FileSource::Path(guest.kernel.clone()),
            initramfs: Some(FileSource::Path(guest.initramfs.clone())),
            command_line: command_line(&guest_command_line(guest)),
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
        (spec.watchdog.is_some(), "it has a watchdog"),
        (!spec.shares.is_empty(), "it shares directories of the host"),
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
        (spec.disks.len() > usize::from(comb.disks), "it has more disks than a copy can have"),
        (
            spec.pmems.len() > usize::from(comb.pmems),
            "it has more images than a copy can have",
        ),
        (
            spec.nets.len() > usize::from(comb.nets),
            "it has more networks than a copy can have",
        ),
        (
            spec.nets.iter().any(|net| !net.more_queues.is_empty()),
            "its network has several pairs of queues",
        ),
        (pmem_bytes > comb.pmem_bytes, "its images are larger than a copy's can be"),
    ];
    if let Some((_, why)) = misfits.into_iter().find(|(misfit, _)| *misfit) {
        return Err((Box::new(spec), why));
    }
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
    Ok(spec)
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
    use vmm_lib::spec::{Net, NetLimits};

    use super::*;

    fn machine(change: impl FnOnce(&mut MachineSpec)) -> MachineSpec {
        let mut spec = MachineSpec {
            memory: 324 << 20,
            cpus: 2,
            comb: None,
            ..original(&Guest::default(), Path::new("/m/vsock.sock"))
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
        assert!(refused(|spec| spec.nets = vec![several_queues()]).contains("pairs of queues"));
        assert!(
            refused(|spec| spec.watchdog = Some(vmm_lib::spec::Watchdog {
                action: vmm_lib::spec::WatchdogAction::Reset
            }))
            .contains("watchdog")
        );
    }
}
