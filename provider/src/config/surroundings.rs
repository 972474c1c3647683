//! What pods have of their host: its paths, a network.

use std::path::{Component, PathBuf};

use serde::Deserialize;

/// Volumes.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Volumes {
    /// Directories and files of the host.
    pub host_path: HostPath,
}

impl Volumes {
    /// What is wrong with these keys: which, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, String)> {
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        let is_plain = |one: &AllowedPath| one.prefix.is_absolute() && one.prefix.components().all(plain);
        let wrong = self.host_path.allowed.iter().find(|one| !is_plain(one))?;
        let message = format!("{} is not an absolute path without \"..\"", wrong.prefix.display());
        Some(("volumes.hostPath.allowed", message))
    }
}

/// What pods may mount of the host; nothing by default.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct HostPath {
    /// What of the host pods may mount by hostPath. Of several that hold a path the longest counts. A pod with another path fails with
    /// `HostPathNotAllowed`.
    pub allowed: Vec<AllowedPath>,
}

/// A directory whose content pods may mount, itself included.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AllowedPath {
    /// A directory whose content pods may mount, itself included; absolute, without `..`.
    pub prefix: PathBuf,
    /// Only by mounts that are `readOnly`.
    #[serde(default)]
    pub read_only: bool,
}

/// The pods' network.
#[derive(Debug, Clone, Default, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Network {
    /// All pods of the cluster. What goes there is not masqueraded.
    #[serde(rename = "clusterCIDR")]
    #[cfg_attr(test, schemars(extend("x-default" = "the Node's podCIDR")))]
    pub cluster_cidr: Option<String>,
    /// MTU of the pods' network, bytes.
    #[cfg_attr(test, schemars(extend("x-default" = "the uplink's")))]
    pub mtu: Option<u32>,
    /// Where CNI plugins are.
    #[cfg_attr(test, schemars(extend("x-default" = "`/usr/lib/cni`, `/opt/cni/bin`")))]
    pub plugin_dirs: Vec<PathBuf>,
    /// kubeconfig of an identity that may list and watch Nodes (`kubectl apply -k manifests`, user `kvmlet:network`). With it routes
    /// to the other nodes' pods are kept on this host; the node's own identity may not see other Nodes. Leave it out where something else
    /// does that.
    pub routes_kubeconfig: Option<PathBuf>,
}
