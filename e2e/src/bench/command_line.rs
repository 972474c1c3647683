//! How each monitor is told to start the same machine: our kernel, an initramfs, one processor, vsock, entropy, and a disk or a network where
//! asked. Text only; nothing is started here.

use super::FOLDER;
use crate::node;

/// Of all guests, MiB.
pub(super) const MEMORY: u64 = 128;
/// The peer's context identifier; kvmlet's machines have none on the host.
const CID: u32 = 4711;
pub(super) const KERNEL: &str = "/usr/lib/kvmlet/vmlinux";
pub(super) const INITRAMFS: &str = "/usr/lib/kvmlet/initramfs.cpio";
/// As vmm-lib's own, which this crate does not link.
pub(super) const COMMAND_LINE: &str = "quiet nomodule dummy.numdummies=0 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=noearly \
                            random.trust_cpu=on cryptomgr.notests no_timer_check panic=-1 reboot=acpi";

/// What a machine has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) initramfs: &'a str,
    /// A raw disk's file.
    pub(super) disk: Option<&'a str>,
    /// The tap to be made.
    pub(super) tap: Option<&'a str>,
}

impl Machine<'_> {
    /// The agent's, without more.
    pub(super) const PLAIN: Machine<'static> = Machine {
        initramfs: INITRAMFS,
        disk: None,
        tap: None,
    };
}

/// A monitor's command line, and the way to its guest.
#[derive(Debug, Clone)]
pub(super) struct CommandLine {
    pub(super) way: String,
    pub(super) argv: Vec<String>,
}

/// Words to strings.
pub(super) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// `kvmlet-machine vm --probe` with the agent's initramfs, which says itself when the agent has answered, and goes on.
pub(super) fn held(more: &[&str]) -> Vec<String> {
    let memory = MEMORY.to_string();
    let mut argv = words(&[
        node::MACHINE,
        "vm",
        "--probe",
        "--hold",
        "--kernel",
        KERNEL,
        "--initramfs",
        INITRAMFS,
    ]);
    argv.extend(words(&["--memory", &memory]));
    argv.extend(words(more));
    argv
}

/// kvmlet's, whose client is another.
pub(super) fn kvmlet(machine: Machine<'_>) -> CommandLine {
    let socket = format!("{FOLDER}/vsock.sock");
    let memory = MEMORY.to_string();
    let mut argv = words(&[node::MACHINE, "vm", "--probe", "--kernel", KERNEL, "--initramfs", machine.initramfs]);
    argv.extend(words(&["--memory", &memory, "--vsock", &socket]));
    for (option, value) in [("--scratch", machine.disk), ("--tap", machine.tap)] {
        argv.extend(value.into_iter().flat_map(|value| words(&[option, value])));
    }
    CommandLine {
        way: format!("unix:{socket}"),
        argv,
    }
}

/// QEMU's microvm. `drive` and `netdev` are added to these options of its.
pub(super) fn qemu(machine: Machine<'_>, drive: &str, netdev: &str) -> CommandLine {
    let memory = format!("{MEMORY}M");
    let vsock = format!("vhost-vsock-pci-non-transitional,guest-cid={CID}");
    let mut argv = words(&[
        "qemu-system-x86_64",
        "-M",
        "microvm,accel=kvm,acpi=on,pcie=on,pic=off,pit=off,rtc=off,isa-serial=off",
    ]);
    argv.extend(words(&[
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
    ]));
    argv.extend(words(&["-display", "none", "-kernel", KERNEL, "-initrd", machine.initramfs]));
    argv.extend(words(&["-append", COMMAND_LINE]));
    argv.extend(words(&["-device", "virtio-rng-pci-non-transitional", "-device", &vsock]));
    if let Some(disk) = machine.disk {
        let drive = format!("if=none,id=disk,format=raw,file={disk}{drive}");
        argv.extend(words(&["-drive", &drive, "-device", "virtio-blk-pci-non-transitional,drive=disk"]));
    }
    if let Some(tap) = machine.tap {
        let netdev = format!("tap,id=net,ifname={tap},script=no,downscript=no{netdev}");
        argv.extend(words(&[
            "-netdev",
            &netdev,
            "-device",
            "virtio-net-pci-non-transitional,netdev=net,romfile=",
        ]));
    }
    CommandLine {
        way: format!("vsock:{CID}"),
        argv,
    }
}
