//! What is made of the facts: a pure function a check. Each message says what was found, and where that will not do, what to do about it.

use std::time::SystemTime;

use crate::{Check, Facts, facts::Device};

/// Names of checks that others ask about.
pub const KVM_DEVICE: &str = "kvm-device";
/// `/dev/kvm` opens.
pub const KVM_PERMISSIONS: &str = "kvm-permissions";
/// KVM has what machines need.
pub const KVM_CAPABILITIES: &str = "kvm-capabilities";
/// The guest's kernel is there.
pub const GUEST_KERNEL: &str = "guest-kernel";
/// The guest's initramfs is there.
pub const GUEST_INITRAMFS: &str = "guest-initramfs";
/// `machines.io` can be had.
pub const MACHINE_IO: &str = "machine-io";

/// The oldest kernel whose KVM, control groups and pidfds are as they are used.
const KERNEL: (u32, u32) = (6, 1);
/// Open files of a daemon without pods, and for each pod: its process, events, agent, sessions, logs.
const FILES: (u64, u64) = (512, 16);
/// Controllers that hold a machine to its size.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Namespaces that a machine's process has of its own.
const NAMESPACES: [&str; 5] = ["ipc", "mnt", "net", "pid", "uts"];
/// Capabilities without which no machine is confined and no network made, with their numbers (linux/capability.h).
const CAPABILITIES: [(u32, &str); 8] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
];
/// Room for the node's template and a first image, bytes.
const ROOM: u64 = 256 << 20;

type Judgement = fn(&Facts) -> Result<String, String>;

/// In the order in which one mends a host.
const CHECKS: [(&str, Judgement); 22] = [
    ("architecture", architecture),
    ("kernel", kernel),
    ("privileges", privileges),
    (KVM_DEVICE, kvm_device),
    (KVM_PERMISSIONS, kvm_permissions),
    (KVM_CAPABILITIES, kvm_capabilities),
    ("nested-virtualization", nested),
    ("emulation", emulation),
    ("open-files", open_files),
    ("cgroups", cgroups),
    (MACHINE_IO, machine_io),
    ("namespaces", namespaces),
    ("seccomp", seccomp),
    ("landlock", landlock),
    ("tun", tun),
    ("cni-plugins", cni_plugins),
    ("programs", programs),
    (GUEST_KERNEL, |facts| artefact("guest.kernel", &facts.guest_kernel)),
    (GUEST_INITRAMFS, |facts| artefact("guest.initramfs", &facts.guest_initramfs)),
    ("machine-program", |facts| artefact("the program of machines", &facts.program)),
    ("disk-space", disk_space),
    ("clock", clock),
];

/// All checks but the canary, in order.
pub fn judge(facts: &Facts) -> Vec<Check> {
    let one = |(name, judgement): &(&'static str, Judgement)| Check::new(name, judgement(facts));
    CHECKS.iter().map(one).collect()
}

fn architecture(facts: &Facts) -> Result<String, String> {
    match facts.architecture.as_str() {
        "x86_64" => Ok("x86_64".into()),
        other => Err(format!("this host is {other}, and kvmlet runs on x86_64 only")),
    }
}

fn kernel(facts: &Facts) -> Result<String, String> {
    let mut numbers = facts.kernel.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!(
            "{:?} is no Linux version that is known: 6.1 or newer is needed",
            facts.kernel
        ));
    };
    if (major, minor) < KERNEL {
        return Err(format!(
            "Linux {} is too old: boot 6.1 or newer (Debian 12, Ubuntu 24.04, RHEL 10 have one)",
            facts.kernel
        ));
    }
    Ok(format!("Linux {}", facts.kernel))
}

fn privileges(facts: &Facts) -> Result<String, String> {
    let lacks = |(number, _): &&(u32, &str)| facts.capabilities & (1 << number) == 0;
    let missing: Vec<_> = CAPABILITIES.iter().filter(lacks).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(format!("user {} has the capabilities of a node's daemon", facts.user));
    }
    let remedy = match facts.user {
        0 => "give them to it (CapabilityBoundingSet= of its unit, capabilities of its container)",
        _ => "run it as root (`sudo kvmlet preflight`)",
    };
    Err(format!("user {} lacks {}: {remedy}", facts.user, missing.join(", ")))
}

/// How KVM comes to a host whose processor says this.
fn load_kvm(facts: &Facts) -> String {
    match facts.virtualization {
        Some("vmx") => "`modprobe kvm_intel`".into(),
        Some(_) => "`modprobe kvm_amd`".into(),
        None if facts.nested => {
            "this host is a guest whose processor has neither vmx nor svm: switch nested virtualisation on where it is made, \
             or take a kind of machine that has it, then `modprobe kvm_intel` or `kvm_amd`"
                .into()
        }
        None => "the processor shows neither vmx nor svm: switch VT-x or AMD-V on in the firmware, then `modprobe kvm_intel` or `kvm_amd`"
            .into(),
    }
}

