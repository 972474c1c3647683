//! What all pods' tasks share: the API server, the image store, the network, the records, the configuration.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::Client;
use kvmlet_image::ImageStore;
use kvmlet_machine::{Program, Uids};
use kvmlet_network::PodNetworks;
use tokio::sync::{OnceCell, Semaphore, watch};
use vmm_lib::spec::DiskFormat;

use crate::{
    certificates::figures::Figures,
    cgroup::IoLimits,
    config::Config,
    downward::Facts,
    events::Recorder,
    figures::{Meters, Readings},
    image_gc::Uses,
    ledger::Ledger,
    names::Dns,
    node::Troubles,
    objects::Objects,
    pressure::Pressure,
    probe::HttpClients,
    random,
    report::Reporter,
    sharing::Copies,
    shutdown::Shutdown,
    store::Store,
    template::Templates,
    traces::Traces,
};

/// Shared by all pods.
pub struct Context {
    /// The configuration.
    pub config: Arc<Config>,
    /// The API server, as this node.
    pub client: Client,
    /// Config maps, secrets, services, tokens.
    pub objects: Objects,
    /// Events.
    pub recorder: Recorder,
    /// Statuses.
    pub reporter: Reporter,
    /// Records.
    pub store: Store,
    /// What pods were given of the node.
    pub ledger: Ledger,
    /// Images.
    pub images: Arc<ImageStore>,
    /// The pods' network; there once the node has its podCIDR.
    pub network: Arc<OnceCell<PodNetworks>>,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// Names.
    pub dns: Dns,
    /// What is wrong with the node.
    pub troubles: Troubles,
    /// What it is short of.
    pub pressure: Pressure,
    /// Whether the host shuts down.
    pub shutdown: Shutdown,
    /// What machines may read and write.
    pub io: IoLimits,
    /// Who runs which machine.
    pub uids: Uids,
    /// What machines run.
    pub program: Program,
    /// Guests that boot at once: a boot is all processor time, and more of them than the host can run only make each one late.
    pub boots: Semaphore,
    /// What machines are copies of.
    pub templates: Templates,
    /// Files that pods may not share, once for each who may.
    pub copies: Copies,
    /// What probes and hooks over HTTP are asked with.
    pub http: HttpClients,
    /// The last readings of pods' and the node's figures.
    pub readings: Readings,
    /// When images were last needed.
    pub image_uses: Uses,
    /// What is counted.
    pub meters: Meters,
    /// Takes traces of pods' starts, where some are wanted.
    pub traces: Option<Traces>,
    /// What is counted of the node's certificates.
    pub certificates: Arc<Figures>,
    /// Serialises the making of scratch templates.
    pub scratch: Mutex<()>,
    /// What the scratch disks of machines are that are made from now on.
    pub scratch_format: watch::Receiver<DiskFormat>,
}

/// How long the node may be without a podCIDR before whoever needs the network says so.
const NETWORK_TIME: Duration = Duration::from_secs(20);

impl Context {
    /// The pods' network, once the node has its podCIDR.
    pub async fn standing_network(&self) -> Result<&PodNetworks, String> {
        let deadline = tokio::time::Instant::now() + NETWORK_TIME;
        loop {
            if let Some(networks) = self.network.get() {
                return Ok(networks);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err("the node has no podCIDR yet (is the controller manager run with --allocate-node-cidrs?)".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What the downward API says of the node, now, and of a pod that has these addresses.
    pub fn facts(&self, pod_ips: Vec<String>) -> Facts {
        Facts {
            node_name: self.config.node_name.clone(),
            host_ips: self.host_ips.clone(),
            pod_ips,
            allocatable: self.ledger.stock().allocatable,
        }
    }

    /// Says what is wrong with the node.
    pub fn trouble(&self, what: &'static str, why: String) {
        self.troubles.lock().expect("no holder panics").insert(what, why);
    }

    /// It is well again.
    pub fn clear_trouble(&self, what: &'static str) {
        self.troubles.lock().expect("no holder panics").remove(what);
    }
}

/// A container identifier: 64 hexadecimal digits.
pub fn new_id() -> String {
    let bytes = loop {
        // Only a signal keeps the kernel from giving them.
        if let Ok(bytes) = random::bytes::<32>() {
            break bytes;
        }
    };
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
