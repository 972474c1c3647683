//! Flags. What a node does is in its configuration file; flags are for the few things one sets by hand.

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand, ValueEnum};

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
    /// Runs the admission webhook, which sends pods of labelled namespaces to virtual nodes.
    Webhook(WebhookArguments),
    /// Runs one machine: by hand with `vm run`; without arguments, as the node starts it.
    Vm(Box<VmArguments>),
    /// Serves a directory to a machine, as the node starts it.
    #[command(hide = true)]
    Fs,
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
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(group(ArgGroup::new("by_hand").args(["probe", "boot_trace"]).multiple(true)))]
#[command(next_help_heading = "Options for a guest with kvmlet's agent")]
pub(crate) struct VmArguments {
    #[command(subcommand)]
    pub(crate) command: Option<VmCommand>,
    /// Boots this kernel and initramfs once, says whether the agent answered, and ends.
    #[arg(long, requires_all = ["kernel", "initramfs"])]
    pub(crate) probe: bool,
    /// The same, and prints where the time went: the host's steps and the guest's initcalls.
    #[arg(long, requires_all = ["kernel", "initramfs"], conflicts_with_all = ["count_exits", "serial"])]
    pub(crate) boot_trace: bool,
    /// Counts exits to user space until the agent's hello, by port and address, as JSON.
    #[arg(long, requires = "by_hand")]
    pub(crate) count_exits: bool,
    /// A read-only disk, as an image is one that is too large to be read in place. Repeatable.
    #[arg(long, requires = "by_hand", value_name = "PATH")]
    pub(crate) disk: Vec<PathBuf>,
    /// An image that the guest reads in place. Repeatable.
    #[arg(long, requires = "by_hand", value_name = "PATH")]
    pub(crate) pmem: Vec<PathBuf>,
    /// A writable disk, as a pod's scratch disk is one.
    #[arg(long, requires = "by_hand", value_name = "PATH")]
    pub(crate) scratch: Option<PathBuf>,
    /// A network device on a new tap of this name.
    #[arg(long, requires = "by_hand", value_name = "NAME")]
    pub(crate) tap: Option<String>,
    /// Leaves the guest to a client at this socket, and runs until it powers off.
    #[arg(long, requires = "by_hand", conflicts_with_all = ["count_exits", "boot_trace"], value_name = "SOCKET")]
    pub(crate) vsock: Option<PathBuf>,
    /// Makes the machine a template, and writes a snapshot of it (`state`, `memory`) into this directory once the agent has answered.
    #[arg(long, requires = "probe", conflicts_with_all = ["vsock", "boot_trace", "from"], value_name = "DIRECTORY")]
    pub(crate) take: Option<PathBuf>,
    /// Takes up the snapshot in this directory in place of booting: a machine of as much memory, made with `--take`.
    #[arg(long, requires = "probe", conflicts_with_all = ["vsock", "boot_trace"], value_name = "DIRECTORY")]
    pub(crate) from: Option<PathBuf>,
    /// Keeps the machine once the agent has answered, until standard input ends.
    #[arg(long, requires = "probe", conflicts_with_all = ["vsock", "take", "boot_trace"])]
    pub(crate) hold: bool,
    /// A serial console on standard error.
    #[arg(long, requires = "by_hand")]
    pub(crate) serial: bool,
    /// A watchdog, as each pod's machine has one.
    #[arg(long, requires = "by_hand")]
    pub(crate) watchdog: bool,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128, requires = "by_hand")]
    pub(crate) memory: u64,
    /// Room for so many MiB more, which nobody asks for (virtio-mem).
    #[arg(long, requires = "by_hand", value_name = "MIB")]
    pub(crate) hotplug: Option<u64>,
    /// Processors.
    #[arg(long, default_value_t = 1, requires = "by_hand")]
    pub(crate) cpus: u8,
    /// In place of kvmlet's own kernel command line.
    #[arg(long, requires = "by_hand", value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) command_line: Option<String>,
    /// A kernel.
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,
    /// An initramfs with the agent.
    #[arg(long, value_name = "PATH")]
    pub(crate) initramfs: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Boots a kernel in a machine of your own, with its console on this terminal.
    ///
    /// What you type reaches the guest, Ctrl-C too; Ctrl-A x ends the machine as if by pulling its plug, and so do SIGINT, SIGTERM, SIGHUP and
    /// SIGQUIT. Where standard input is no terminal, it is the console's input to its end. The exit status is 0 when the guest powered off, else
    /// 1, with the reason on standard error. A kernel that panics resets the machine, which ends it.
    Run(Box<RunArguments>),
    /// Says how much memory a machine has, and has it grow or shrink to SIZE in all.
    ///
    /// Ends when the guest has done so; after 30 s, with status 1 and what it has by then. It goes on by itself, as far as it can.
    Memory(MemoryArguments),
    /// Attaches a disk, an image or a network interface to a machine that runs, and says where it is.
    ///
    /// The guest does not notice by itself. With --agent, kvmlet's agent in it is asked to look for the device, and this ends when its driver is
    /// at work; without, somebody in the guest writes 1 to /sys/bus/pci/rescan.
    Attach(AttachArguments),
    /// Detaches a device from a machine that runs.
    ///
    /// The guest has to let go of it first: with --agent, kvmlet's agent in it is asked to; without, somebody in the guest writes 1 to the
    /// function's `remove` in /sys/bus/pci/devices.
    Detach(DetachArguments),
    /// Writes a snapshot of a machine that runs into a directory (`state`, `memory`), from which `vm run --from` goes on.
    ///
    /// The machine stands still meanwhile, and goes on. Its disks are not part of it: they are to be copied before they are written again, which
    /// --stop leaves time for.
    Snapshot(SnapshotArguments),
    /// Makes a snapshot and the changes since it one snapshot.
    ///
    /// Reads all of both to see that they are what was written, and refuses changes of any other snapshot.
    Merge(MergeArguments),
    /// Lists the devices of a machine that runs: number, address in the guest, whether a driver is at work, name.
    Devices(DevicesArguments),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("device").args(["disk", "tap", "pmem"]).required(true)))]
