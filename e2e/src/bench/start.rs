//! A machine's cold start, from the making of its process to the agent's answer, and its memory at that moment; beside QEMU's microvm with
//! the same kernel, initramfs, command line and kinds of devices, in turn, on the same host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{FOLDER, Options, Row, guest::Sample, install, median};
use crate::{Cluster, Host};

const PEER: &str = "QEMU microvm";
/// Of both, MiB.
const MEMORY: u64 = 128;
/// The peer's context identifier; kvmlet's machines have none on the host.
const CID: u32 = 4711;
const KERNEL: &str = "/usr/lib/kvmlet/vmlinux";
const INITRAMFS: &str = "/usr/lib/kvmlet/initramfs.cpio";
/// As vmm-lib's own, which this crate does not link.
const COMMAND_LINE: &str = "quiet nomodule dummy.numdummies=0 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=noearly \
                            random.trust_cpu=on cryptomgr.notests no_timer_check panic=-1 reboot=acpi";
/// Private memory of a machine's process, bytes.
const MOST_PRIVATE: f64 = (8 << 20) as f64;

pub(super) fn rows(cluster: &Cluster, options: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = install(host)?;
    // As the peer's program is, ours is read from the page cache.
    host.sh(&format!("mkdir -p {FOLDER} && modprobe -q vhost_vsock; test -c /dev/vhost-vsock"))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // The first of each reads its program for the first time and is not counted.
    for round in 0..=options.starts {
        let (a, b) = (kvmlet(host, &bench)?, qemu(host, &bench)?);
        if round > 0 {
            ours.push(a);
            theirs.push(b);
        }
    }
    let of = |samples: &[Sample], figure: fn(&Sample) -> f64| median(samples.iter().map(figure).collect());
    let row =
        |name: &str, unit, figure: fn(&Sample) -> f64| Row::new(host.kind, name, unit, of(&ours, figure)).beside(PEER, of(&theirs, figure));
    let alone = |name: &str, unit, figure: fn(&Sample) -> f64| Row::new(host.kind, name, unit, of(&ours, figure));
    Ok(vec![
        row("machine start, process to agent's hello", "s", |sample| sample.seconds).at_most(1.0),
        row("machine start, processor time", "s", |sample| sample.cpu_seconds),
        alone("machine process, private memory without guest RAM", "bytes", |sample| {
            sample.memory.private as f64
        })
        .at_most(MOST_PRIVATE),
        row("the same, beside the peer", "bytes", |sample| sample.memory.private as f64),
        row("guest RAM taken from the host at the agent's hello", "bytes", |sample| {
            sample.memory.ram as f64
        }),
        row("guest memory in use at the agent's hello, by the guest", "bytes", |sample| {
            sample.guest_used as f64
        }),
    ])
}

fn kvmlet(host: &Host, bench: &str) -> Result<Sample> {
    let socket = format!("{FOLDER}/vsock.sock");
    let memory = MEMORY.to_string();
    let way = format!("unix:{socket}");
    let machine = [
        crate::node::PROGRAM,
        "vm",
        "--probe",
        "--kernel",
        KERNEL,
        "--initramfs",
        INITRAMFS,
        "--memory",
        &memory,
        "--vsock",
        &socket,
    ];
    measure(host, bench, &way, &machine)
}

fn qemu(host: &Host, bench: &str) -> Result<Sample> {
    let (memory, way) = (format!("{MEMORY}M"), format!("vsock:{CID}"));
    let vsock = format!("vhost-vsock-pci-non-transitional,guest-cid={CID}");
    let machine = [
        "qemu-system-x86_64",
        "-M",
        "microvm,accel=kvm,acpi=on,pcie=on,pic=off,pit=off,rtc=off,isa-serial=off",
        "-cpu",
        "host",
        "-smp",
        "1",
        "-m",
        &memory,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-kernel",
        KERNEL,
        "-initrd",
        INITRAMFS,
        "-append",
        COMMAND_LINE,
        "-device",
        "virtio-rng-pci-non-transitional",
        "-device",
        &vsock,
    ];
    measure(host, bench, &way, &machine)
}

fn measure(host: &Host, bench: &str, way: &str, machine: &[&str]) -> Result<Sample> {
    let ram = (MEMORY << 20).to_string();
    let argv = [&[bench, "measure-start", "--way", way, "--ram", &ram, "--"], machine].concat();
    let output = host.run_with(&argv, b"", Duration::from_secs(150))?;
    ensure!(output.code == 0, "{}: {}", machine[0], output.error_text());
    serde_json::from_slice(&output.stdout).with_context(|| format!("read {}", output.text()))
}
