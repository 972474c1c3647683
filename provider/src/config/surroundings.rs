//! What pods have of their host: its paths, a network.

use std::path::PathBuf;

use serde::Deserialize;

/// Volumes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Volumes {
    /// Directories and files of the host.
    pub host_path: HostPath,
}

/// What pods may mount of the host; nothing by default.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostPath {
    /// Of several that hold a path the longest counts.
    pub allowed: Vec<AllowedPath>,
}

/// A directory whose content pods may mount, itself included.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AllowedPath {
    /// Absolute, without `.` and `..`.
    pub prefix: PathBuf,
    /// Only by mounts that are read-only.
    #[serde(default)]
    pub read_only: bool,
}

/// The pods' network.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Network {
    /// All pods of the cluster, not masqueraded.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: Option<String>,
    /// Bytes; the uplink's by default.
    pub mtu: Option<u32>,
    /// Where CNI plugins are, `/usr/lib/cni` and `/opt/cni/bin` by default.
    pub plugin_dirs: Vec<PathBuf>,
    /// kubeconfig of an identity that may list and watch Nodes: routes to their pod CIDRs are then kept on this host. The node's own
    /// identity may not see other Nodes.
    pub routes_kubeconfig: Option<PathBuf>,
}