fn kvm_device(facts: &Facts) -> Result<String, String> {
    match &facts.kvm {
        Device::Missing => Err(format!("there is no /dev/kvm: {}", load_kvm(facts))),
        Device::Other => Err(
            "/dev/kvm is not KVM's device (character device 10:232): remove it, then `modprobe kvm`, or `mknod /dev/kvm c 10 232`".into(),
        ),
        Device::Refused { error, .. } if is_no_driver(error) => {
            Err(format!("open /dev/kvm: {error}: nothing is behind it. {}", load_kvm(facts)))
        }
        Device::Opens | Device::Refused { .. } => Ok("/dev/kvm is there".into()),
    }
}

/// ENODEV and ENXIO.
fn is_no_driver(error: &str) -> bool {
    error.starts_with("No such device")
}

fn kvm_permissions(facts: &Facts) -> Result<String, String> {
    match &facts.kvm {
        Device::Opens => Ok("/dev/kvm can be read and written".into()),
        Device::Missing | Device::Other => Err("there is no /dev/kvm to open: see kvm-device".into()),
        Device::Refused { error, .. } if is_no_driver(error) => Err("nothing is behind /dev/kvm: see kvm-device".into()),
        Device::Refused {
            error,
            mode,
            owner: (user, group),
        } => {
            let remedy = if error.starts_with("Operation not permitted") {
                "a device control group forbids it: DeviceAllow=/dev/kvm rw in the unit, or the device in the container's list"
            } else if facts.user == 0 {
                "`chown root:kvm /dev/kvm && chmod 0660 /dev/kvm`, and see that it is on no file system with nodev"
            } else {
                "run it as root, or `chown root:kvm /dev/kvm && chmod 0660 /dev/kvm` and put the user into the group kvm"
            };
            Err(format!(
                "open /dev/kvm: {error} (its mode is {mode:04o}, its owner {user}:{group}, and this is user {}): {remedy}",
                facts.user
            ))
        }
    }
}

fn kvm_capabilities(facts: &Facts) -> Result<String, String> {
    let advice = |why: &String| match facts.kvm {
        Device::Opens => format!("{why}: boot a newer kernel, or one whose KVM is not cut down"),
        _ => format!("{why}: see kvm-device and kvm-permissions"),
    };
    facts
        .kvm_works
        .as_ref()
        .map(|()| "KVM has all that machines need".into())
        .map_err(advice)
}

/// A note where emulated hosts will do, as to whoever asks on the host itself.
fn emulation(facts: &Facts) -> Result<String, String> {
    match (facts.emulated, facts.use_emulation) {
        (false, _) => Ok("this host's processor is no emulated one".into()),
        (true, true) => Ok("this host's processor is emulated by software (QEMU's TCG): tens of times slower than a real one".into()),
        (true, false) => Err("this host's processor is emulated by software (QEMU's TCG), tens of times slower than a real one: take a host with KVM underneath, or set useEmulation in the KvmletRuntime"
            .into()),
    }
}

/// A note: nested hosts work.
fn nested(facts: &Facts) -> Result<String, String> {
    Ok(if facts.nested { cost(facts) } else { NO_GUEST.into() })
}

/// A host on bare metal.
const NO_GUEST: &str = "this host is no guest itself";

fn cost(facts: &Facts) -> String {
    let product = facts.product.as_deref().unwrap_or("an unknown hypervisor");
    format!(
        "this host is itself a guest ({product}): whatever makes a machine leave its guest (boot, disk, network, timers) is carried out by that \
         hypervisor as well, and takes longer than on bare metal"
    )
}

/// What nesting costs on a host whose KVM works although it is itself a guest; nothing on any other.
pub fn nesting(facts: &Facts) -> Option<String> {
    (facts.nested && facts.kvm_works.is_ok()).then(|| cost(facts))
}

fn open_files(facts: &Facts) -> Result<String, String> {
    let (base, each) = FILES;
    let needed = base + each * u64::from(facts.max_pods);
    let limit = facts.open_files;
    if limit < needed {
        return Err(format!(
            "RLIMIT_NOFILE is {limit}, and {} pods (maxPods) need {needed}: set LimitNOFILE=1048576 in the unit, or `ulimit -n {needed}` before the daemon",
            facts.max_pods
        ));
    }
    Ok(format!("RLIMIT_NOFILE is {limit}, {} pods need {needed}", facts.max_pods))
}

fn cgroups(facts: &Facts) -> Result<String, String> {
    let Some(there) = &facts.controllers else {
        return Err(
            "/sys/fs/cgroup is not cgroup v2: boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, or mount cgroup2 there".into(),
        );
    };
    let missing: Vec<_> = CONTROLLERS
        .into_iter()
        .filter(|name| !there.iter().any(|known| known == name))
        .collect();
    if missing.is_empty() {
        return Ok(format!("cgroup v2 with {}", CONTROLLERS.join(", ")));
    }
    Err(format!(
        "/sys/fs/cgroup/cgroup.controllers lacks {}, and machines would not be held to their size: take cgroup_disable= and \
         systemd.unified_cgroup_hierarchy=0 from the kernel's command line, and see that no cgroup v1 is mounted with them",
        missing.join(", ")
    ))
}

