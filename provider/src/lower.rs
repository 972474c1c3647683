//! From what the pod wants to what the machine ([`machine()`]) and the agent ([`sandbox`], [`container()`]) are told. Pure: everything that had to be
//! fetched comes in.

mod container;
mod security;

use std::path::{Path, PathBuf};

use kvmlet_image::ImageDevice;
use kvmlet_protocol::{Interface, SandboxSpec, VolumeSpec};
use vmm_lib::boot::with_console;
use vmm_lib::spec::{
    Boot, Disk, DiskEngine, DiskFormat, Extent, FileSource, Hotplug, Limits, MachineSpec, Net, NetLimits, Pmem, SPEC_VERSION, Serial,
    Share, Vsock, Watchdog, WatchdogAction,
};

pub use self::container::{container, extras, pod_limits, resources, seccomp_profile};
use crate::{
    config::{Guest, Machines},
    desired::DesiredPod,
    names::{self, Dns},
    size::Size,
    template,
};

/// Bytes of images that a pod's guest reads in place: each costs it a 64th of its length in page descriptors.
pub const IN_PLACE: u64 = 1 << 30;
/// virtio-blk serial of the scratch disk.
pub const SCRATCH: &str = "scratch";
/// Pairs of queues of a pod's network interface: one for each of its processors, as far as the configuration goes.
pub fn network_queues(machines: &Machines, size: Size) -> u32 {
    u32::from(machines.network_queues.min(size.cpus).max(1))
}

/// The machine of a pod, which can grow to so many processors and by so many bytes of memory. `images` are its distinct images in the order of their devices; the tap is passed descriptor 0,
/// the sockets of the shares of these tags are those behind it.
pub fn machine(
    pod: &DesiredPod,
    (size, (cpus, more)): (Size, (u8, u64)),
    (guest, machines): (&Guest, &Machines),
    images: &[&ImageDevice],
    net: Option<([u8; 6], u16, NetLimits)>,
    (dir, scratch): (&Path, DiskFormat),
    shares: &[String],
) -> MachineSpec {
    let in_place = in_place(images);
    let queues = network_queues(machines, size);
    let (mut disks, mut pmems) = (Vec::new(), Vec::new());
    for (index, image) in images.iter().enumerate() {
        let extents = image.extents.iter().map(|e| Extent {
            file: FileSource::Path(e.path.clone()),
            offset: e.offset,
            length: e.length,
        });
        let (name, extents) = (image_name(index), extents.collect());
        if in_place.contains(&index) {
            pmems.push(Pmem { name, extents });
        } else {
            disks.push(Disk {
                serial: name,
                extents,
                read_only: true,
                format: DiskFormat::Raw,
                limits: Limits::default(),
                engine: DiskEngine::Calls,
            });
        }
    }
    disks.push(scratch_disk(dir, size.scratch, scratch));
    let line = template::guest_command_line(guest, machines);
    let mut command_line = if guest.serial { with_console(&line) } else { line };
    if cpus > size.cpus {
        // The agent starts them when the pod is resized.
        command_line.push_str(&format!(" maxcpus={}", size.cpus));
    }
    MachineSpec {
        version: SPEC_VERSION,
        name: format!("{}/{}", pod.namespace, pod.name),
        cpus,
        memory: size.memory,
        boot: Boot {
            kernel: FileSource::Path(guest.kernel.clone()),
            initramfs: Some(FileSource::Path(guest.initramfs.clone())),
            command_line,
        },
        disks,
        pmems,
        shares: shares
            .iter()
            .zip(net.map_or(1, |_| queues)..)
            .map(|(tag, number)| Share {
                tag: tag.clone(),
                socket: FileSource::Passed(number),
            })
            .collect(),
        nets: net
            .map(|(mac, mtu, limits)| Net {
                tap: FileSource::Passed(0),
                more_queues: (1..queues).map(FileSource::Passed).collect(),
                mac,
                mtu,
                limits,
            })
            .into_iter()
            .collect(),
        vsock: Some(Vsock {
            cid: template::GUEST_CID,
            socket: FileSource::Path(dir.join("vsock.sock")),
        }),
        rng: true,
        balloon: true,
        hotplug: (more > 0).then_some(Hotplug { size: more, requested: 0 }),
        serial: guest.serial.then(|| Serial {
            output: FileSource::Path(dir.join("console.log")),
            input: None,
        }),
        comb: None,
        restore: None,
        pmem_room: 0,
        dirty_log: false,
        console: None,
        watchdog: watchdog(machines),
        count_exits: false,
    }
}

/// The watchdog of a node's machines, if they have one.
pub fn watchdog(machines: &Machines) -> Option<Watchdog> {
    (machines.watchdog_seconds > 0).then_some(Watchdog {
        action: WatchdogAction::Reset,
    })
}

/// Name of the image of this number: of its virtio-pmem device, or the serial of its disk.
pub fn image_name(number: usize) -> String {
    format!("img{number}")
}

