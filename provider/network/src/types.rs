//! Owns what a pod asks of its network and what it gets, and how both are said to and by the CNI plugins (pure).

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::cni::{AddResult, Attachment};
use crate::join::Joined;

/// The pod's interface, in its namespace and in the guest.
pub(crate) const INTERFACE: &str = "eth0";

/// Transport protocol of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of the host that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Only on this address of the host; on all when absent.
    pub host_ip: Option<IpAddr>,
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// The pod that wants a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetworkRequest {
    /// The pod's UID: names all that is made for it.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its host ports.
    pub host_ports: Vec<HostPort>,
    /// How many queues the tap has, 1 or more: as many pairs of queues can its machine's interface have.
    pub queues: usize,
}

/// What the guest's interface shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodInterface {
    /// Where the pod's network namespace is bound on the host.
    pub netns: PathBuf,
    /// The interface's name.
    pub name: String,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses, with prefix length; the first is the pod's IP.
    pub addresses: Vec<IpNet>,
    /// Gateway of the first address.
    pub gateway: Option<IpAddr>,
    /// Its routes.
    pub routes: Vec<PodRoute>,
}

/// A route in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Where to.
    pub destination: IpNet,
    /// Next hop; absent: on the link.
    pub via: Option<IpAddr>,
}

/// A pod's network, ready for its machine.
#[derive(Debug)]
pub struct PodNetwork {
    /// What the guest is told.
    pub interface: PodInterface,
    /// The machine's end: frames behind a virtio-net header of 12 bytes, non-blocking, no offloads yet. The tap vanishes
    /// with its last descriptor.
    pub tap: OwnedFd,
    /// Further queues of it, as many as were asked for besides.
    pub more_queues: Vec<OwnedFd>,
}

pub(crate) fn attachment(request: &PodNetworkRequest, netns: PathBuf) -> Attachment {
    let mut runtime_config = Map::new();
    if !request.host_ports.is_empty() {
        let mappings: Vec<Value> = request.host_ports.iter().map(mapping).collect();
        runtime_config.insert("portMappings".to_owned(), mappings.into());
    }
    let args = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &request.namespace),
        ("K8S_POD_NAME", &request.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &request.uid),
        ("K8S_POD_UID", &request.uid),
    ];
    Attachment {
        container_id: request.uid.clone(),
        netns,
        interface: INTERFACE.to_owned(),
        args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        runtime_config,
    }
}

fn mapping(port: &HostPort) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol,
    });
    if let Some(address) = port.host_ip {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// What the plugins gave, with what the kernel says of the interface; `None` when they gave it no address.
pub(crate) fn interface(netns: PathBuf, result: &AddResult, joined: &Joined) -> Option<PodInterface> {
    let given = result.addresses_of(INTERFACE);
    let first = given.first()?;
    let via = |destination: &IpNet| {
        let same_family = |address: &&IpAddr| address.is_ipv4() == destination.addr().is_ipv4();
        given
            .iter()
            .filter_map(|address| address.gateway.as_ref())
            .find(same_family)
            .copied()
    };
    let routes = result
        .routes
        .iter()
        .map(|route| PodRoute {
            destination: route.dst,
            via: route.gw.or_else(|| via(&route.dst)),
        })
        .collect();
    Some(PodInterface {
        netns,
        name: INTERFACE.to_owned(),
        mac: joined.mac,
        mtu: joined.mtu,
        addresses: given.iter().map(|address| address.address).collect(),
        gateway: first.gateway,
        routes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> PodNetworkRequest {
        PodNetworkRequest {
            uid: "6f1d".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            host_ports: vec![HostPort {
                host_ip: None,
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
            }],
            queues: 1,
        }
    }

    #[test]
    fn plugins_learn_the_pod_by_the_usual_arguments() {
        let attachment = attachment(&request(), PathBuf::from("/run/netns/kvmlet-6f1d"));
        let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            args.join(";"),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=6f1d;K8S_POD_UID=6f1d"
        );
        assert_eq!(
            attachment.runtime_config["portMappings"],
            json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }])
        );
    }
}
