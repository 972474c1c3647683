//! Machines that are made of a snapshot of another.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use crate::{Cluster, Host, node};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a machine that was made of a snapshot has its own devices and processors, and boots nothing",
    hosts: 1,
    kvmlet: true,
    run: copies,
}];

const GUEST: &str = "--kernel /usr/lib/kvmlet/vmlinux --initramfs /usr/lib/kvmlet/initramfs.cpio";
/// What the copies have besides, of which the template has only the places.
const DEVICES: &str = "--pmem image --pmem image --disk image --scratch scratch --tap kvmlet-copy --hotplug 1024 --cpus 2";
/// On an emulated processor.
const DEADLINE: Duration = Duration::from_secs(120);

fn copies(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let folder = host.sh("mktemp -d /var/lib/kvmlet/copies.XXXXXX")?;
    let folder = folder.trim();
    let result = in_folder(host, folder);
    host.sh(&format!("rm -rf {folder}"))?;
    result
}

fn in_folder(host: &Host, folder: &str) -> Result<()> {
    let run = |arguments: &str| {
        let script = format!(
            "cd {folder} && truncate -s 64M image scratch && {} vm --probe {arguments} {GUEST}",
            node::PROGRAM
        );
        host.run_with(&["sh", "-c", &script], b"", DEADLINE)
    };
    let boot = run(&format!("--count-exits {DEVICES}"))?;
    let taken = run("--take .")?;
    ensure!(taken.code == 0, "take: {}", taken.error_text());
    let mut exits = Vec::new();
    for copy in [
        run(&format!("--from . --count-exits {DEVICES}"))?,
        run(&format!("--from . --count-exits {DEVICES}"))?,
    ] {
        ensure!(copy.code == 0, "a copy: {}", copy.error_text());
        exits.push(total(&copy.text())?);
        eprintln!("  {}", copy.error_text().trim());
    }
    let booted = total(&boot.text())?;
    eprintln!("  a boot: {} ({booted} exits, the copies {exits:?})", boot.error_text().trim());
    ensure!(exits.iter().all(|copy| copy < &booted), "a copy has more exits than a boot");
    // Made of what it was not: refused, by name.
    let other = run("--from . --memory 256")?;
    ensure!(
        other.code != 0 && other.error_text().contains("memory, bytes, of the machine is 268435456"),
        "{}",
        other.error_text()
    );
    Ok(())
}

fn total(text: &str) -> Result<u64> {
    let exits: Value = serde_json::from_str(text).with_context(|| format!("read {text}"))?;
    exits["total"].as_u64().context("exits have a total")
}
