//! A host that has a kubelet, too: which Node that is, and how much of it kvmlet's node may offer.

use std::path::PathBuf;

use serde::Deserialize;

use super::Config;
use crate::{desired::Amounts, quantity::Quantity};

/// Ports that a kubelet and its kube-proxy listen on by default (pkg/cluster/ports/ports.go, and the kubelet's read-only port).
const TAKEN: [u16; 5] = [10248, 10249, 10250, 10255, 10256];
/// Where a kubelet keeps pods' logs. It removes from there, every minute, what is of no pod of its own (pkg/kubelet/kuberuntime,
/// evictPodLogsDirectories).
const LOGS: &str = "/var/log/pods";
/// Where it keeps its state. What it finds mounted below, it unmounts when it starts.
const STATE: &str = "/var/lib/kubelet";
/// Most characters of a Node's name, so that its reservation pod can be named after it.
const NAME: usize = 253 - PREFIX.len();
/// What stands before it.
const PREFIX: &str = "kvmlet-reservation-";

/// A kubelet's Node on the same host, and the pod there that holds what kvmlet's own node offers.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SharedHost {
    /// The Node of the kubelet that runs on this host, too ([shared hosts](shared-host.md)). With this section the node offers what its
    /// reservation pod holds there, and nothing else.
    #[cfg_attr(test, schemars(extend("x-default" = "required with `shared`")))]
    pub node_name: String,
    /// kubeconfig of an identity that may follow that Node and keep the reservation pod (`kubectl apply -k manifests/shared`, user
    /// `kvmlet:shared`); the node's own identity may do neither.
    #[cfg_attr(test, schemars(extend("x-default" = "required with `shared`")))]
    pub kubeconfig: PathBuf,
    /// What the reservation pod requests.
    pub reservation: Reservation,
    /// The namespace of the reservation pod, whose name is `kvmlet-reservation-<nodeName>`.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Its image, which is run by the kubelet.
    #[serde(default = "default_image")]
    pub image: String,
}

/// What the reservation pod requests of the kubelet's Node.
#[derive(Debug, Clone, Copy, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Reservation {
    /// What the reservation pod requests: capacity of this node, of which `reserved` is kept.
    #[cfg_attr(test, schemars(extend("x-default" = "required with `shared`")))]
    pub cpu: Quantity,
    /// The same for memory.
    #[cfg_attr(test, schemars(extend("x-default" = "required with `shared`")))]
    pub memory: Quantity,
    /// The same for the disk.
    #[cfg_attr(test, schemars(extend("x-default" = "required with `shared`")))]
    pub ephemeral_storage: Quantity,
}

impl Reservation {
    /// As amounts.
    pub fn amounts(self) -> Amounts {
        Amounts {
            cpu: self.cpu,
            memory: self.memory,
            storage: self.ephemeral_storage,
        }
    }
}

fn default_namespace() -> String {
    "kvmlet-reservations".into()
}

fn default_image() -> String {
    "registry.k8s.io/pause:3.10.2".into()
}

impl Config {
    /// The name of the reservation pod.
    pub fn reservation_name(&self) -> String {
        format!("{PREFIX}{}", self.node_name)
    }

    /// What does not go together on a host that has a kubelet, all of it.
    pub(super) fn shared_conflicts(&self) -> Vec<String> {
        let Some(shared) = &self.shared else {
            return Vec::new();
        };
        let mut conflicts = Vec::new();
        if shared.node_name.is_empty() {
            conflicts.push("shared.nodeName is empty: it is the name of the kubelet's Node on this host".into());
        }
        if shared.node_name == self.node_name {
            let name = &self.node_name;
            conflicts.push(format!(
                "shared.nodeName and nodeName are both {name}: the kubelet and kvmlet have a Node each"
            ));
        }
        if self.node_name.len() > NAME {
            conflicts.push(format!(
                "nodeName has more than {NAME} characters, and the reservation pod is named after it"
            ));
        }
        if TAKEN.contains(&self.port) {
            let port = self.port;
            conflicts.push(format!(
                "port {port} is the kubelet's or kube-proxy's on a shared host: set another, as 10260"
            ));
        }
        if self.log_dir.starts_with(LOGS) {
            let why = "is the kubelet's, which removes logs of pods that it does not know: set another, as /var/log/kvmlet/pods";
            conflicts.push(format!("logDir {} {why}", self.log_dir.display()));
        }
        if self.state_dir.starts_with(STATE) {
            let why = "is below the kubelet's, which unmounts what it finds there: set another, as /var/lib/kvmlet";
            conflicts.push(format!("stateDir {} {why}", self.state_dir.display()));
        }
        for (key, value) in [("namespace", &shared.namespace), ("image", &shared.image)] {
            if value.is_empty() {
                conflicts.push(format!("shared.{key} is empty"));
            }
        }
        let (wanted, kept) = (&shared.reservation, &self.reserved);
        for (key, wanted, kept) in [
            ("cpu", wanted.cpu, kept.cpu),
            ("memory", wanted.memory, kept.memory),
            ("ephemeralStorage", wanted.ephemeral_storage, kept.ephemeral_storage),
        ] {
            if wanted <= kept {
                conflicts.push(format!(
                    "shared.reservation.{key} {wanted} leaves pods nothing, as reserved.{key} {kept} is kept of it"
                ));
            }
        }
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tests::GOOD;

    const SHARED: &str = "port: 10260\nlogDir: /var/log/kvmlet/pods\nshared:\n  nodeName: worker\n  kubeconfig: /s\n  \
        reservation: {cpu: 2, memory: 4Gi, ephemeralStorage: 20Gi}\n";

    fn parse(more: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.yaml"), &format!("{GOOD}{more}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_host_is_kvmlets_own_unless_a_kubelets_node_is_named() {
        assert!(parse("").unwrap().shared.is_none());
        let config = parse(SHARED).unwrap();
        assert_eq!(config.reservation_name(), "kvmlet-reservation-n");
        let shared = config.shared.unwrap();
        assert_eq!(
            (&*shared.namespace, &*shared.image),
            ("kvmlet-reservations", "registry.k8s.io/pause:3.10.2")
        );
        assert_eq!(shared.reservation.amounts().memory.value(), 4 << 30);
    }

    #[test]
    fn all_that_a_kubelet_has_already_is_named_at_once() {
        let error = parse(
            "stateDir: /var/lib/kubelet/plugins/kvmlet\nshared: {nodeName: n, kubeconfig: /s, namespace: '', \
             reservation: {cpu: 0, memory: 512Mi, ephemeralStorage: 2Gi}}\n",
        )
        .unwrap_err();
        for words in [
            "shared.nodeName and nodeName are both n",
            "port 10250 is the kubelet's",
            "logDir /var/log/pods is the kubelet's",
            "stateDir /var/lib/kubelet/plugins/kvmlet is below the kubelet's",
            "shared.namespace is empty",
            "shared.reservation.cpu 0 leaves pods nothing, as reserved.cpu 0 is kept of it",
            "shared.reservation.memory 512Mi leaves pods nothing",
        ] {
            assert!(error.contains(words), "no {words:?} in {error}");
        }
        assert!(!error.contains("ephemeralStorage"), "{error}");
    }

    #[test]
    fn a_section_that_says_too_little_or_too_much_names_the_key() {
        let error = parse(&SHARED.replace("  nodeName: worker\n", "")).unwrap_err();
        assert!(error.contains("nodeName"), "{error}");
        let error = parse(&SHARED.replace("cpu: 2", "cpus: 2")).unwrap_err();
        assert!(error.contains("cpus"), "{error}");
    }
}
