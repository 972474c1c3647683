//! Flags. What a node does is in its configuration file; flags are for the few things one sets by hand.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A virtual Kubernetes node whose pods are microVMs.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the node: registers it, takes pods, serves the kubelet port.
    Node(NodeArguments),
    /// Runs one machine; started by the node.
    #[command(hide = true)]
    Vm(VmArguments),
}

#[derive(Debug, Args)]
pub(crate) struct NodeArguments {
    /// The node's configuration.
    #[arg(long, default_value = "/etc/kvmlet/config.yaml")]
    pub(crate) config: PathBuf,
    /// Checks the configuration and this host's KVM, then ends.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VmArguments {
    /// Boots this kernel and initramfs once, says whether the agent answered, and ends.
    #[arg(long, requires_all = ["kernel", "initramfs"])]
    pub(crate) probe: bool,
    /// With --probe: counts exits to user space until the agent's hello, by port and address, as JSON.
    #[arg(long, requires = "probe")]
    pub(crate) count_exits: bool,
    /// With --probe: a read-only disk, as an image is one that is too large to be read in place.
    #[arg(long, requires = "probe")]
    pub(crate) disk: Vec<PathBuf>,
    /// With --probe: an image that the guest reads in place.
    #[arg(long, requires = "probe")]
    pub(crate) pmem: Vec<PathBuf>,
    /// With --probe: a writable disk, as a pod's scratch disk is one.
    #[arg(long, requires = "probe")]
    pub(crate) scratch: Option<PathBuf>,
    /// With --probe: a network device on a new tap of this name.
    #[arg(long, requires = "probe")]
    pub(crate) tap: Option<String>,
    /// With --probe: leaves the guest to a client at this socket, and runs until it powers off.
    #[arg(long, requires = "probe", conflicts_with = "count_exits")]
    pub(crate) vsock: Option<PathBuf>,
    /// With --probe: a serial console on standard error.
    #[arg(long, requires = "probe")]
    pub(crate) serial: bool,
    /// With --probe: guest memory in MiB.
    #[arg(long, default_value_t = 128, requires = "probe")]
    pub(crate) memory: u64,
    /// With --probe: processors.
    #[arg(long, default_value_t = 1, requires = "probe")]
    pub(crate) cpus: u8,
    /// With --probe: a kernel.
    #[arg(long)]
    pub(crate) kernel: Option<PathBuf>,
    /// With --probe: an initramfs with the agent.
    #[arg(long)]
    pub(crate) initramfs: Option<PathBuf>,
}
