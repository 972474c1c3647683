//! The cluster's network: a namespace with a bridge, a tap or a pair of virtual cables a host, and ways to act inside it.
//! This process itself never changes its own namespace.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{
    command::call,
    paths::{GATEWAY, State, write},
};

/// A network namespace with a name.
#[derive(Debug, Clone)]
pub struct Netns {
    /// As `ip netns` knows it.
    pub name: String,
}

impl Netns {
    /// The cluster's.
    pub fn of(state: &State) -> Self {
        Self {
            name: state.namespace.clone(),
        }
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.file().exists()
    }

    fn file(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Makes it, with its loopback up.
    pub fn create(&self) -> Result<()> {
        call("ip", ["netns", "add", &self.name])?;
        self.ip(&["link", "set", "lo", "up"])
    }

    /// Deletes it, if it is there.
    pub fn delete(&self) -> Result<()> {
        if self.exists() {
            call("ip", ["netns", "delete", &self.name])
        } else {
            Ok(())
        }
    }

    /// `ip` inside.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        call("ip", ["-n", &self.name].iter().chain(arguments))
    }

    /// A command that will run inside; the process keeps its id.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Connects from inside. A socket stays in the namespace of the thread that made it, so a passing thread makes it.
    pub fn connect(&self, address: SocketAddr, deadline: Duration) -> Result<TcpStream> {
        let file = self.file();
        let connect = move || -> Result<TcpStream> {
            let namespace = File::open(&file).with_context(|| format!("open {}", file.display()))?;
            setns(namespace, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
            TcpStream::connect_timeout(&address, deadline).with_context(|| format!("connect to {address}"))
        };
        thread::spawn(connect)
            .join()
            .map_err(|_| anyhow!("the connecting thread panicked"))?
    }

    /// The bridge of the cluster, with the gateway's address.
    pub fn add_bridge(&self) -> Result<()> {
        self.ip(&["link", "add", "br0", "type", "bridge"])?;
        self.ip(&["addr", "add", &format!("{GATEWAY}/24"), "dev", "br0"])?;
        self.ip(&["link", "set", "br0", "up"])?;
        call("ip", ["netns", "exec", &self.name, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    }

    /// A tap on the bridge for an emulated host.
    pub fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        self.ip(&["link", "set", name, "master", "br0", "up"])
    }

    /// Takes such a tap away.
    pub fn remove_tap(&self, name: &str) -> Result<()> {
        self.ip(&["link", "delete", name])
    }

    /// A namespace joined to the bridge, as `eth0`, for a native host.
    pub fn add_native(&self, host: &Self, port: &str, address: Ipv4Addr) -> Result<()> {
        host.create()?;
        self.ip(&["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", &host.name])?;
        self.ip(&["link", "set", port, "master", "br0", "up"])?;
        host.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        host.ip(&["link", "set", "eth0", "up"])?;
        host.ip(&["route", "add", "default", "via", &GATEWAY.to_string()])
    }
}

/// Where it is written which state directory a namespace belongs to.
fn owner_file(namespace: &str) -> PathBuf {
    PathBuf::from("/run/kvmlet-e2e").join(namespace)
}

/// The state directory that uses this cluster's namespace, if any does.
pub fn owner(namespace: &str) -> Option<PathBuf> {
    fs::read_to_string(owner_file(namespace)).ok().map(PathBuf::from)
}

/// Writes down that the namespace belongs to this state directory.
pub fn claim(state: &State) -> Result<()> {
    write(&owner_file(&state.namespace), state.root.to_string_lossy().as_bytes())
}

/// Forgets it.
pub fn release(namespace: &str) -> Result<()> {
    match fs::remove_file(owner_file(namespace)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("release the network namespace"),
        _ => Ok(()),
    }
}

/// All of the cluster's namespaces that exist: its own and those of native hosts.
pub fn all(state: &State) -> Vec<Netns> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let prefix = format!("{}-kvm-", state.namespace);
    names
        .filter(|name| *name == state.namespace || name.starts_with(&prefix))
        .map(|name| Netns { name })
        .collect()
}
