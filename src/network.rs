//! The pods' network of a node, which stands once the node has its podCIDR.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use kvmlet_network::{NetworkConfig, PodNetworks};
use kvmlet_provider::config::Config;
use tokio::sync::OnceCell;
use tracing::{info, warn};

/// How often a Node is looked for that is not there.
const AWAY: Duration = Duration::from_secs(1);

/// Waits for the node's podCIDR, then makes the pods' network.
pub(crate) async fn join(config: &Config, client: &Client, network: &OnceCell<PodNetworks>) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let mut told = false;
    let pod_cidr = loop {
        match api.get_opt(&config.node_name).await {
            // While kvmlet is disabled.
            Ok(None) => tokio::time::sleep(AWAY).await,
            Ok(Some(node)) => {
                if let Some(cidr) = node.spec.and_then(|s| s.pod_cidr) {
                    break cidr;
                }
                if !told {
                    told = true;
                    info!("waiting for the node's podCIDR");
                }
            }
            Err(error) => warn!(%error, "read the node's podCIDR"),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    };
    let pod_cidr = pod_cidr.parse().with_context(|| format!("podCIDR {pod_cidr} is not IPv4"))?;
    let cluster = match &config.network.cluster_cidr {
        Some(text) => text.parse().with_context(|| format!("network.clusterCIDR {text}"))?,
        None => pod_cidr,
    };
    let mtu = match config.network.mtu {
        Some(mtu) => mtu,
        None => kvmlet_network::host::mtu_of(config.node_ip)
            .await
            .context("find the uplink's MTU")?,
    };
    let made = NetworkConfig::new(pod_cidr, cluster, mtu, config.network_dir()).with_plugin_dirs(&config.network.plugin_dirs);
    kvmlet_network::host::prepare(&made).await.context("prepare the host's network")?;
    info!(%pod_cidr, mtu, "the pods' network stands");
    let _ = network.set(PodNetworks::new(made));
    Ok(())
}
