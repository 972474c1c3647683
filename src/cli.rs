//! Flags. What a node does is in its configuration file; flags are for the few things one sets by hand.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmm_lib::spec::DiskFormat;

/// Where a node's configuration is, unless told otherwise.
pub(crate) const CONFIG: &str = "/etc/kvmlet/config.yaml";

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
    /// Checks whether this host can be a node, and boots a machine to see it; says what to do about what is wrong.
    Preflight(PreflightArguments),
    /// Ends all machines of this host and takes their networks away, for the time without a node; what pods keep on disk stays.
    Cleanup(CleanupArguments),
    /// Installs this image's programs on the host of its pod, and has the host's systemd run them: what the DaemonSet runs (docs/install.md).
    Install(InstallArguments),
    /// Takes from this host what `kvmlet install` brought, with all pods' state. Refuses while pods have machines, unless it is forced.
    Uninstall(UninstallArguments),
    /// Switches kvmlet's nodes on: they take pods once their hosts are checked (KvmletRuntime; asks the API server of KUBECONFIG).
    Enable(EnableArguments),
    /// Switches kvmlet's nodes off: they are cordoned and drained, and go. Refuses while pods are there, unless it is forced.
    Disable(DisableArguments),
    /// Runs the admission webhook, which sends pods of labelled namespaces to virtual nodes.
    Webhook(WebhookArguments),
    /// Lists this host's pods and their machines, also without the API server and without the daemon.
    Ps(PsArguments),
    /// Shows what this host's machines use, second by second, and where the time of their start went.
    Top(TopArguments),
    /// Tells all about one pod's machine, as JSON; nothing of its variables and secrets.
    Inspect(PodArguments),
    /// Shows what the kernel of a pod's machine has written to its console.
    Console(ConsoleArguments),
    /// Shows a container's log from this host's files, as `kubectl logs` does.
    Logs(LogsArguments),
    /// Runs one machine by hand: `kvmlet vm run`.
    #[command(disable_help_flag = true)]
    Vm {
        /// What the program of machines takes.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgument {
    /// The node's configuration.
    #[arg(long = "config", default_value = CONFIG, value_name = "CONFIG")]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// Checks the configuration and this host, without booting anything, then ends.
    #[arg(long)]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PreflightArguments {
    /// The node's configuration; where /etc/kvmlet/config.yaml is not there, the defaults count.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// For whom the answer is.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
    /// What the canary's scratch disk is, as imageFormat of the KvmletRuntime says it for pods.
    #[arg(long, value_enum, default_value_t = Disks::Raw)]
    pub(crate) image_format: Disks,
}

/// What scratch disks are.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Disks {
    /// Sparse files.
    Raw,
    /// Images.
    Qcow2,
}

impl From<Disks> for DiskFormat {
    fn from(disks: Disks) -> Self {
        match disks {
            Disks::Raw => Self::Raw,
            Disks::Qcow2 => Self::Qcow2,
        }
    }
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArguments {
    /// The node's configuration; without such a file the defaults count.
    #[arg(long, default_value = CONFIG)]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct InstallArguments {
    /// The folder with the node's configuration, and the files that it names, which go to /etc/kvmlet.
    #[arg(long, default_value = "/settings", value_name = "FOLDER")]
    pub(crate) settings: PathBuf,
    /// Only says whether the host's daemon is this image's and ready; with --remove, whether it is gone.
    #[arg(long)]
    pub(crate) check: bool,
    /// Takes everything away, in place of putting it there.
    #[arg(long)]
    pub(crate) remove: bool,
    /// Ends machines of pods that are still there.
    #[arg(long, requires = "remove")]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArguments {
    /// Ends machines of pods that are still there.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// More columns, or JSON.
    #[arg(long, short, value_enum)]
    pub(crate) output: Option<Listing>,
}

/// How a list is printed, if not as a table for a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Listing {
    /// With more columns.
    Wide,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// Prints one table, of one second, and ends; so does a `top` whose output is no terminal.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PodArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// Which pod: NAMESPACE/NAME, or its UID or the beginning of that.
    #[arg(value_name = "NAMESPACE/NAME | UID")]
    pub(crate) pod: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArguments {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// Goes on until the machine ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    pub(crate) pod: PodArguments,
    /// Which container; without it the one of the annotation kubectl.kubernetes.io/default-container, else the first.
    #[arg(long, short)]
    pub(crate) container: Option<String>,
    /// Goes on until the container ends.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only so many lines from the end; -1 for all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, value_name = "LINES")]
    pub(crate) tail: i64,
    /// The instance before the present one.
    #[arg(long, short)]
    pub(crate) previous: bool,
    /// A time before each line.
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EnableArguments {
    /// Hosts whose processors are emulated by software may be nodes, too; `=false` takes that back. Without it, it stays as it was.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) use_emulation: Option<bool>,
}

#[derive(Debug, Args)]
pub(crate) struct DisableArguments {
    /// Deletes the pods that are on kvmlet's nodes.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WebhookArguments {
    /// Its configuration; without one, certificates live as docs/burst.md says.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Where it listens.
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// The name of its Service, its Lease and its MutatingWebhookConfiguration.
    #[arg(long, default_value = "kvmlet-webhook")]
    pub(crate) name: String,
    /// Deletes the KvmletRuntime, waits until nodes have nothing of it any more, and ends: before the webhook is removed.
    #[arg(long)]
    pub(crate) withdraw: bool,
}