pub(crate) struct AttachArguments {
    /// The machine's control socket: of `vm run --control`, or `control.sock` in a pod's machine directory.
    pub(crate) socket: PathBuf,
    /// A disk, raw unless its format is stated, read-only with `,ro`.
    #[arg(long, value_name = "PATH[,format=raw|qcow2][,engine=io_uring][,ro]")]
    pub(crate) disk: Option<String>,
    /// The disk's serial, by which the guest may know it [default: the beginning of the file's name].
    #[arg(long, requires = "disk")]
    pub(crate) serial: Option<String>,
    /// An image that the guest reads in place (/dev/pmem0, ...): a file of whole pages of 4 KiB, which must keep its length. The machine needs
    /// room for it (`vm run --pmem-room`), each image on 2 MiB.
    #[arg(long, value_name = "PATH")]
    pub(crate) pmem: Option<PathBuf>,
    /// A network interface on a new tap of this name, which is gone with the device; with several pairs of queues where so many are asked for.
    #[arg(long, value_name = "NAME[,queues=N]")]
    pub(crate) tap: Option<String>,
    /// The interface's address [default: a random one].
    #[arg(long, requires = "tap")]
    pub(crate) mac: Option<String>,
    /// The machine's vsock socket: has kvmlet's agent in the guest look for the device.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArguments {
    /// The machine's control socket: of `vm run --control`, or `control.sock` in a pod's machine directory.
    pub(crate) socket: PathBuf,
    /// The device's number, as `vm attach` has told it.
    pub(crate) slot: u8,
    /// Takes it away even if the guest uses it.
    #[arg(long)]
    pub(crate) force: bool,
    /// The machine's vsock socket: has kvmlet's agent in the guest let go of the device first.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) agent: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArguments {
    /// The control socket of `vm run --control`.
    pub(crate) socket: PathBuf,
    /// Where it goes: made, if need be; must hold no snapshot.
    pub(crate) directory: PathBuf,
    /// Only what was written since the last snapshot, or since the machine was made of one: of a machine with --dirty-log. `vm merge` makes a
    /// whole one of it.
    #[arg(long)]
    pub(crate) changes: bool,
    /// Ends the machine with it.
    #[arg(long)]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArguments {
    /// The directory of a whole snapshot.
    pub(crate) base: PathBuf,
    /// The directory of the changes since.
    pub(crate) changes: PathBuf,
    /// Where the result goes: made, if need be; must hold no snapshot.
    pub(crate) into: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct DevicesArguments {
    /// The machine's control socket: of `vm run --control`, or `control.sock` in a pod's machine directory.
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct MemoryArguments {
    /// The machine's control socket: of `vm run --control`, or `control.sock` in a pod's machine directory.
    pub(crate) socket: PathBuf,
    /// Bytes, or with K, M, G, T: at least what the machine began with, in steps of 2M from there.
    pub(crate) size: Option<String>,
}

/// A console's device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsoleKind {
    /// COM1.
    Serial,
    /// virtio-console.
    Virtio,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The kernel: an x86-64 ELF vmlinux with a PVH entry, or a bzImage.
    #[arg(long, value_name = "PATH")]
    pub(crate) kernel: Option<PathBuf>,
    /// An initramfs.
    #[arg(long, value_name = "PATH")]
    pub(crate) initrd: Option<PathBuf>,
    /// A disk (/dev/vda, /dev/vdb, ...), raw unless its format is stated, read-only with `,ro`. Repeatable. Without --initrd the first one is
    /// the root file system. With `,engine=io_uring` a raw one is read and written by a restricted ring of the kernel's (Linux 5.10).
    #[arg(long, value_name = "PATH[,format=raw|qcow2][,engine=io_uring][,ro]")]
    pub(crate) disk: Vec<String>,
    /// Guest memory: bytes, or with K, M, G, T (Ki, Mi, Gi, Ti mean the same: powers of 1024); a multiple of 2M [default: 256M].
    #[arg(long, value_name = "SIZE")]
    pub(crate) mem: Option<String>,
    /// What the memory may grow to while the machine runs, by `kvmlet vm memory`: --mem and a multiple of 128M (virtio-mem).
    #[arg(long, value_name = "SIZE", requires = "control")]
    pub(crate) memory_max: Option<String>,
    /// Listens at this Unix socket for `kvmlet vm memory`, `attach`, `detach`, `devices` and `snapshot`.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Room for images that are attached while the machine runs, by `kvmlet vm attach --pmem`: a multiple of 2M. Takes no memory.
    #[arg(long, value_name = "SIZE", requires = "control")]
    pub(crate) pmem_room: Option<String>,
    /// Takes up the snapshot in this directory in place of booting: a machine of the same options, whose kernel is not read then.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "boot_trace")]
    pub(crate) from: Option<PathBuf>,
    /// Notes which memory is written, for `vm snapshot --changes`.
    #[arg(long, requires = "control")]
    pub(crate) dirty_log: bool,
    /// Processors [default: 1].
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,
    /// Added to the kernel's command line, behind kvmlet's own (--print-spec shows it).
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    /// A network device on a new tap of this name, which is gone with the machine; it is yours to bring up and join. Repeatable. It has a
    /// thread for each of its queues, one if nothing is said; a guest uses as many as it has processors. With
    /// --spec: the taps that it names by number, in order.
    #[arg(long, value_name = "NAME[,queues=N]")]
    pub(crate) tap: Vec<String>,
    /// A vsock device: connect to this Unix socket and write `CONNECT <port>` and a line feed. The guest's identifier is 3.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) vsock: Option<PathBuf>,
    /// A source of random numbers [default: true].
    #[arg(long, value_name = "BOOL", action = ArgAction::Set)]
    pub(crate) rng: Option<bool>,
    /// What the console is: a serial port (ttyS0), which any kernel has from its first line on, or virtio (hvc0), which costs no time once the
    /// guest has its driver.
    #[arg(long, value_enum, default_value_t = ConsoleKind::Serial, value_name = "KIND")]
    pub(crate) console: ConsoleKind,
    /// A watchdog (i6300esb, /dev/watchdog): ends the machine when the guest has begun to feed it and does not go on.
    #[arg(long)]
    pub(crate) watchdog: bool,
    /// A whole machine, as JSON, in place of the options above (`-` is standard input).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "disk", "mem", "memory_max", "cpus", "cmdline", "vsock", "rng", "console", "watchdog", "from", "dirty_log", "pmem_room"])]
    pub(crate) spec: Option<PathBuf>,
    /// Prints the machine as JSON in place of running it.
    #[arg(long)]
    pub(crate) print_spec: bool,
    /// Prints where the time of the boot went, the host's steps and the guest's initcalls, and ends the machine when its first process has
    /// begun; with a vsock device, when kvmlet's agent has answered.
    #[arg(long, conflicts_with_all = ["print_spec", "control"])]
    pub(crate) boot_trace: bool,
}
