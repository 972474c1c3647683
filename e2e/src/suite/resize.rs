//! A machine by hand that grows and shrinks while it runs, with a real kernel in it. It has no balloon: what comes back, came by virtio-mem.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{Cluster, Host, node, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a machine by hand grows and shrinks while it runs, its guest sees it, and its host has the memory back",
    hosts: 1,
    kvmlet: true,
    run: resized,
}];

const MIB: u64 = 1 << 20;
const FOLDER: &str = "/run/kvmlet/resize";
/// For a boot, and for a guest to fill its memory.
const SLOW: Duration = Duration::from_secs(120);
/// Bytes, at first.
const SMALL: u64 = 128 * MIB;
/// And later.
const LARGE: u64 = 768 * MIB;
/// And at last: not all of what came, as the guest's kernel has put something into it that it cannot move.
const LAST: u64 = 256 * MIB;
/// Says what memory there is whenever that changes; fills most of it once it has grown, and frees it once it shrinks.
const INIT: &str = r#"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
total() { busybox sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
first=$(total)
while :; do
    now=$(total)
    [ "$now" = "$said" ] || echo "rig: total $now"
    said=$now
    if [ -z "$full" ] && [ $now -ge $((first + 655360)) ]; then
        busybox mount -t tmpfs -o size=500m tmpfs /tmp
        busybox dd if=/dev/zero of=/tmp/filler bs=1M count=400 && echo "rig: full"
        full=yes
    elif [ -n "$full" ] && [ $now -lt $((first + 655360)) ] && [ -e /tmp/filler ]; then
        busybox rm /tmp/filler
        echo "rig: free"
    fi
    busybox usleep 50000
done
"#;

fn resized(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let result = begin(host).and_then(|process| grows_and_shrinks(host, &process));
    let log = host.sh(&format!(
        "cd {FOLDER}; kill $(cat pid) 2>/dev/null; tail -n 40 log; rm -rf {FOLDER}"
    ));
    result.with_context(|| format!("the machine said: {}", log.unwrap_or_default()))
}

/// Starts the machine; its process.
fn begin(host: &Host) -> Result<String> {
    host.put(&format!("{FOLDER}/root/init"), 0o755, INIT.as_bytes())?;
    let kvmlet = node::PROGRAM;
    let process = host.sh(&format!(
        "cd {FOLDER} && mkdir -p root/bin root/dev root/proc root/tmp && cp $(command -v busybox) root/bin/busybox && \
         ln -s busybox root/bin/sh && mknod root/dev/console c 5 1 && (cd root && find . | busybox cpio -o -H newc 2>/dev/null) >initrd && \
         {kvmlet} vm run --kernel /usr/lib/kvmlet/vmlinux --initrd initrd --mem 128M --memory-max 1152M --control control \
         --print-spec | sed 's/\"balloon\": true/\"balloon\": false/' >spec.json && grep -q '\"balloon\": false' spec.json && \
         {{ setsid {kvmlet} vm run --spec spec.json --control control </dev/null >log 2>&1 & echo $! | tee pid; }}"
    ))?;
    wait_for("the machine's first words", SLOW, || {
        Ok(host.sh(&format!("grep 'rig: total' {FOLDER}/log")).ok())
    })?;
    Ok(process.trim().to_owned())
}

fn grows_and_shrinks(host: &Host, process: &str) -> Result<()> {
    let first = total(host)?;
    let told = memory(host, "")?;
    ensure!(told.starts_with(&format!("{SMALL} bytes of {SMALL} ")), "{told}");
    memory(host, "768M")?;
    wait_for("the guest to see what it got and to use it", SLOW, || {
        Ok(host.sh(&format!("grep 'rig: full' {FOLDER}/log")).ok())
    })?;
    let grown = total(host)?;
    ensure!(grown == first + LARGE - SMALL, "MemTotal was {first} and is {grown}");
    let full = super::memory::resident(host, process)?;
    ensure!(full > 400 * MIB, "400 MiB are in use, and the process has {full} bytes");
    // The guest frees what it has filled when it sees that it shall have less; only then can much be taken.
    memory(host, "704M")?;
    wait_for("the guest to free what it filled", SLOW, || {
        Ok(host.sh(&format!("grep 'rig: free' {FOLDER}/log")).ok())
    })?;
    memory(host, "256M")?;
    wait_for("the guest to see what was taken", SLOW, || {
        Ok((total(host)? == first + LAST - SMALL).then_some(()))
    })?;
    let left = super::memory::resident(host, process)?;
    ensure!(left < LAST + 32 * MIB, "of {full} bytes the process still has {left}");
    Ok(())
}

/// Bytes of the last MemTotal that the guest said.
fn total(host: &Host) -> Result<u64> {
    let text = host.sh(&format!("sed -n 's/^rig: total \\([0-9]*\\).*/\\1/p' {FOLDER}/log | tail -n 1"))?;
    Ok(text.trim().parse::<u64>().with_context(|| format!("read {text:?}"))? << 10)
}

/// Wishes a size, and waits until the guest has it; what is told of it.
fn memory(host: &Host, size: &str) -> Result<String> {
    host.sh(&format!("{} vm memory {FOLDER}/control {size}", node::PROGRAM))
}
