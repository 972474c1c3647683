//! From what the pod wants to what the machine and the agent are told. Pure: everything that had to be fetched comes in.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, SecurityContext};
use kvmlet_image::{ImageConfig, ImageDevice};
use kvmlet_protocol::{ContainerSpec, Extras, Interface, Mount, Process, Resources, Rlimit, RootFs, SandboxSpec, User, VolumeSpec};
use vmm_lib::boot::with_console;
use vmm_lib::spec::{
    Boot, Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, MachineSpec, Net, NetLimits, Pmem, SPEC_VERSION, Serial, Share, Vsock,
    Watchdog, WatchdogAction,
};

use crate::{
    config::{Guest, Machines},
    desired::{DesiredContainer, DesiredPod},
    env::Env,
    names::{self, Dns},
    quantity::Quantity,
    size::Size,
    sub_path::sub_path,
    template,
};

/// Bytes of images that a pod's guest reads in place: each costs it a 64th of its length in page descriptors.
const IN_PLACE: u64 = 1 << 30;
/// virtio-blk serial of the scratch disk.
pub const SCRATCH: &str = "scratch";
/// The default capabilities of container runtimes (moby's and containerd's list).
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// All capabilities of the guest's kernel, for `ALL`.
const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
];

/// Pairs of queues of a pod's network interface: one for each of its processors, as far as the configuration goes.
pub fn network_queues(machines: &Machines, size: Size) -> u32 {
    u32::from(machines.network_queues.min(size.cpus).max(1))
}

/// The machine of a pod. `images` are its distinct images in the order of their devices; the tap is passed descriptor 0,
/// the sockets of the shares of these tags are those behind it.
pub fn machine(
    pod: &DesiredPod,
    size: Size,
    (guest, machines): (&Guest, &Machines),
    images: &[&ImageDevice],
    net: Option<([u8; 6], u16, NetLimits)>,
    dir: &Path,
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
    disks.push(Disk {
        serial: SCRATCH.into(),
        extents: vec![Extent {
            file: FileSource::Path(scratch_path(dir)),
            offset: 0,
            length: size.scratch,
        }],
        read_only: false,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    });
    let line = template::guest_command_line(guest);
    let mut command_line = if guest.serial { with_console(&line) } else { line };
    let watchdog = (machines.watchdog_seconds > 0).then(|| {
        // How long is the driver's to know; the agent finds it there.
        command_line.push_str(&format!(" i6300esb.heartbeat={}", machines.watchdog_seconds));
        Watchdog {
            action: WatchdogAction::Reset,
        }
    });
    MachineSpec {
        version: SPEC_VERSION,
        name: format!("{}/{}", pod.namespace, pod.name),
        cpus: size.cpus,
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
        hotplug: None,
        serial: guest.serial.then(|| Serial {
            output: FileSource::Path(dir.join("console.log")),
            input: None,
        }),
        comb: None,
        restore: None,
        pmem_room: 0,
        dirty_log: false,
        console: None,
        watchdog,
        count_exits: false,
    }
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

/// A container's specification; the error is the sentence of a CreateContainerConfigError.
pub fn container(
    pod: &DesiredPod,
    desired: &DesiredContainer,
    id: &str,
    device: String,
    image: &ImageConfig,
    own_env: &Env,
    hostname: &str,
) -> Result<ContainerSpec, String> {
    let spec = pod.spec_of(desired);
    let (args, env) = crate::env::process(pod, desired, image, own_env, hostname);
    if args.is_empty() {
        return Err(format!(
            "no command specified: image {:?} has neither ENTRYPOINT nor CMD, and the container names no command",
            desired.image
        ));
    }
    let security = spec.security_context.clone().unwrap_or_default();
    let user = user(pod, desired, &security, image)?;
    let privileges = security.allow_privilege_escalation.unwrap_or(true);
    Ok(ContainerSpec {
        id: id.into(),
        name: desired.name.clone(),
        root: RootFs {
            device,
            read_only: security.read_only_root_filesystem.unwrap_or(false),
        },
        process: Process {
            args,
            env,
            cwd: spec
                .working_dir
                .clone()
                .filter(|d| !d.is_empty())
                .unwrap_or_else(|| image.working_dir.clone()),
            user,
            capabilities: capabilities(&security),
            no_new_privs: !privileges,
            seccomp: seccomp(pod, &security),
            rlimits: vec![Rlimit {
                name: "RLIMIT_NOFILE".into(),
                soft: 1024 * 1024,
                hard: 1024 * 1024,
            }],
            oom_score_adj: 0,
        },
        mounts: mounts(spec, own_env)?,
        resources: resources(desired),
        termination_message_path: spec
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".into()),
        termination_message_from_log: spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        stdin: spec.stdin.unwrap_or(false),
    })
}

/// What a container has besides its specification; `target` is the identifier of the one whose processes it shares.
pub fn extras(pod: &DesiredPod, desired: &DesiredContainer, target: Option<String>) -> Extras {
    let spec = pod.spec_of(desired);
    let security = spec.security_context.as_ref();
    let of_pod = pod.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    Extras {
        stdin_once: spec.stdin.unwrap_or(false) && spec.stdin_once.unwrap_or(false),
        terminal: spec.tty.unwrap_or(false),
        processes_of: target,
        privileged: security.is_some_and(is_privileged),
        unmasked: security.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
        strict_groups: of_pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict"),
    }
}

fn is_privileged(security: &SecurityContext) -> bool {
    security.privileged.unwrap_or(false)
}

fn user(pod: &DesiredPod, desired: &DesiredContainer, security: &SecurityContext, image: &ImageConfig) -> Result<User, String> {
    let of_pod = pod.pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let run_as = security.run_as_user.or(of_pod.run_as_user);
    let text = match run_as {
        Some(uid) => uid.to_string(),
        None => image.user.clone(),
    };
    if security.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false) {
        let name = text.split(':').next().unwrap_or_default();
        let describe = format!(
            "(pod: \"{}_{}({})\", container: {})",
            pod.name, pod.namespace, pod.uid, desired.name
        );
        match name.parse::<u32>() {
            Ok(0) if run_as.is_some() => return Err(format!("container's runAsUser breaks non-root policy {describe}")),
            Ok(0) => return Err(format!("container has runAsNonRoot and image will run as root {describe}")),
            Err(_) if name.is_empty() => return Err(format!("container has runAsNonRoot and image will run as root {describe}")),
            Err(_) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {describe}"
                ));
            }
            Ok(_) => {}
        }
    }
    let group = |g: i64| u32::try_from(g).map_err(|_| format!("group {g} is out of range"));
    let mut groups = of_pod
        .supplemental_groups
        .unwrap_or_default()
        .into_iter()
        .map(group)
        .collect::<Result<Vec<_>, _>>()?;
    groups.extend(of_pod.fs_group.map(group).transpose()?);
    Ok(User {
        user: text,
        group: security.run_as_group.or(of_pod.run_as_group).map(group).transpose()?,
        groups,
    })
}

