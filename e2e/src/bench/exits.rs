//! How often a machine with a pod's devices leaves the guest for our process until the agent answers. A count, which no busy host changes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::{FOLDER, Options, Row};
use crate::{Cluster, Host, node};

/// For all of a machine: 449 were seen (Firecracker with five devices: 2,367).
pub const MOST: u64 = 500;
/// PCI configuration, for each function: 10 were seen.
pub const MOST_CONFIG: u64 = 12;
/// Host bridge, scratch disk, image in place, network, vsock, entropy, balloon, memory that comes and goes, watchdog.
pub const FUNCTIONS: usize = 9;

/// As `kvmlet vm --probe --count-exits` says them.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exits {
    /// All.
    pub total: u64,
    /// By port.
    pub ports: BTreeMap<String, u64>,
    /// PCI configuration, by function.
    pub pci_config: BTreeMap<String, u64>,
    /// Other memory, by address.
    pub addresses: BTreeMap<String, u64>,
}

/// Boots a machine with an image in place, a scratch disk, a network, vsock, entropy, a balloon, room for more memory and a watchdog, and counts.
pub fn count(host: &Host) -> Result<Exits> {
    let script = format!(
        "mkdir -p {FOLDER} && cd {FOLDER} && truncate -s 64M image scratch && \
         {} vm --probe --count-exits --kernel /usr/lib/kvmlet/vmlinux --initramfs /usr/lib/kvmlet/initramfs.cpio \
         --pmem image --scratch scratch --tap kvmlet-bench --hotplug 1024 --watchdog; code=$?; rm -f image scratch; exit $code",
        node::PROGRAM
    );
    let text = host.sh(&script)?;
    let exits: Exits = serde_json::from_str(&text).with_context(|| format!("read {text}"))?;
    ensure!(
        exits.total >= exits.pci_config.values().sum(),
        "the counts contradict themselves: {exits:?}"
    );
    Ok(exits)
}

pub(super) fn rows(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let exits = count(host)?;
    let row = |name: String, value: u64| Row::new(host.kind, name, "exits", value as f64);
    let mut rows = vec![row("exits until the agent's hello".into(), exits.total).at_most(MOST as f64)];
    let config = exits.pci_config.iter();
    rows.extend(config.map(|(function, count)| row(format!("exits: PCI configuration of {function}"), *count).at_most(MOST_CONFIG as f64)));
    rows.extend(exits.ports.iter().map(|(port, count)| row(format!("exits: port {port}"), *count)));
    // Registers of devices: hundreds of addresses, few exits each.
    rows.push(row("exits: other memory".into(), exits.addresses.values().sum()));
    Ok(rows)
}
