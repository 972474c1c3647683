//! A KVM host of the cluster: a whole emulated machine, or a set of namespaces of this one. Both are started differently
//! (`emulated`, `native`) and then are the same: an address, the rig's agent behind it, and fixed paths inside.

mod emulated;
mod native;
mod shares;

use std::{
    fs::File,
    io::{self, Read},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    agent::{Client, CommandOutput, Service, ServiceStatus},
    netns::Netns,
    node,
    paths::{KUBELET_PORT, State, host_address, host_name},
    process::{Process, tail},
    wait::wait_while,
};

/// How long a command on a host may take unless said otherwise: emulated hosts are slow.
const COMMAND: Duration = Duration::from_secs(120);

/// What kind of machine the hosts of a cluster are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    /// This machine: its KVM boots a kernel.
    Native,
    /// QEMU's software emulation, which has a KVM that does.
    Emulated,
}

/// Processors of an emulated host that programs may use.
#[derive(Debug, Clone)]
pub enum Processors {
    /// So many, side by side.
    Several(usize),
    /// So many, in turn, of this QEMU: no processor runs what another rewrites meanwhile, as the kernel does at the first and after the last of many
    /// things (static keys). A service manager with a kubelet brings and takes more of those than a host could keep (see `rig-init`).
    InTurn(usize, PathBuf),
    /// One, whose time is the instructions that it has carried out, 2 ns each, and real time where it had nothing to do: the same work takes the
    /// same time on any machine, busy or not. Of this QEMU.
    Counted(PathBuf),
}

/// The size of an emulated host.
#[derive(Debug, Clone)]
pub struct Size {
    /// What runs programs.
    pub processors: Processors,
    /// Memory in MiB.
    pub memory: usize,
}

/// What hosts are started from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Emulated: the image's folder, the disk with kube-proxy, the size.
    Emulated {
        /// From `e2e/host/build.sh`.
        image: PathBuf,
        /// From [`crate::artifacts::control_plane_disk`].
        control_plane_disk: PathBuf,
        /// Of each.
        size: Size,
    },
    /// Native: the folder of the control plane's programs.
    Native {
        /// From `e2e/controlplane/build.sh`.
        programs: PathBuf,
    },
}

/// A KVM host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name, which is also its Node's.
    pub name: String,
    /// Its address on the cluster's bridge.
    pub address: Ipv4Addr,
    /// What it is.
    pub kind: HostKind,
    state: State,
    client: Client,
}

impl Host {
    /// Host `index`, counted from 1, as the state directory's cluster has it.
    pub fn new(state: &State, index: usize, kind: HostKind) -> Self {
        let address = host_address(index);
        let client = Client::new(Netns::of(state), address);
        Self {
            name: host_name(index),
            address,
            kind,
            state: state.clone(),
            client,
        }
    }

    /// Starts it; [`Self::wait_until_up`] tells when it can be used.
    pub fn start(&self, source: &Source) -> Result<()> {
        match source {
            Source::Emulated {
                image,
                control_plane_disk,
                size,
            } => emulated::start(&self.state, self, image, control_plane_disk, size),
            Source::Native { programs } => native::start(&self.state, self, programs),
        }
    }

    /// Waits until the rig's agent answers; fails at once when the host dies.
    pub fn wait_until_up(&self, deadline: Duration) -> Result<()> {
        let recorded = Process::named(&self.state, &self.name)?;
        let process = recorded.with_context(|| format!("{} was not started", self.name))?;
        wait_while(
            &format!("{} to be up", self.name),
            deadline,
            || process.check(&self.state),
            || self.client.output(&["true"], b"", Duration::from_secs(10)).map(Some),
        )?;
        match self.kind {
            // It has read whole seconds off its clock chip.
            HostKind::Emulated => self.client.set_clock(Duration::from_secs(10)),
            HostKind::Native => Ok(()),
        }
    }

