use std::time::Duration;

use super::*;
use crate::{NEEDED, facts::Space};

/// A host on which all is well.
fn good() -> Facts {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let there = |path: &str| (path.into(), Ok(now - Duration::from_secs(60)));
    Facts {
        architecture: "x86_64".into(),
        kernel: "6.1.0-37-amd64".into(),
        virtualization: Some("svm"),
        nested: false,
        emulated: false,
        use_emulation: false,
        product: Some("Dell Inc. PowerEdge".into()),
        user: 0,
        capabilities: (1 << 41) - 1,
        kvm: Device::Opens,
        kvm_works: Ok(()),
        tun: Device::Opens,
        open_files: 524_288,
        max_pods: 110,
        controllers: Some(["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).into()),
        io: Ok(()),
        plugins: ["bridge", "host-local", "portmap"].map(|name| (name.to_owned(), true)).into(),
        plugin_dirs: vec!["/usr/lib/cni".into(), "/opt/cni/bin".into()],
        programs: vec![("nft", true), ("mkfs.ext4", true), ("iptables", true)],
        namespaces: ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"].map(str::to_owned).into(),
        root: Some("ext4".into()),
        seccomp: true,
        security_modules: Some("lockdown,capability,landlock,yama\n".into()),
        guest_kernel: there("/usr/lib/kvmlet/vmlinux"),
        guest_initramfs: there("/usr/lib/kvmlet/initramfs.cpio"),
        program: there("/usr/bin/kvmlet-machine"),
        state_dir: "/var/lib/kvmlet".into(),
        space: Ok(Space {
            available: 40 << 30,
            total: 100 << 30,
        }),
        reserved: 1 << 30,
        now,
    }
}

/// The checks that a host fails which is good but for this change, with what they say.
fn failed(change: impl FnOnce(&mut Facts)) -> Vec<(&'static str, String)> {
    let mut facts = good();
    change(&mut facts);
    let failed = judge(&facts).into_iter().filter(|check| !check.passed);
    failed.map(|check| (check.name, check.message)).collect()
}

/// Exactly these fail, and the first says all of these words.
fn says(change: impl FnOnce(&mut Facts), names: &[&str], words: &[&str]) {
    let failed = failed(change);
    assert_eq!(failed.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names, "{failed:?}");
    assert!(
        words.iter().all(|word| failed[0].1.contains(word)),
        "not all of {words:?}: {failed:?}"
    );
}

fn refused(error: &str, mode: u32) -> Device {
    Device::Refused {
        error: error.into(),
        mode,
        owner: (0, 104),
    }
}

#[test]
fn a_good_host_passes_all_checks_and_each_says_what_was_found() {
    assert_eq!(failed(|_| {}), []);
    let checks = judge(&good());
    assert!(checks.iter().all(|check| !check.message.is_empty()), "{checks:?}");
}

#[test]
fn names_are_told_once_and_a_daemon_needs_only_what_there_is() {
    let names: Vec<_> = judge(&good()).into_iter().map(|check| check.name).collect();
    for (i, name) in names.iter().enumerate() {
        assert!(!names[..i].contains(name), "{name}");
    }
    assert!(NEEDED.iter().all(|name| names.contains(name)), "{names:?}");
}

#[test]
fn a_host_without_kvm_is_told_which_module_brings_it_or_what_is_switched_off() {
    let all = ["kvm-device", "kvm-permissions", "kvm-capabilities"];
    let none = |facts: &mut Facts| {
        facts.kvm = Device::Missing;
        facts.kvm_works = Err("/dev/kvm does not open".into());
    };
    says(none, &all, &["no /dev/kvm", "modprobe kvm_amd"]);
    let intel = |facts: &mut Facts| {
        none(facts);
        facts.virtualization = Some("vmx");
    };
    says(intel, &all, &["modprobe kvm_intel"]);
    let firmware = |facts: &mut Facts| {
        none(facts);
        facts.virtualization = None;
    };
    says(firmware, &all, &["firmware"]);
    let cloud = |facts: &mut Facts| {
        firmware(facts);
        facts.nested = true;
    };
    says(cloud, &all, &["nested virtualisation"]);
    let unloaded = |facts: &mut Facts| {
        none(facts);
        facts.kvm = refused("No such device (os error 19)", 0o660);
    };
    says(unloaded, &all, &["nothing is behind it", "modprobe kvm_amd"]);
    let other = |facts: &mut Facts| {
        none(facts);
        facts.kvm = Device::Other;
    };
    says(other, &all, &["/dev/kvm is not KVM's device", "10:232"]);
}

#[test]
fn wrong_permissions_on_kvm_are_told_with_mode_owner_and_user() {
    let names = ["kvm-permissions", "kvm-capabilities"];
    let denied = |user| {
        move |facts: &mut Facts| {
            facts.kvm = refused("Permission denied (os error 13)", 0o600);
            facts.kvm_works = Err("/dev/kvm does not open".into());
            facts.user = user;
        }
    };
    says(denied(0), &names, &["0600", "0:104", "user 0", "chmod 0660 /dev/kvm", "nodev"]);
    says(denied(1000), &names, &["user 1000", "run it as root", "group kvm"]);
    let unit = |facts: &mut Facts| {
        denied(0)(facts);
        facts.kvm = refused("Operation not permitted (os error 1)", 0o660);
    };
    says(unit, &names, &["DeviceAllow=/dev/kvm rw"]);
}

#[test]
fn a_kvm_that_lacks_something_is_told_what() {
    let old = |facts: &mut Facts| facts.kvm_works = Err("/dev/kvm lacks KVM_CAP_IRQFD, KVM_CAP_IOEVENTFD".into());
    says(old, &["kvm-capabilities"], &["KVM_CAP_IRQFD, KVM_CAP_IOEVENTFD", "newer kernel"]);
}

#[test]
fn a_low_limit_of_open_files_is_told_with_what_the_pods_need() {
    let words = ["RLIMIT_NOFILE is 1024", "110 pods", "2272", "LimitNOFILE=", "ulimit -n 2272"];
    says(|facts| facts.open_files = 1024, &["open-files"], &words);
    assert_eq!(failed(|facts| facts.open_files = 2272), []);
}

#[test]
fn control_groups_of_version_1_or_without_controllers_are_told() {
    let words = ["not cgroup v2", "systemd.unified_cgroup_hierarchy=1"];
    says(|facts| facts.controllers = None, &["cgroups"], &words);
    let without = |facts: &mut Facts| facts.controllers = Some(vec!["cpu".into(), "cpuset".into()]);
    says(without, &["cgroups"], &["lacks memory, pids", "cgroup_disable="]);
}

#[test]
fn a_host_without_taps_is_told() {
    says(|facts| facts.tun = Device::Missing, &["tun"], &["no /dev/net/tun", "modprobe tun"]);
    says(|facts| facts.tun = Device::Other, &["tun"], &["not the device of taps"]);
    let denied = |facts: &mut Facts| facts.tun = refused("Permission denied (os error 13)", 0o600);
    says(
        denied,
        &["tun"],
        &["/dev/net/tun: Permission denied", "0600", "DeviceAllow=/dev/net/tun rw"],
    );
}

#[test]
fn missing_plugins_are_named_with_where_they_were_looked_for() {
    let none = |facts: &mut Facts| {
        for (name, is_there) in &mut facts.plugins {
            *is_there = name == "portmap";
        }
    };
    let words = [
        "bridge, host-local",
        "/usr/lib/cni, /opt/cni/bin",
        "containernetworking-plugins",
        "network.pluginDirs",
    ];
    says(none, &["cni-plugins"], &words);
    says(|facts| facts.programs[1].1 = false, &["programs"], &["mkfs.ext4", "e2fsprogs"]);
}

#[test]
fn missing_artefacts_are_named_by_key_and_path() {
    let gone = || Err("No such file or directory (os error 2)".into());
    says(
        |facts| facts.guest_kernel.1 = gone(),
        &["guest-kernel"],
        &["guest.kernel", "/usr/lib/kvmlet/vmlinux", "No such file"],
    );
    says(
        |facts| facts.guest_initramfs.1 = gone(),
        &["guest-initramfs"],
        &["guest.initramfs", "initramfs.cpio"],
    );
    says(|facts| facts.program.1 = gone(), &["machine-program"], &["/usr/bin/kvmlet-machine"]);
}

#[test]
fn a_kernel_is_too_old_by_number_and_not_by_letter() {
    for old in ["5.15.0-1-generic", "6.0.12", "4.18.0-553.el8"] {
        says(|facts| facts.kernel = old.into(), &["kernel"], &[old, "6.1 or newer"]);
    }
    for new in ["6.1.0", "6.12.3+deb13", "10.0-rc1"] {
        assert_eq!(failed(|facts| facts.kernel = new.into()), [], "{new}");
    }
    says(|facts| facts.kernel = "six".into(), &["kernel"], &["\"six\""]);
    says(|facts| facts.architecture = "aarch64".into(), &["architecture"], &["aarch64"]);
}

#[test]
fn who_runs_it_is_told_which_capabilities_are_missing() {
    let nobody = |facts: &mut Facts| {
        facts.user = 65534;
        facts.capabilities = 0;
    };
    says(
        nobody,
        &["privileges"],
        &["user 65534 lacks CAP_CHOWN", "CAP_SYS_ADMIN", "sudo kvmlet preflight"],
    );
    let cut = |facts: &mut Facts| facts.capabilities &= !(1 << 21);
    says(cut, &["privileges"], &["user 0 lacks CAP_SYS_ADMIN:", "CapabilityBoundingSet="]);
}

#[test]
fn a_kernel_that_cannot_confine_is_told_and_a_missing_second_wall_is_a_note() {
    let no_pids = |facts: &mut Facts| facts.namespaces.retain(|name| name != "pid");
    says(no_pids, &["namespaces"], &["no pid namespaces"]);
    let initramfs = |facts: &mut Facts| facts.root = Some("rootfs".into());
    says(initramfs, &["namespaces"], &["initramfs", "pivot_root"]);
    says(|facts| facts.seccomp = false, &["seccomp"], &["CONFIG_SECCOMP_FILTER"]);
    let mut facts = good();
    facts.security_modules = Some("capability,notlandlock\n".into());
    let landlock = judge(&facts).into_iter().find(|check| check.name == "landlock").unwrap();
    assert!(landlock.passed && landlock.message.contains("lsm="), "{landlock:?}");
}

#[test]
fn a_host_that_is_a_guest_passes_and_is_told_what_it_costs() {
    let mut facts = good();
    facts.nested = true;
    facts.product = Some("QEMU Standard PC".into());
    let nested = judge(&facts)
        .into_iter()
        .find(|check| check.name == "nested-virtualization")
        .unwrap();
    assert!(nested.passed, "{nested:?}");
    assert!(nested.message.contains("itself a guest (QEMU Standard PC)") && nested.message.contains("longer than on bare metal"));
    assert_eq!(nesting(&facts), Some(nested.message));
    facts.kvm_works = Err("no".into());
    assert_eq!(nesting(&facts), None, "it runs no machines");
}

#[test]
fn an_emulated_host_passes_only_where_that_will_do() {
    says(
        |facts| facts.emulated = true,
        &["emulation"],
        &["emulated by software", "set useEmulation in the KvmletRuntime"],
    );
    let mut facts = good();
    (facts.emulated, facts.use_emulation) = (true, true);
    let emulation = judge(&facts).into_iter().find(|check| check.name == "emulation").unwrap();
    assert!(emulation.passed && emulation.message.contains("slower"), "{emulation:?}");
}

#[test]
fn a_full_disk_and_a_clock_of_the_past_are_told() {
    let full = |facts: &mut Facts| {
        facts.space = Ok(Space {
            available: 300 << 20,
            total: 10 << 30,
        });
    };
    says(
        full,
        &["disk-space"],
        &["300 MiB of 10240 MiB", "/var/lib/kvmlet", "1280 MiB are needed"],
    );
    says(
        |facts| facts.now -= Duration::from_secs(3660),
        &["clock"],
        &["3600 s behind", "timedatectl"],
    );
}

#[test]
fn limits_that_cannot_be_had_are_told_by_their_key() {
    says(
        |facts| facts.io = Err("no io controller".into()),
        &["machine-io"],
        &["machines.io", "no io controller"],
    );
}
