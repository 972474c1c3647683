//! What a machine costs in exits: counts, so they hold on any host, however busy.

use anyhow::{Result, ensure};

use super::Test;
use crate::{
    Cluster,
    bench::exits::{FUNCTIONS, MOST, MOST_CONFIG, count},
};

pub(super) const TESTS: &[Test] = &[Test {
    name: "exits until the agent's hello stay within their limits",
    hosts: 1,
    kvmlet: true,
    run: within_limits,
}];

fn within_limits(cluster: &Cluster) -> Result<()> {
    let exits = count(cluster.host(0)?)?;
    ensure!(exits.total <= MOST, "{} exits, at most {MOST}: {exits:?}", exits.total);
    // A function that was never probed would stay within any limit.
    ensure!(exits.pci_config.len() == FUNCTIONS, "{FUNCTIONS} functions were given: {exits:?}");
    for (function, count) in &exits.pci_config {
        ensure!(
            *count <= MOST_CONFIG,
            "{function}: {count} exits by PCI configuration, at most {MOST_CONFIG}"
        );
    }
    // COM1 is there only when asked for.
    let serial = (0x3f8..0x400).map(|port: u16| port.to_string());
    ensure!(
        serial.into_iter().all(|port| !exits.ports.contains_key(&port)),
        "the guest reached for a serial port: {exits:?}"
    );
    Ok(())
}