    /// Where its node listens, as `ADDRESS:PORT`.
    pub fn kubelet(&self) -> String {
        format!("{}:{KUBELET_PORT}", self.address)
    }

    /// Runs a command to its end, whatever its exit code.
    pub fn run(&self, argv: &[&str]) -> Result<CommandOutput> {
        self.run_with(argv, b"", COMMAND)
    }

    /// Runs a command with standard input and a deadline of its own.
    pub fn run_with(&self, argv: &[&str], input: &[u8], deadline: Duration) -> Result<CommandOutput> {
        self.client
            .output(argv, input, deadline)
            .with_context(|| format!("{}: {}", self.name, argv.join(" ")))
    }

    /// Runs a shell script; anything but exit code 0 is an error that says what it wrote. Answers its standard output.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(&["sh", "-c", script])?;
        ensure!(
            output.code == 0,
            "{}: `{script}` exited with {}: {}",
            self.name,
            output.code,
            output.error_text()
        );
        Ok(output.text())
    }

    /// Runs a command with this process's standard streams; answers its exit code.
    pub fn attach(&self, argv: &[&str], input: impl Read + Send + 'static) -> Result<i32> {
        let forward = |is_error: bool, bytes: &[u8]| {
            // Whoever reads this program's output may have gone: the command still runs to its end.
            let _ = if is_error {
                io::Write::write_all(&mut io::stderr(), bytes)
            } else {
                io::Write::write_all(&mut io::stdout(), bytes)
            };
        };
        self.client.stream(argv, input, Duration::from_secs(24 * 3600), forward)
    }

    /// Writes a file on the host, in one step, with its folders.
    pub fn put(&self, path: &str, mode: u32, content: impl Read) -> Result<()> {
        self.client
            .put(path, mode, content)
            .with_context(|| format!("put a file on {}", self.name))
    }

    /// Copies a file of this machine to the host.
    pub fn put_file(&self, path: &str, mode: u32, source: &Path) -> Result<()> {
        self.put(
            path,
            mode,
            File::open(source).with_context(|| format!("open {}", source.display()))?,
        )
    }

    /// Starts a service.
    pub fn start_service(&self, service: &Service) -> Result<ServiceStatus> {
        self.client.start(service).with_context(|| self.name.clone())
    }

    /// Signals a service and waits for its end.
    pub fn stop_service(&self, name: &str, signal: Signal, wait: Duration) -> Result<ServiceStatus> {
        self.client.stop(name, signal as i32, wait).with_context(|| self.name.clone())
    }

    /// Starts `kvmlet node` as it was installed.
    pub fn start_daemon(&self) -> Result<ServiceStatus> {
        self.start_service(&node::kvmlet_service())
    }

    /// Ends `kvmlet node` as a service manager would.
    pub fn stop_daemon(&self) -> Result<ServiceStatus> {
        self.stop_service(node::KVMLET, Signal::SIGTERM, Duration::from_secs(60))
    }

    /// Ends `kvmlet node` with SIGKILL.
    pub fn kill_daemon(&self) -> Result<ServiceStatus> {
        self.stop_service(node::KVMLET, Signal::SIGKILL, Duration::from_secs(20))
    }

    /// Whether `kvmlet node` runs, or how it ended.
    pub fn daemon_status(&self) -> Result<ServiceStatus> {
        self.client.status(node::KVMLET)
    }

    /// The last lines that `kvmlet node` wrote.
    pub fn daemon_log(&self, lines: usize) -> Result<String> {
        self.sh(&format!("tail -n {lines} {} 2>/dev/null || true", node::KVMLET_LOG))
    }

    /// The last lines of the host's own console.
    pub fn console(&self, lines: usize) -> String {
        tail(&self.console_file(), lines)
    }

    fn console_file(&self) -> PathBuf {
        let suffix = if self.kind == HostKind::Emulated { "-console" } else { "" };
        self.state.logs().join(format!("{}{suffix}.log", self.name))
    }
}