fn capabilities(security: &SecurityContext) -> Vec<String> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let name = |c: &str| if c.starts_with("CAP_") { c.to_owned() } else { format!("CAP_{c}") };
    let (add, drop) = (asked.add.unwrap_or_default(), asked.drop.unwrap_or_default());
    let all = |list: &[String]| list.iter().any(|c| c.eq_ignore_ascii_case("ALL"));
    let mut set: Vec<String> = match (all(&add), all(&drop)) {
        // Of a privileged container nothing is taken.
        _ if is_privileged(security) => return ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
        (true, _) => ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
    };
    for c in add.iter().filter(|c| !c.eq_ignore_ascii_case("ALL")).map(|c| name(c)) {
        if !set.contains(&c) {
            set.push(c);
        }
    }
    for c in drop.iter().filter(|c| !c.eq_ignore_ascii_case("ALL")).map(|c| name(c)) {
        set.retain(|s| *s != c);
    }
    set
}

fn seccomp(pod: &DesiredPod, security: &SecurityContext) -> bool {
    if is_privileged(security) {
        return false;
    }
    let of_pod = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.seccomp_profile.as_ref());
    security
        .seccomp_profile
        .as_ref()
        .or(of_pod)
        .is_some_and(|p| p.type_ == "RuntimeDefault")
}

fn mounts(spec: &Container, env: &Env) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in spec.volume_mounts.iter().flatten() {
        mounts.push(Mount {
            volume: mount.name.clone(),
            sub_path: sub_path(mount, env)?,
            destination: mount.mount_path.clone(),
            read_only: mount.read_only.unwrap_or(false),
        });
    }
    // Shorter paths first, so that one volume can lie in another.
    mounts.sort_by_key(|m| m.destination.trim_end_matches('/').matches('/').count());
    Ok(mounts)
}

