//! `/etc/kvmlet/config.yaml`: every key, its default and what it refuses. Unknown keys are errors that name the key and its line.

mod amounts;
mod assumed;
mod certificates;
mod daemon_sets;
mod elastic;
mod eviction;
mod guest;
mod images;
mod machines;
#[cfg(test)]
mod reference;
mod shared;
mod sharing;
mod shutdown;
mod surroundings;
mod traces;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use self::amounts::{PodDefaults, Reserved};
pub use self::certificates::Tls;
pub use self::daemon_sets::DaemonSets;
pub use self::eviction::{Level, Signal, Span, Threshold};
pub use self::guest::Guest;
pub use self::images::{ImageGc, Images, Registry};
pub use self::machines::{Io, MachineUids, Machines};
pub use self::shared::{Reservation, SharedHost};
pub use self::sharing::{Sharing, SharingPolicy};
pub use self::shutdown::ShutdownGracePeriod;
pub use self::surroundings::{AllowedPath, HostPath, Network, Volumes};
pub use self::traces::Tracing;
use crate::quantity::Quantity;

/// The node's configuration, kind `KvmletConfiguration` of `kvmlet.io/v1alpha1`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// `kvmlet.io/v1alpha1`.
    pub api_version: String,
    /// `KvmletConfiguration`.
    pub kind: String,
    /// Name of the Node object.
    pub node_name: String,
    /// The node's InternalIP, and the address the kubelet port listens on. Neither 0.0.0.0 nor loopback.
    #[serde(rename = "nodeIP")]
    pub node_ip: IpAddr,
    /// kubeconfig of the identity `system:node:<nodeName>`, group `system:nodes`. With `bootstrapKubeconfig` it is written where there is
    /// none.
    pub kubeconfig: PathBuf,
    /// kubeconfig with a bootstrap token, by which the first client certificate is asked for ([Certificates](#certificates)).
    #[serde(default)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Whether the client certificate is renewed before it ends.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "`true` with `bootstrapKubeconfig`, else `false`")))]
    rotate_certificates: Option<bool>,
    /// Whether the port's certificate is asked for and renewed, in place of `tls.certFile` and `tls.keyFile`.
    #[serde(default, rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    /// How long certificates that are asked for shall live (`spec.expirationSeconds`, at least 600); the signer may cut it.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "the signer's")))]
    pub certificate_expiration_seconds: Option<i32>,
    /// The kubelet port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Certificates of the kubelet port.
    pub tls: Tls,
    /// Addresses of the cluster's DNS, for `dnsPolicy: ClusterFirst`.
    #[serde(default, rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain.
    #[serde(default = "default_domain")]
    pub cluster_domain: String,
    /// Resolver file of the host, for `dnsPolicy: Default`.
    #[serde(default = "default_resolv_conf", rename = "resolvConf")]
    pub resolv_conf: PathBuf,
    /// What survives a restart: pods' records, images, scratch disks.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where the profiles of system calls are that pods name (`seccompProfile: {type: Localhost}`); a kubelet's are in `/var/lib/kubelet/seccomp`.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "`<stateDir>/seccomp`")))]
    seccomp_profile_root: Option<PathBuf>,
    /// Containers' logs in the CRI format.
    #[serde(default = "default_log_dir")]
    pub log_dir: PathBuf,
    /// Whether `/logs/` of the kubelet port shows the host's `/var/log` to those with the right `nodes/log`.
    #[serde(default = "default_true")]
    pub enable_system_log_handler: bool,
    /// Most pods.
    #[serde(default = "default_max_pods")]
    pub max_pods: u32,
    /// Labels of the Node besides the usual ones: what NodeRestriction lets a node say of itself, so of those below `kubernetes.io` and `k8s.io` only
    /// `topology.kubernetes.io/zone` and `region`, `node.kubernetes.io/…` (`instance-type`), `kubelet.kubernetes.io/…` and the usual ones.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the cloud's controllers and the cluster autoscaler know the host by, `aws:///eu-1a/i-0123` (the Node's `spec.providerID`). It can be
    /// set once; a Node with another one has to be deleted first.
    #[serde(default, rename = "providerID")]
    pub provider_id: Option<String>,
    /// Whether SIGTERM has the node [leave](#a-host-that-leaves): drained first, then without its Node. Without it pods run on while the daemon
    /// is away.
    #[serde(default)]
    pub drain_on_termination: bool,
    /// How long that may take.
    #[serde(default = "elastic::default_drain_timeout")]
    drain_timeout_seconds: u64,
    /// A host that has a kubelet, too.
    #[serde(default)]
    pub shared: Option<SharedHost>,
    /// The guest's kernel and initramfs.
    #[serde(default)]
    pub guest: Guest,
    /// What the host keeps for itself.
    #[serde(default)]
    pub reserved: Reserved,
    /// What a pod without limits gets.
    #[serde(default)]
    pub pod_defaults: PodDefaults,
    /// Users that machines run as.
    #[serde(default, rename = "machineUIDs")]
    pub machine_uids: MachineUids,
    /// What all machines have.
    #[serde(default)]
    pub machines: Machines,
    /// What pods of different owners may share of the host's memory.
    #[serde(default)]
    pub sharing: SharingPolicy,
    /// What becomes of a DaemonSet's pod that this node cannot run (`hostNetwork`, say): `refuse`, it fails with `PodFeatureUnsupported`,
    /// and its controller makes another, again and again; `ignore`, it stays Pending, with an event that says why, and goes when it is
    /// deleted. Such a DaemonSet counts it as unavailable, so that its rolling update waits unless `maxUnavailable` leaves room; better it
    /// does not select these nodes at all, to which [the webhook](burst.md#which-pods) sees. Therefore `refuse` stays the default: it is seen
    /// at once, and holds up no rolling update.
    #[serde(default)]
    pub daemon_sets: DaemonSets,
    /// Rotation of containers' logs.
    #[serde(default)]
    pub logs: Logs,
    /// What volumes may be of this host.
    #[serde(default)]
    pub volumes: Volumes,
    /// Limits on images.
    #[serde(default)]
    pub images: Images,
    /// Below what the node is short of something, and pods are evicted at once; a map that is set has no defaults.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "[below](#a-node-that-is-short-of-something)")))]
    eviction_hard: Option<BTreeMap<Signal, Level>>,
    /// The same where it has been so for a while (`evictionSoftGracePeriod`), which each signal must have.
    #[serde(default)]
    eviction_soft: BTreeMap<Signal, Level>,
    /// That while, for each signal of `evictionSoft` (`1m30s`).
    #[serde(default)]
    eviction_soft_grace_period: BTreeMap<Signal, Span>,
    /// Most seconds that a pod has to end that is evicted for a soft threshold; for a hard one it is 1.
    #[serde(default)]
    pub eviction_max_pod_grace_period: u32,
    /// How much more than the threshold there has to be before it is over.
    #[serde(default)]
    eviction_minimum_reclaim: BTreeMap<Signal, Level>,
    /// For how long the Node says that it is short of something after it last was.
    #[serde(default = "eviction::default_transition")]
    pub eviction_pressure_transition_period: Span,
    /// How long pods have in all to end before the host shuts down (`60s`); 0: it does not wait for them.
    #[serde(default)]
    shutdown_grace_period: Span,
    /// The last part of that, which only critical pods have (priority 2000000000 and more).
    #[serde(default)]
    shutdown_grace_period_critical_pods: Span,
    /// In place of both, for pods from a priority on.
    #[serde(default)]
    shutdown_grace_period_by_pod_priority: Vec<ShutdownGracePeriod>,
    /// Registries by their hosts, with the port where there is one.
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-key" = "<host>")))]
    pub registries: BTreeMap<String, Registry>,
    /// The pods' network.
    #[serde(default)]
    pub network: Network,
    /// Traces of pods' starts.
    #[serde(default)]
    pub tracing: Tracing,
}

