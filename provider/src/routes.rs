//! Routes to other nodes' pods, kept on this host by an identity of its own: a node may not see other Nodes.

use std::{collections::BTreeMap, net::Ipv4Addr};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use kvmlet_network::NodeRoute;
use tracing::warn;

/// Follows all Nodes and keeps this host's routes to them, for ever.
pub async fn keep(client: Client, own: String) {
    let mut stream = std::pin::pin!(watcher::watcher(Api::<Node>::all(client), watcher::Config::default()).default_backoff());
    let mut routes: BTreeMap<String, NodeRoute> = BTreeMap::new();
    let mut listing = BTreeMap::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listing.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(node)) => {
                listing.extend(route(&node, &own));
                continue;
            }
            Ok(watcher::Event::InitDone) => routes = std::mem::take(&mut listing),
            Ok(watcher::Event::Apply(node)) => {
                let before = routes.remove(&node.name_any());
                let now = route(&node, &own);
                let same = before.as_ref().map(|r| (r.pod_cidr, r.via)) == now.as_ref().map(|(_, r)| (r.pod_cidr, r.via));
                routes.extend(now);
                if same {
                    continue;
                }
            }
            Ok(watcher::Event::Delete(node)) => drop(routes.remove(&node.name_any())),
            Err(error) => {
                warn!(%error, "watch nodes for their routes");
                continue;
            }
        }
        let wanted: Vec<NodeRoute> = routes.values().cloned().collect();
        if let Err(error) = kvmlet_network::host::sync_node_routes(&wanted).await {
            warn!(error = crate::act::chain(&error), "keep the routes to other nodes");
        }
    }
}

/// The route to another node's pods.
fn route(node: &Node, own: &str) -> Option<(String, NodeRoute)> {
    let name = node.name_any();
    if name == own {
        return None;
    }
    let pod_cidr = node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let via: Ipv4Addr = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    Some((name, NodeRoute { pod_cidr, via }))
}