fn machine_io(facts: &Facts) -> Result<String, String> {
    let advice =
        |why: &String| format!("machines.io cannot be had: {why}. Take it out of the configuration, or give this host what it needs");
    facts
        .io
        .as_ref()
        .map(|()| "machines can be held to machines.io".into())
        .map_err(advice)
}

fn namespaces(facts: &Facts) -> Result<String, String> {
    let missing: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|name| !facts.namespaces.iter().any(|known| known == name))
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "the kernel has no {} namespaces, and no machine can be confined: boot a kernel with CONFIG_NAMESPACES and all of its kinds",
            missing.join(", ")
        ));
    }
    if facts.root.as_deref() == Some("rootfs") {
        return Err(
            "this host runs from its initramfs, which a machine's process cannot leave (pivot_root): boot it from a file system of its own"
                .into(),
        );
    }
    Ok("a machine's process can have namespaces and a root of its own".into())
}

fn seccomp(facts: &Facts) -> Result<String, String> {
    match facts.seccomp {
        true => Ok("the kernel filters system calls".into()),
        false => Err("the kernel does not filter system calls, and no machine can be confined: boot one with CONFIG_SECCOMP_FILTER".into()),
    }
}

/// A note: it is a second wall.
fn landlock(facts: &Facts) -> Result<String, String> {
    Ok(match &facts.security_modules {
        Some(modules) if modules.trim().split(',').any(|name| name == "landlock") => "Landlock is on".into(),
        Some(_) => "Landlock is off: machines lack a second wall behind their empty root. To have it, put landlock into lsm= on the kernel's command line".into(),
        None => "whether Landlock is on cannot be seen (no securityfs); machines use it where it is".into(),
    })
}

fn tun(facts: &Facts) -> Result<String, String> {
    match &facts.tun {
        Device::Opens => Ok("/dev/net/tun can be read and written".into()),
        Device::Missing => Err(
            "there is no /dev/net/tun, and pods would have no network: `modprobe tun`, or `mkdir -p /dev/net && mknod /dev/net/tun c 10 200`".into(),
        ),
        Device::Other => Err("/dev/net/tun is not the device of taps (character device 10:200): remove it, then `modprobe tun`".into()),
        Device::Refused { error, mode, .. } => Err(format!(
            "open /dev/net/tun: {error} (its mode is {mode:04o}): `modprobe tun`; run it as root; DeviceAllow=/dev/net/tun rw in the unit"
        )),
    }
}

fn cni_plugins(facts: &Facts) -> Result<String, String> {
    let dirs: Vec<_> = facts.plugin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let dirs = dirs.join(", ");
    let missing: Vec<_> = facts
        .plugins
        .iter()
        .filter(|(_, is_there)| !is_there)
        .map(|(name, _)| name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(format!(
            "CNI plugins are in {dirs}; their configuration is kvmlet's own, nothing of /etc/cni/net.d is read"
        ));
    }
    Err(format!(
        "CNI plugins {} are in none of {dirs}: `apt install containernetworking-plugins`, or name their directory in network.pluginDirs",
        missing.join(", ")
    ))
}

fn programs(facts: &Facts) -> Result<String, String> {
    let missing: Vec<_> = facts
        .programs
        .iter()
        .filter(|(_, is_there)| !is_there)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok("nft, mkfs.ext4 and iptables are there".into());
    }
    Err(format!(
        "{} cannot be found in PATH: `apt install nftables e2fsprogs iptables`",
        missing.join(", ")
    ))
}

fn artefact(what: &str, (path, written): &(std::path::PathBuf, Result<SystemTime, String>)) -> Result<String, String> {
    let path = path.display();
    match written {
        Ok(_) => Ok(format!("{path} is there")),
        Err(error) => Err(format!(
            "{what}: open {path}: {error}: install the package kvmlet, which has it, or set its path in the configuration"
        )),
    }
}

fn disk_space(facts: &Facts) -> Result<String, String> {
    let directory = facts.state_dir.display();
    let space = facts
        .space
        .as_ref()
        .map_err(|error| format!("{error}: give stateDir ({directory}) a file system"))?;
    let needed = facts.reserved + ROOM;
    let (available, total) = (space.available >> 20, space.total >> 20);
    if space.available < needed {
        return Err(format!(
            "{available} MiB of {total} MiB are free for {directory} (stateDir), and {} MiB are needed: make room, or set stateDir to a larger disk",
            needed >> 20
        ));
    }
    Ok(format!("{available} MiB of {total} MiB are free for {directory}"))
}

/// A clock that is before what lies on the disk would have every certificate be of the future.
fn clock(facts: &Facts) -> Result<String, String> {
    let written = [&facts.guest_kernel.1, &facts.guest_initramfs.1, &facts.program.1];
    let newest = written.into_iter().flatten().max();
    match newest.and_then(|newest| newest.duration_since(facts.now).ok()) {
        Some(behind) if behind.as_secs() > 0 => Err(format!(
            "the clock is {} s behind files that kvmlet was installed with, and certificates would not count: `timedatectl set-ntp true`, or set it",
            behind.as_secs()
        )),
        _ => Ok("the clock is not behind".into()),
    }
}

#[cfg(test)]
mod tests;
