//! Owns what the host itself needs for pods: forwarding, the masquerading rule, routes to other nodes' pods, the MTU.
//!
//! Refuses to touch routes that carry another protocol number, and rules outside its own nftables table. Opens no FORWARD
//! chain that someone else closed.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol};
use rtnetlink::RouteMessageBuilder;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::config::NetworkConfig;
use crate::rtnl::{self, RtnlError, attempt};

/// Marks our routes in the host's table (`ip route show proto 75`); no number that iproute2 knows.
pub const ROUTE_PROTOCOL: u8 = 75;

/// Our table in nftables.
const TABLE: &str = "kvmlet";

/// Why the host is not ready for pods.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The sysctl.
    #[error("cannot switch on IPv4 forwarding")]
    Forward(#[source] io::Error),
    /// nft did not start.
    #[error("cannot run nft")]
    RunNft(#[source] io::Error),
    /// nft refused, in its own words.
    #[error("nft refused the masquerading rule: {0}")]
    Masquerade(String),
    /// Routes, links.
    #[error("cannot read or change the host's routes")]
    Netlink(#[from] RtnlError),
}

/// Where the pods of another node are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    /// That Node's `spec.podCIDR`.
    pub pod_cidr: Ipv4Net,
    /// That Node's InternalIP.
    pub via: Ipv4Addr,
}

/// Switches forwarding on and masquerades what pods send out of the cluster. May be repeated.
///
/// # Errors
///
/// When the sysctl cannot be written, or nft is missing or refuses.
pub async fn prepare(config: &NetworkConfig) -> Result<(), HostError> {
    tokio::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .await
        .map_err(HostError::Forward)?;
    nft(&masquerade_rules(config), config.timeout).await
}

/// Takes away what pods' networks had in common on this host: the rule, the routes to other nodes' pods, the bridge. What each pod has must be
/// gone. Forwarding stays on, as others may count on it. May be repeated.
///
/// # Errors
///
/// When nft is missing or refuses, or a route or the bridge cannot be removed; the rest was still tried.
pub async fn clear(config: &NetworkConfig) -> Result<(), HostError> {
    let rules = nft(&no_rules(), config.timeout).await;
    let routes = sync_node_routes(&[]).await;
    let handle = rtnl::open()?;
    match rtnl::link(&handle, &config.bridge).await {
        Err(RtnlError::NoInterface(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(link) => {
            let removed = handle.link().del(link.index).execute().await;
            removed.map_err(attempt(format!("remove the bridge {}", config.bridge)))?;
        }
    }
    rules.and(routes)
}

/// Has nft carry out `rules`, in one transaction.
async fn nft(rules: &str, timeout: Duration) -> Result<(), HostError> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(HostError::RunNft)?;
    let mut stdin = nft.stdin.take().expect("standard input was asked to be a pipe");
    let talk = async {
        stdin.write_all(rules.as_bytes()).await?;
        drop(stdin);
        nft.wait_with_output().await
    };
    let output = tokio::time::timeout(timeout, talk)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(HostError::RunNft)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(HostError::Masquerade(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// The whole table, replaced in one transaction.
fn masquerade_rules(config: &NetworkConfig) -> String {
    let (pods, cluster) = (config.pod_cidr.trunc(), config.cluster_cidr.trunc());
    format!(
        "{}table ip {TABLE} {{\n\
             chain postrouting {{\n\
                 type nat hook postrouting priority srcnat; policy accept;\n\
                 ip saddr {pods} ip daddr != {cluster} ip daddr != 224.0.0.0/4 masquerade\n\
             }}\n\
         }}\n",
        no_rules()
    )
}

/// Named once before it is deleted, so that deleting always succeeds.
fn no_rules() -> String {
    format!("add table ip {TABLE}\ndelete table ip {TABLE}\n")
}

/// The MTU of the interface that has `address`.
///
/// # Errors
///
/// When no interface has it.
pub async fn mtu_of(address: IpAddr) -> Result<u32, HostError> {
    Ok(rtnl::link_with(&rtnl::open()?, address).await?.mtu)
}

/// Makes the host's routes to other nodes' pods be exactly `wanted`: adds, moves, and removes stale ones of ours.
///
/// # Errors
///
/// When a route cannot be changed, for example as another program has one to the same network; the others were still
/// tried.
pub async fn sync_node_routes(wanted: &[NodeRoute]) -> Result<(), HostError> {
    let handle = rtnl::open()?;
    let present = own_routes(&handle).await?;
    let plan = plan(&present.iter().map(|(route, _)| *route).collect::<Vec<_>>(), wanted);
    let mut first_error = None;
    for (route, message) in present {
        if plan.remove.contains(&route) {
            let removed = handle.route().del(message).execute().await;
            note(
                &mut first_error,
                removed.map_err(attempt(format!("remove the route to {}", route.pod_cidr))),
            );
        }
    }
    for route in &plan.add {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.pod_cidr.network(), route.pod_cidr.prefix_len())
            .gateway(route.via)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .build();
        let added = handle.route().add(message).execute().await;
        let what = format!("add a route to {} via {}", route.pod_cidr, route.via);
        note(&mut first_error, added.map_err(attempt(what)));
    }
    first_error.map_or(Ok(()), |error| Err(error.into()))
}

fn note(first: &mut Option<RtnlError>, result: Result<(), RtnlError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "node route");
        first.get_or_insert(error);
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    remove: Vec<NodeRoute>,
    add: Vec<NodeRoute>,
}

/// What to change so that `present` becomes `wanted`; of two wishes for one network the last one counts.
fn plan(present: &[NodeRoute], wanted: &[NodeRoute]) -> Plan {
    let wanted: HashMap<Ipv4Net, Ipv4Addr> = wanted.iter().map(|route| (route.pod_cidr.trunc(), route.via)).collect();
    let remove = present
        .iter()
        .filter(|route| wanted.get(&route.pod_cidr) != Some(&route.via))
        .copied()
        .collect();
    let mut add: Vec<NodeRoute> = wanted
        .into_iter()
        .map(|(pod_cidr, via)| NodeRoute { pod_cidr, via })
        .filter(|route| !present.contains(route))
        .collect();
    add.sort_by_key(|route| route.pod_cidr);
    Plan { remove, add }
}

async fn own_routes(handle: &rtnetlink::Handle) -> Result<Vec<(NodeRoute, RouteMessage)>, RtnlError> {
    let all = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    let all: Vec<RouteMessage> = all.try_collect().await.map_err(attempt("list routes"))?;
    let own = |message: &RouteMessage| message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
    Ok(all
        .into_iter()
        .filter(own)
        .filter_map(|message| Some((read(&message)?, message)))
        .collect())
}

fn read(message: &RouteMessage) -> Option<NodeRoute> {
    let mut destination = None;
    let mut via = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = Some(*address),
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            _ => {}
        }
    }
    let pod_cidr = Ipv4Net::new(destination?, message.header.destination_prefix_length).ok()?;
    Some(NodeRoute { pod_cidr, via: via? })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn route(pod_cidr: &str, via: &str) -> NodeRoute {
        NodeRoute {
            pod_cidr: pod_cidr.parse().unwrap(),
            via: via.parse().unwrap(),
        }
    }

    #[test]
    fn what_stands_already_is_left_alone() {
        let routes = [route("10.244.1.0/24", "10.0.0.1")];
        assert_eq!(plan(&routes, &routes), Plan::default());
    }

    #[test]
    fn a_node_that_moved_is_removed_and_added_and_one_that_left_is_removed() {
        let present = [route("10.244.1.0/24", "10.0.0.1"), route("10.244.2.0/24", "10.0.0.2")];
        let wanted = [route("10.244.1.0/24", "10.0.0.9"), route("10.244.3.0/24", "10.0.0.3")];
        assert_eq!(
            plan(&present, &wanted),
            Plan {
                remove: present.to_vec(),
                add: wanted.to_vec()
            }
        );
    }

    #[test]
    fn only_what_leaves_the_cluster_is_masqueraded() {
        let config = NetworkConfig::new(
            "10.244.3.0/24".parse().unwrap(),
            "10.244.0.0/16".parse().unwrap(),
            1500,
            PathBuf::new(),
        );
        let rules = masquerade_rules(&config);
        assert!(rules.contains("ip saddr 10.244.3.0/24 ip daddr != 10.244.0.0/16"));
        assert!(rules.starts_with("add table ip kvmlet\ndelete table ip kvmlet\n"));
    }
}
