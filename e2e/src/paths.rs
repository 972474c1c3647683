//! Where the rig keeps things, and its fixed addresses. Nothing else decides on a path outside a host.

use std::{
    env, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The address of the bridge, where the control plane and the registry listen.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
/// The port of the API server.
pub const API_PORT: u16 = 6443;
/// The port of the public registry, the mirror of all public names.
pub const REGISTRY_PORT: u16 = 5000;
/// The port of the rig's agent on each host.
pub const AGENT_PORT: u16 = 7000;
/// The kubelet port of each host.
pub const KUBELET_PORT: u16 = 10250;
/// All pods of the cluster.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// All services of the cluster.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The API server's own service address.
pub const API_SERVICE: &str = "10.96.0.1";
/// The address promised to the cluster's DNS.
pub const CLUSTER_DNS: &str = "10.96.0.10";

/// The number of the host that counts, beside the cluster's: no cluster has as many.
pub const COUNTED: usize = 10;
/// The number of the host that boots systemd, beside the cluster's.
pub const APART: usize = 11;

/// The Node of the kubelet that the host which boots systemd has beside kvmlet.
pub const WORKER: &str = "worker-11";

/// The address of host `index`, counted from 1.
pub fn host_address(index: usize) -> Ipv4Addr {
    let last = u8::try_from(10 + index).expect("a rig has few hosts");
    Ipv4Addr::new(10, 89, 0, last)
}

/// The name of host `index`, counted from 1.
pub fn host_name(index: usize) -> String {
    format!("kvm-{index}")
}

/// The workspace this program was built from.
pub fn repository() -> PathBuf {
    let e2e = Path::new(env!("CARGO_MANIFEST_DIR"));
    e2e.parent().map_or_else(|| e2e.to_path_buf(), Path::to_path_buf)
}

/// A file or folder of the project's manifests, `webhook/rbac.yaml` for one.
pub fn manifest(part: &str) -> String {
    repository().join("manifests").join(part).to_string_lossy().into_owned()
}

/// The file that this process was made of, also where a build has put another one in its place since.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Cargo's target directory: the one this program runs from.
pub fn target() -> Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    let folder = program
        .ancestors()
        .nth(2)
        .context("this program is not in a cargo target directory")?;
    Ok(folder.to_path_buf())
}

/// What is built once and kept across clones.
pub fn cache() -> PathBuf {
    if let Some(folder) = env::var_os("KVMLET_CACHE") {
        return folder.into();
    }
    let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| home.join(".cache"), PathBuf::from)
        .join("kvmlet")
}

/// The state of one cluster: `$KVMLET_STATE`, else `target/cluster` of the workspace.
#[derive(Debug, Clone)]
pub struct State {
    /// The directory.
    pub root: PathBuf,
    /// The network namespace, `$KVMLET_NETNS`, else `kvmlet`. Those of native hosts begin with it.
    pub namespace: String,
}

impl State {
    /// As the environment says.
    pub fn from_environment() -> Result<Self> {
        let root = env::var_os("KVMLET_STATE").map_or_else(|| repository().join("target/cluster"), PathBuf::from);
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        Ok(Self {
            root: root.canonicalize().with_context(|| format!("resolve {}", root.display()))?,
            namespace: env::var("KVMLET_NETNS").unwrap_or_else(|_| "kvmlet".into()),
        })
    }

    /// Certificates, keys and kubeconfigs.
    pub fn pki(&self) -> PathBuf {
        self.root.join("pki")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("kubeconfig")
    }

    /// Records of running processes.
    pub fn processes(&self) -> PathBuf {
        self.root.join("processes")
    }

    /// Logs of processes and consoles of hosts; they stay after the cluster is gone, until the next one.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What belongs to one host: disks, initramfs, bind-mounted folders.
    pub fn host(&self, name: &str) -> PathBuf {
        self.root.join("hosts").join(name)
    }

    /// The programs and the guest that are installed on the hosts.
    pub fn program(&self) -> PathBuf {
        self.root.join("program")
    }

    /// What runs, once it runs.
    pub fn record(&self) -> PathBuf {
        self.root.join("cluster.json")
    }
}

/// Writes a file and the folders it is in.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
