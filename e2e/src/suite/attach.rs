//! Devices that come to a machine by hand while it runs, and go: with a guest that looks for them itself, and with kvmlet's agent in it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{Cluster, Host, node, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a machine by hand gets a disk and a network while it runs, works with them, and goes on without them",
    hosts: 1,
    kvmlet: true,
    run: attached,
}];

pub(super) const FOLDER: &str = "/run/kvmlet/attach";
const KERNEL: &str = "/usr/lib/kvmlet/vmlinux";
const INITRAMFS: &str = "/usr/lib/kvmlet/initramfs.cpio";
/// For a boot, and for what a guest does.
pub(super) const SLOW: Duration = Duration::from_secs(120);
/// Does what it is told, and says when that is done.
const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev
echo "rig: ready"
while read -r line; do
    eval "$line" 2>&1
    echo "rig: status $?"
done
"#;

fn attached(cluster: &Cluster) -> Result<()> {
    within(cluster.host(0)?, |host| by_itself(host).and_then(|()| by_agent(host)))
}

/// Does something with machines in the test's folder, which is gone then; what they said is told where it fails.
pub(super) fn within(host: &Host, body: impl FnOnce(&Host) -> Result<()>) -> Result<()> {
    let result = body(host);
    let log = host.sh(&format!(
        "cd {FOLDER}; kill $(cat pid) 2>/dev/null; tail -n 60 log; rm -rf {FOLDER}"
    ));
    result.with_context(|| format!("the machine said: {}", log.unwrap_or_default()))
}

/// Runs `kvmlet vm` in the test's folder.
pub(super) fn vm(host: &Host, words: &str) -> Result<String> {
    host.sh(&format!("cd {FOLDER} && {} vm {words}", node::PROGRAM))
}

/// Why `kvmlet vm` refuses.
pub(super) fn refused(host: &Host, words: &str) -> Result<String> {
    host.sh(&format!("cd {FOLDER} && ! {} vm {words} 2>&1", node::PROGRAM))
}

/// Begins a machine whose console is `in` and `log`.
pub(super) fn begin(host: &Host, options: &str) -> Result<()> {
    host.sh(&format!(
        "cd {FOLDER} && rm -f in && mkfifo in && \
         {{ setsid {} vm run --kernel {KERNEL} --mem 128M --control control {options} <>in >log 2>&1 & echo $! >pid; }}",
        node::PROGRAM
    ))
    .map(drop)
}

/// Tells the guest to do something, which succeeds; what it says meanwhile.
pub(super) fn tell(host: &Host, what: &str) -> Result<String> {
    let statuses = format!("grep -c '^rig: status' {FOLDER}/log || true");
    let before = host.sh(&statuses)?;
    host.sh(&format!("cat >{FOLDER}/line <<'END'\n{what}\nEND\ncat {FOLDER}/line >{FOLDER}/in"))?;
    wait_for("the guest to do what it is told", SLOW, || {
        Ok((host.sh(&statuses)? != before).then_some(()))
    })?;
    let said = host.sh(&format!("tail -n 30 {FOLDER}/log"))?;
    let status = said.lines().rev().find(|line| line.starts_with("rig: status"));
    ensure!(
        status.is_some_and(|status| status.trim_end() == "rig: status 0"),
        "the guest was told to {what}: {said}"
    );
    Ok(said)
}

/// Puts an initramfs into the folder whose first process does what it is told, and a disk of random content.
pub(super) fn prepare(host: &Host) -> Result<()> {
    host.put(&format!("{FOLDER}/root/init"), 0o755, INIT.as_bytes())?;
    host.sh(&format!(
        "cd {FOLDER} && mkdir -p root/bin root/dev root/proc root/sys && cp $(command -v busybox) root/bin/busybox && \
         for name in sh md5sum dd cat ip ping; do ln -sf busybox root/bin/$name; done && mknod root/dev/console c 5 1 && \
         (cd root && find . | busybox cpio -o -H newc 2>/dev/null) >initrd && head -c 1048576 /dev/urandom >disk"
    ))
    .map(drop)
}

