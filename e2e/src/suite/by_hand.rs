//! Machines that a person runs, without a node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{Cluster, Host, node};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a machine by hand shows its console, ends when asked to, and its boot is traced",
    hosts: 1,
    kvmlet: true,
    run: by_hand,
}];

const KERNEL: &str = "/usr/lib/kvmlet/vmlinux";
const INITRAMFS: &str = "/usr/lib/kvmlet/initramfs.cpio";
/// For a boot whose every message goes through a serial port.
const BOOT: Duration = Duration::from_secs(200);

fn by_hand(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    traced(host)?;
    interrupted(host)
}

fn traced(host: &Host) -> Result<()> {
    let argv = [node::PROGRAM, "vm", "--boot-trace", "--kernel", KERNEL, "--initramfs", INITRAMFS];
    let output = host.run_with(&argv, b"", BOOT)?;
    let text = output.text();
    ensure!(output.code == 0, "{}: {text}", output.error_text());
    for part in [
        "create the virtual machine",
        "start threads, until the first KVM_RUN",
        "/init begins as process 1",
        "kvmlet's agent answers",
        "the 10 longest of ",
    ] {
        ensure!(text.contains(part), "the trace does not say {part:?}: {text}");
    }
    // This is what each Linux has, ours too; that its time is read from our kernel's own words is the point.
    let initcalls = text
        .lines()
        .find_map(|line| line.split_once(" ms  in ")?.1.strip_suffix(" initcalls")?.parse().ok());
    let initcalls: u32 = initcalls.with_context(|| format!("the trace counts no initcalls: {text}"))?;
    ensure!(initcalls > 100, "{initcalls} initcalls are too few for a Linux: {text}");
    Ok(())
}

/// The agent waits for a daemon for ever: whoever looks on has to end the machine.
fn interrupted(host: &Host) -> Result<()> {
    let script = format!(
        "cd /tmp && rm -f by-hand.log && {{ {} vm run --kernel {KERNEL} --initrd {INITRAMFS} --mem 128M --cmdline loglevel=7 >by-hand.log & }} && \
         for i in $(seq 1500); do grep -q 'as init process' by-hand.log && break; sleep 0.1; done && \
         kill -INT $! && wait $!; echo $?; head -c 65536 by-hand.log; rm by-hand.log",
        node::PROGRAM
    );
    let output = host.run_with(&["sh", "-c", &script], b"", BOOT)?;
    let text = output.text();
    ensure!(
        text.starts_with("1\n") && text.contains("Linux version") && text.contains("Run /init as init process"),
        "{text}{}",
        output.error_text()
    );
    ensure!(
        output.error_text().contains("the machine ended: Stopped"),
        "{}",
        output.error_text()
    );
    Ok(())
}
