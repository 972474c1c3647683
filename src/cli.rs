//! Flags. What a node does is in its configuration file; flags are for the few things one sets by hand.

use std::{ffi::OsString, path::PathBuf};

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
    /// Ends all machines of this host and takes their networks away, for the time without a node; what pods keep on disk stays.
    Cleanup(CleanupArguments),
    /// Runs one machine by hand: `kvmlet vm run`.
    #[command(disable_help_flag = true)]
    Vm {
        /// What the program of machines takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
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
pub(crate) struct CleanupArguments {
    /// The node's configuration; without such a file the defaults count.
    #[arg(long, default_value = "/etc/kvmlet/config.yaml")]
    pub(crate) config: PathBuf,
}