/// Waits until the guest can be told something.
pub(super) fn until_ready(host: &Host) -> Result<()> {
    wait_for("the machine's first words", SLOW, || {
        Ok(host.sh(&format!("grep 'rig: ready' {FOLDER}/log")).ok())
    })
    .map(drop)
}

fn by_itself(host: &Host) -> Result<()> {
    prepare(host)?;
    begin(host, "--initrd initrd --cpus 2")?;
    until_ready(host)?;
    disk(host)?;
    net(host)?;
    host.sh(&format!("kill $(cat {FOLDER}/pid)")).map(drop)
}

fn disk(host: &Host) -> Result<()> {
    let told = vm(host, "attach control --disk disk --serial later")?;
    let (slot, address) = told.trim().split_once(' ').with_context(|| format!("it said {told:?}"))?;
    let sum = host.sh(&format!("md5sum <{FOLDER}/disk"))?;
    let said = tell(
        host,
        "echo 1 >/sys/bus/pci/rescan && md5sum </dev/vda && cat /sys/block/vda/serial && echo written | dd of=/dev/vda conv=fsync",
    )?;
    ensure!(said.contains(sum.trim()) && said.contains("later"), "{sum}, but the guest: {said}");
    ensure!(host.sh(&format!("head -c 7 {FOLDER}/disk"))? == "written");
    let used = refused(host, &format!("detach control {slot}"))?;
    ensure!(used.contains("still uses") && used.contains(&format!("{address}/remove")), "{used}");
    let twice = refused(host, "attach control --disk disk --serial later")?;
    ensure!(twice.contains("a device of that name"), "{twice}");
    tell(
        host,
        &format!("echo 1 >/sys/bus/pci/devices/{address}/remove && [ ! -e /sys/block/vda ]"),
    )?;
    vm(host, &format!("detach control {slot}"))?;
    let devices = vm(host, "devices control")?;
    ensure!(!devices.contains("later") && devices.contains("in use rng"), "{devices}");
    Ok(())
}

/// It is taken away by force in the end: its guest goes on.
fn net(host: &Host) -> Result<()> {
    let told = vm(host, "attach control --tap kvlater,queues=2 --mac 02:00:00:00:00:99")?;
    let (slot, _) = told.trim().split_once(' ').with_context(|| format!("it said {told:?}"))?;
    host.sh("ip address add 192.0.2.1/30 dev kvlater && ip link set kvlater up")?;
    let said = tell(
        host,
        "echo 1 >/sys/bus/pci/rescan && ip address add 192.0.2.2/30 dev eth0 && ip link set eth0 up && \
         cat /sys/class/net/eth0/address && echo /sys/class/net/eth0/queues/* && ping -c 3 192.0.2.1",
    )?;
    // A pair for each processor.
    ensure!(said.contains("rx-0") && said.contains("tx-1"), "{said}");
    ensure!(
        said.contains("02:00:00:00:00:99") && said.contains("bytes from 192.0.2.1"),
        "{said}"
    );
    vm(host, &format!("detach control {slot} --force"))?;
    ensure!(host.sh("ip link show kvlater").is_err(), "its tap is still there");
    // What it sends into nothing does not hold it.
    tell(host, "! ping -c 1 -W 1 192.0.2.1")?;
    Ok(())
}

fn by_agent(host: &Host) -> Result<()> {
    begin(host, &format!("--initrd {INITRAMFS} --vsock vsock"))?;
    let told = wait_for("the agent, which finds a disk", SLOW, || {
        Ok(vm(host, "attach control --disk disk,ro --agent vsock").ok())
    })?;
    let slot = told.split(' ').next().unwrap_or_default();
    let devices = vm(host, "devices control")?;
    ensure!(devices.contains("in use block disk"), "{devices}");
    vm(host, &format!("detach control {slot} --agent vsock"))?;
    let devices = vm(host, "devices control")?;
    ensure!(!devices.contains("block disk"), "{devices}");
    let gone = refused(host, &format!("detach control {slot}"))?;
    ensure!(gone.contains("has no device"), "{gone}");
    Ok(())
}
