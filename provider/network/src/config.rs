//! Owns what the node's pod network is made from, and kvmlet's own CNI configuration.
//!
//! Refuses masquerading in the bridge plugin: that one would also hide a pod's address from pods on other nodes. The
//! host's own rule (see [`crate::host`]) masquerades only what leaves the cluster.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::json;

use crate::cni::ConfigList;

/// Version of the CNI specification spoken with the plugins.
pub const CNI_VERSION: &str = "1.0.0";

/// Name of kvmlet's own network; host-local keeps its leases under it.
const NETWORK_NAME: &str = "kvmlet";

/// What every pod network of this node has in common.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The Node's `spec.podCIDR`: pods get their addresses here, the bridge the first one.
    pub pod_cidr: Ipv4Net,
    /// All pods of the cluster: traffic to these is never masqueraded.
    pub cluster_cidr: Ipv4Net,
    /// MTU of the pods' interfaces, see [`crate::host::mtu_of`].
    pub mtu: u32,
    /// Name of the bridge.
    pub bridge: String,
    /// Where records and leases are kept.
    pub state_dir: PathBuf,
    /// Where namespaces are bound.
    pub netns_dir: PathBuf,
    /// Where plugins are looked for, in this order.
    pub plugin_dirs: Vec<PathBuf>,
    /// Longest time for one plugin, or for one visit of a namespace.
    pub timeout: Duration,
}

impl NetworkConfig {
    /// The defaults of a host that kvmlet has for itself, with Debian's plugins.
    #[must_use]
    pub fn new(pod_cidr: Ipv4Net, cluster_cidr: Ipv4Net, mtu: u32, state_dir: PathBuf) -> Self {
        Self {
            pod_cidr,
            cluster_cidr,
            mtu,
            bridge: "kvmlet0".to_owned(),
            state_dir,
            netns_dir: PathBuf::from("/run/netns"),
            plugin_dirs: vec![PathBuf::from("/usr/lib/cni"), PathBuf::from("/opt/cni/bin")],
            timeout: Duration::from_secs(30),
        }
    }

    /// For whoever only takes networks away, or looks for plugins: addresses play no part in that.
    ///
    /// # Panics
    /// Never: its text is a network.
    #[must_use]
    pub fn without_addresses(state_dir: PathBuf) -> Self {
        let none = "0.0.0.0/0".parse().expect("it is a network");
        Self::new(none, none, 0, state_dir)
    }

    /// With plugins in these directories; none keep the defaults.
    #[must_use]
    pub fn with_plugin_dirs(mut self, dirs: &[PathBuf]) -> Self {
        if !dirs.is_empty() {
            self.plugin_dirs = dirs.to_vec();
        }
        self
    }

    /// kvmlet's own configuration list. `portmap` stands in it only for pods with host ports: starting a plugin for
    /// nothing costs every other pod its time.
    #[must_use]
    pub fn config_list(&self, with_host_ports: bool) -> ConfigList {
        let mut plugins = vec![json!({
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": true,
            // A Node that was deleted and made again may have another range: then the old range's address has no more use.
            "forceAddress": true,
            "hairpinMode": true,
            "ipMasq": false,
            "mtu": self.mtu,
            "ipam": {
                "type": "host-local",
                "dataDir": self.state_dir.join("leases"),
                "ranges": [[{ "subnet": self.pod_cidr.trunc().to_string() }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })];
        if with_host_ports {
            plugins.push(json!({
                "type": "portmap",
                "capabilities": { "portMappings": true },
                "snat": true,
            }));
        }
        ConfigList {
            version: CNI_VERSION.to_owned(),
            name: NETWORK_NAME.to_owned(),
            plugins,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig::new(
            "10.244.3.0/24".parse().unwrap(),
            "10.244.0.0/16".parse().unwrap(),
            1450,
            PathBuf::from("/var/lib/kvmlet/network"),
        )
    }

    #[test]
    fn the_bridge_gets_the_nodes_range_and_mtu_and_never_masquerades() {
        let list = config().config_list(false);
        assert_eq!(list.plugins.len(), 1);
        let bridge = &list.plugins[0];
        assert_eq!(bridge["type"], "bridge");
        assert_eq!(bridge["mtu"], 1450);
        assert_eq!(bridge["ipMasq"], false);
        assert_eq!(bridge["forceAddress"], true);
        assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(bridge["ipam"]["dataDir"], "/var/lib/kvmlet/network/leases");
    }

    #[test]
    fn only_pods_with_host_ports_pay_for_portmap() {
        let list = config().config_list(true);
        assert_eq!(list.plugins[1]["type"], "portmap");
        assert_eq!(list.plugins[1]["capabilities"]["portMappings"], true);
    }

    #[test]
    fn a_range_written_with_host_bits_is_passed_on_as_its_network() {
        let mut config = config();
        config.pod_cidr = "10.244.3.17/24".parse().unwrap();
        assert_eq!(
            config.config_list(false).plugins[0]["ipam"]["ranges"][0][0]["subnet"],
            "10.244.3.0/24"
        );
    }
}