/// Log rotation, as the kubelet's containerLogMaxSize and containerLogMaxFiles.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Logs {
    /// Bytes of one log file, at least `64Ki`.
    pub max_size: Quantity,
    /// Log files of one container instance, at least 2.
    pub max_files: usize,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            max_size: Quantity::bytes(10 << 20),
            max_files: 5,
        }
    }
}

fn default_port() -> u16 {
    10250
}
fn default_domain() -> String {
    "cluster.local".into()
}
fn default_resolv_conf() -> PathBuf {
    "/etc/resolv.conf".into()
}
fn default_state_dir() -> PathBuf {
    "/var/lib/kvmlet".into()
}
fn default_log_dir() -> PathBuf {
    "/var/log/pods".into()
}
fn default_true() -> bool {
    true
}

fn default_max_pods() -> u32 {
    110
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what is expected; the text names key and line.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        message: String,
    },
    /// Settings that do not go together, all of them.
    #[error("configuration {path}: {}", .conflicts.join("; "))]
    Conflicts {
        /// The file.
        path: PathBuf,
        /// Each names its keys.
        conflicts: Vec<String>,
    },
    /// A value is out of range.
    #[error("configuration {path}: {key}: {message}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Where profiles of system calls are that pods name (`seccompProfile: {type: Localhost}`).
    pub fn seccomp_dir(&self) -> PathBuf {
        self.seccomp_profile_root.clone().unwrap_or_else(|| self.state_dir.join("seccomp"))
    }

    /// Where the records of pods' networks are.
    pub fn network_dir(&self) -> PathBuf {
        self.state_dir.join("network")
    }

    /// Reads and checks a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(path, &text)
    }

    /// Checks a configuration's text; `path` is for messages only.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_saphyr::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: e.to_string(),
        })?;
        let value = |key, message: String| {
            Err(ConfigError::Value {
                path: path.into(),
                key,
                message,
            })
        };
        if config.api_version != "kvmlet.io/v1alpha1" {
            return value("apiVersion", format!("{:?} is not kvmlet.io/v1alpha1", config.api_version));
        }
        if config.kind != "KvmletConfiguration" {
            return value("kind", format!("{:?} is not KvmletConfiguration", config.kind));
        }
        if config.node_name.is_empty() || config.node_name.len() > 253 {
            return value("nodeName", "must have 1 to 253 characters".into());
        }
        if config.node_ip.is_unspecified() || config.node_ip.is_loopback() {
            return value("nodeIP", format!("{} cannot be reached by the API server", config.node_ip));
        }
        let mut conflicts = config.certificate_conflicts();
        conflicts.extend(config.shared_conflicts());
        if !conflicts.is_empty() {
            let path = path.into();
            return Err(ConfigError::Conflicts { path, conflicts });
        }
        let MachineUids { first, count } = config.machine_uids;
        if first == 0 || first.checked_add(count).is_none() {
            return value(
                "machineUIDs.first",
                format!("{first} and the {count} that follow are not all users but root"),
            );
        }
        if count < config.max_pods {
            return value(
                "machineUIDs.count",
                format!("{count} users are too few for {} pods", config.max_pods),
            );
        }
        if let Some((key, message)) = config.machines.mistake() {
            return value(key, message.into());
        }
        if let Some((key, message)) = config.shutdown_mistake() {
            return value(key, message.into());
        }
        let mistake = || config.elastic_mistake().or_else(|| config.tracing_mistake());
        if let Some((key, message)) = config.eviction_mistake().or_else(mistake) {
            return value(key, message);
        }
        let gc = &config.images.gc;
        if gc.high_threshold_percent > 100 || gc.low_threshold_percent >= gc.high_threshold_percent {
            let message = format!(
                "{} and {} are not a lower and an upper per cent",
                gc.low_threshold_percent, gc.high_threshold_percent
            );
            return value("images.gc.lowThresholdPercent", message);
        }
        if gc.max_age_seconds != 0 && gc.max_age_seconds <= gc.min_age_seconds {
            let message = format!(
                "{} must be greater than images.gc.minAgeSeconds {}",
                gc.max_age_seconds, gc.min_age_seconds
            );
            return value("images.gc.maxAgeSeconds", message);
        }
        if config.logs.max_files < 2 {
            return value("logs.maxFiles", "must be 2 or more".into());
        }
        if config.logs.max_size.value() < 64 << 10 {
            return value("logs.maxSize", "must be 64Ki or more".into());
        }
        if let Some((key, message)) = config.volumes.mistake() {
            return value(key, message);
        }
        Ok(config)
    }
}

#[cfg(test)]
pub(crate) mod tests;