fn resources(desired: &DesiredContainer) -> Resources {
    let none = Quantity::default();
    let weight = |requests: Quantity| {
        // The kubelet's conversion of shares (2 to 262,144) to weights (1 to 10,000).
        let shares = (requests.milli_value() * 1024 / 1000).clamp(2, 262_144);
        1 + (shares - 2) * 9999 / 262_142
    };
    Resources {
        memory_max: desired.limits.memory.value(),
        cpu_quota: if desired.limits.cpu == none {
            0
        } else {
            (desired.limits.cpu.milli_value() * 100).max(1000)
        },
        cpu_weight: weight(desired.requests.cpu),
        pids_max: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn lowered(container: Value, pod_security: Value, image: &ImageConfig) -> Result<ContainerSpec, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [container], "securityContext": pod_security}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        super::container(&pod, &pod.containers[0], "id", image_name(0), image, &Vec::new(), "p")
    }

    fn image() -> ImageConfig {
        ImageConfig {
            cmd: vec!["sh".into()],
            user: "web".into(),
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        }
    }

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
            let spec = machine(&pod, size, (&guest, &machines), &[], Some(net), Path::new("/m"), &shares);
            let passed: Vec<_> = (0..queues + 2).map(FileSource::Passed).collect();
            assert_eq!(network_queues_of(&spec), passed[..queues as usize]);
            let sockets: Vec<_> = spec.shares.iter().map(|share| share.socket.clone()).collect();
            assert_eq!(sockets, passed[queues as usize..], "behind the queues");
            assert_eq!(spec.validate(passed.len()), Ok(()));
        }
    }

    /// The tap's descriptors.
    fn network_queues_of(spec: &MachineSpec) -> Vec<FileSource> {
        let net = &spec.nets[0];
        [&net.tap].into_iter().chain(&net.more_queues).cloned().collect()
    }

    #[test]
    fn the_image_speaks_where_the_pod_is_silent() {
        let spec = lowered(json!({"name": "c"}), json!({}), &image()).unwrap();
        assert_eq!(
            (spec.process.args, spec.process.cwd.as_str(), spec.process.user.user.as_str()),
            (vec!["sh".to_owned()], "/srv", "web")
        );
        assert!(spec.process.capabilities.contains(&"CAP_CHOWN".to_owned()) && !spec.process.no_new_privs);
        assert_eq!(spec.termination_message_path, "/dev/termination-log");
    }

    #[test]
    fn run_as_non_root_is_refused_with_the_kubelets_words() {
        for (user, words) in [
            (None, "image will run as root"),
            (Some("web"), "non-numeric user (web)"),
            (Some("0"), "image will run as root"),
        ] {
            let image = ImageConfig {
                user: user.unwrap_or_default().into(),
                ..image()
            };
            let error = lowered(json!({"name": "c", "securityContext": {"runAsNonRoot": true}}), json!({}), &image).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(lowered(json!({"name": "c"}), json!({"runAsNonRoot": true, "runAsUser": 7}), &image()).is_ok());
    }

    #[test]
    fn a_privileged_container_has_all_of_its_guest() {
        let c = json!({"name": "c", "securityContext": {"privileged": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}});
        let spec = lowered(c.clone(), json!({}), &image()).unwrap();
        assert_eq!(spec.process.capabilities.len(), ALL_CAPABILITIES.len());
        assert!(!spec.process.seccomp);
        let pod = json!({"spec": {"containers": [c, {"name": "d"}], "securityContext": {"supplementalGroupsPolicy": "Strict"}}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let of = |i: usize| super::extras(&pod, &pod.containers[i], None);
        assert!(of(0).privileged && of(0).strict_groups && !of(1).privileged && !of(1).unmasked);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: Value, drop: Value| {
            let c = json!({"name": "c", "securityContext": {"capabilities": {"add": add, "drop": drop}}});
            lowered(c, json!({}), &image()).unwrap().process.capabilities
        };
        assert_eq!(of(json!(["NET_ADMIN"]), json!(["ALL"])), ["CAP_NET_ADMIN"]);
        assert_eq!(of(json!(["ALL"]), json!([])).len(), ALL_CAPABILITIES.len());
        assert!(!of(json!([]), json!(["CHOWN"])).contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn limits_become_cgroup_values() {
        let c = json!({"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "32Mi"}, "requests": {"cpu": "1"}}});
        let resources = lowered(c, json!({}), &image()).unwrap().resources;
        assert_eq!(
            (resources.memory_max, resources.cpu_quota, resources.cpu_weight),
            (32 << 20, 50_000, 39)
        );
    }

    #[test]
    fn an_image_without_a_command_is_explained() {
        let error = lowered(json!({"name": "c", "image": "x"}), json!({}), &ImageConfig::default()).unwrap_err();
        assert!(error.contains("no command specified"), "{error}");
    }
}
