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
