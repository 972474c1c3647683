//! `kvmlet cleanup`: what a host's pods have outside the state directory goes: machines, control groups, networks. As after a power cut: records,
//! images and logs stay, and a daemon that is started later starts the pods' containers again as their restartPolicy says.

use std::{
    collections::HashSet,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use kvmlet_network::{NetworkConfig, PodNetworks, host};
use kvmlet_provider::{cgroup, config::Config, machine, store::Store};

/// Cleans up. Every part is tried; errors name those that are left.
pub(crate) fn run(config: &Path) -> anyhow::Result<ExitCode> {
    let config = if config.exists() {
        let config = Config::load(config)?;
        refuse_beside_a_daemon(SocketAddr::new(config.node_ip, config.port))?;
        config
    } else {
        Config::assumed()
    };
    let network = NetworkConfig::without_addresses(config.network_dir()).with_plugin_dirs(&config.network.plugin_dirs);
    let mut failed = Vec::new();
    if let Err(error) = end_machines(&config.state_dir) {
        failed.push(format!("{error:#}"));
    }
    match cgroup::clear() {
        Ok(groups) => println!("{groups} control groups of machines removed"),
        Err(error) => failed.push(format!("remove machines' control groups: {error}")),
    }
    let networks = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?
        .block_on(remove_networks(network));
    match networks {
        Ok(count) => println!("{count} pods' networks removed"),
        Err(error) => failed.push(format!("{error:#}")),
    }
    if !failed.is_empty() {
        bail!("not all could be cleaned up; it may be asked again: {}", failed.join("; "));
    }
    Ok(ExitCode::SUCCESS)
}

/// A daemon would start again what is ended here.
fn refuse_beside_a_daemon(port: SocketAddr) -> anyhow::Result<()> {
    match TcpListener::bind(port) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!("{port} is in use: end the daemon first (systemctl stop kvmlet)"),
        // An address that the host has lost is no daemon's.
        _ => Ok(()),
    }
}

/// Also those that no control group holds.
fn end_machines(state_dir: &Path) -> anyhow::Result<()> {
    if !state_dir.exists() {
        return Ok(());
    }
    for directory in Store::open(state_dir)?.machine_dirs()? {
        machine::end_in(&directory).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

async fn remove_networks(network: NetworkConfig) -> anyhow::Result<usize> {
    let swept = PodNetworks::new(network.clone()).sweep(&HashSet::new()).await;
    let swept = swept.context("find pods' networks")?;
    host::clear(&network).await.context("remove what pods' networks had in common")?;
    if let Some((uid, error)) = swept.failed.into_iter().next() {
        return Err(error).with_context(|| format!("remove the network of pod {uid}"));
    }
    Ok(swept.removed.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_whose_port_is_served_is_left_alone() {
        let daemon = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = daemon.local_addr().unwrap();
        let refusal = refuse_beside_a_daemon(address).unwrap_err().to_string();
        assert!(refusal.contains("systemctl stop kvmlet"), "{refusal}");
        drop(daemon);
        refuse_beside_a_daemon(address).unwrap();
    }

    #[test]
    fn a_host_that_never_had_a_pod_has_no_machines_to_end() {
        end_machines(Path::new("/nonexistent/kvmlet")).unwrap();
        let fresh = tempfile::tempdir().unwrap();
        end_machines(fresh.path()).unwrap();
    }
}