/// Which of a pod's images its guest reads in place (virtio-pmem, DAX), so that pods share the host's pages of them: in order, while all
/// together stay within [`IN_PLACE`]; the others are disks.
pub fn in_place(images: &[&ImageDevice]) -> Vec<usize> {
    let (mut found, mut left) = (Vec::new(), IN_PLACE);
    for (index, image) in images.iter().enumerate() {
        if let Some(rest) = left.checked_sub(image.size) {
            found.push(index);
            left = rest;
        }
    }
    found
}

/// A machine's scratch disk, of `size` bytes.
pub fn scratch_disk(dir: &Path, size: u64, format: DiskFormat) -> Disk {
    Disk {
        serial: SCRATCH.into(),
        extents: vec![Extent {
            file: FileSource::Path(scratch_path(dir)),
            offset: 0,
            length: size,
        }],
        read_only: false,
        format,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

/// Where a machine's scratch disk is.
pub fn scratch_path(dir: &Path) -> PathBuf {
    dir.join("scratch.img")
}

/// The pod's surroundings in its guest.
pub fn sandbox(
    pod: &DesiredPod,
    dns: &Dns,
    interfaces: Vec<Interface>,
    ips: &[String],
    volumes: Vec<VolumeSpec>,
    pmems: &[usize],
    now: u64,
) -> SandboxSpec {
    let (_, domain) = names::hostname(pod, &dns.domain);
    SandboxSpec {
        hostname: names::kernel_hostname(pod, &dns.domain),
        domain,
        hosts: names::hosts(pod, &dns.domain, ips),
        resolv_conf: names::resolv_conf(pod, dns),
        interfaces,
        volumes,
        scratch: SCRATCH.into(),
        pmems: pmems.iter().copied().map(image_name).collect(),
        time: now,
        sysctls: sysctls(pod),
        share_processes: pod.pod.spec.as_ref().and_then(|s| s.share_process_namespace).unwrap_or(false),
        memory_max: 0,
    }
}

/// Kernel parameters. All of them are the pod's own kernel's: none is unsafe for anybody else, so none is refused here.
fn sysctls(pod: &DesiredPod) -> Vec<(String, String)> {
    let of_pod = pod.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let asked = of_pod.and_then(|s| s.sysctls.as_ref()).into_iter().flatten();
    asked.map(|s| (s.name.clone(), s.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn images_are_read_in_place_while_there_is_room_and_are_disks_beyond() {
        let of = |size| ImageDevice { extents: vec![], size };
        let images = [of(600 << 20), of(500 << 20), of(424 << 20), of(2 << 20)];
        let images: Vec<&ImageDevice> = images.iter().collect();
        assert_eq!(in_place(&images), [0, 2]);
        assert_eq!(in_place(&[]), [0usize; 0]);
    }

    #[test]
    fn a_network_has_a_pair_of_queues_for_each_processor_as_far_as_the_node_has_them() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let plain = crate::size::size(&pod, &crate::config::PodDefaults::default());
        let net = ([2, 0, 0, 0, 0, 1], 1500, NetLimits::default());
        for (network_queues, cpus, queues) in [(1, 4, 1), (8, 1, 1), (4, 2, 2), (4, 4, 4), (8, 16, 8)] {
            let (size, machines) = (
                Size { cpus, ..plain },
                Machines {
                    network_queues,
                    ..Machines::default()
                },
            );
            let guest = Guest::default();
            let shares = ["a".to_owned(), "b".to_owned()];
            let spec = machine(
                &pod,
                (size, (cpus, 0)),
                (&guest, &machines),
                &[],
                Some(net),
                (Path::new("/m"), DiskFormat::Qcow2),
                &shares,
            );
            let passed: Vec<_> = (0..queues + 2).map(FileSource::Passed).collect();
            assert_eq!(network_queues_of(&spec), passed[..queues as usize]);
            let sockets: Vec<_> = spec.shares.iter().map(|share| share.socket.clone()).collect();
            assert_eq!(sockets, passed[queues as usize..], "behind the queues");
            assert_eq!(spec.disks.last().map(|disk| disk.format), Some(DiskFormat::Qcow2));
            assert_eq!(spec.validate(passed.len()), Ok(()));
        }
    }

    #[test]
    fn a_machine_that_can_grow_begins_with_what_its_pod_has() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let size = crate::size::size(&pod, &crate::config::PodDefaults::default());
        let of = |room| {
            machine(
                &pod,
                (size, room),
                (&Guest::default(), &Machines::default()),
                &[],
                None,
                (Path::new("/m"), DiskFormat::Raw),
                &[],
            )
        };
        let spec = of((4, 1 << 30));
        assert_eq!((spec.cpus, spec.memory), (4, size.memory));
        assert!(spec.boot.command_line.ends_with(" maxcpus=1"), "{}", spec.boot.command_line);
        assert_eq!(
            spec.hotplug,
            Some(Hotplug {
                size: 1 << 30,
                requested: 0
            })
        );
        assert_eq!(spec.validate(0), Ok(()));
        let spec = of((1, 0));
        assert!(spec.hotplug.is_none() && !spec.boot.command_line.contains("maxcpus"));
    }

    /// The tap's descriptors.
    fn network_queues_of(spec: &MachineSpec) -> Vec<FileSource> {
        let net = &spec.nets[0];
        [&net.tap].into_iter().chain(&net.more_queues).cloned().collect()
    }
}
