//! What a machine shall be: plain, versioned data, validated as a whole. Data flows in here and nowhere else; nothing in it is an
//! open resource: files are paths, or numbers in the list of descriptors that the caller passes beside it.
//!
//! As JSON it is described by a schema beside this crate's sources (`schema/v1.json` for version 1), which a test compares with these types.
//! Within a version fields are only ever added, and may be left out; a document that was valid stays valid and means the same machine.
//! Whatever else changes is a new version. Unknown fields are refused: a machine is never made without what was asked for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The version of this schema that [`MachineSpec::version`] must name.
pub const SPEC_VERSION: u32 = 1;
/// Smallest guest memory, bytes.
pub const MIN_MEMORY: u64 = 32 << 20;
/// Largest guest memory, bytes.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Most processors.
pub const MAX_CPUS: u8 = 64;
/// Most disks.
pub const MAX_DISKS: usize = 24;
/// Most disks, images in place and shares together.
pub const MAX_STORES: usize = MAX_DISKS;
/// Most bytes of an image that is read in place.
pub const MAX_PMEM: u64 = 1 << 36;
/// Most pairs of queues of a network interface.
pub const MAX_QUEUE_PAIRS: usize = 8;
/// Most network interfaces.
pub const MAX_NETS: usize = 4;
/// Bytes of a block of [`Hotplug`], which is plugged or unplugged as a whole.
pub const HOTPLUG_BLOCK: u64 = 2 << 20;
/// What the region of [`Hotplug`] begins and ends on: what Linux adds memory in.
pub const HOTPLUG_STEP: u64 = 128 << 20;
/// Longest kernel command line, bytes.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Longest tag of a share, bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;
/// Longest virtio-blk serial, bytes (virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;

/// Most threads that the kernel makes for a disk whose engine is a ring, on Linux 5.15 or newer.
pub const RING_WORKERS: u32 = 8;

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MachineSpec {
    /// [`SPEC_VERSION`].
    pub version: u32,
    /// For messages and thread names.
    pub name: String,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Guest memory, bytes, a multiple of 2 MiB, [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: u64,
    /// What is booted.
    pub boot: Boot,
    /// Block devices, in PCI order.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Images that the guest reads in place, in PCI order, behind the disks.
    #[serde(default)]
    pub pmems: Vec<Pmem>,
    /// Room for images that come while the machine runs ([`Attachment::Pmem`](crate::Attachment::Pmem)), bytes, each rounded up to 2 MiB: a multiple
    /// of that, at most [`MAX_PMEM`]. It is addresses, and takes nothing of the host.
    #[serde(default)]
    pub pmem_room: u64,
    /// Directories of others that the guest mounts (virtio-fs), in PCI order, behind the images.
    #[serde(default)]
    pub shares: Vec<Share>,
    /// Network devices.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// The vsock device.
    #[serde(default)]
    pub vsock: Option<Vsock>,
    /// Whether there is a virtio-rng device (fed by getrandom(2)).
    #[serde(default)]
    pub rng: bool,
    /// Whether there is a virtio-balloon device, by which the guest gives free memory back to the host.
    #[serde(default)]
    pub balloon: bool,
    /// Memory that the guest may have besides, which comes and goes while the machine runs (virtio-mem).
    #[serde(default)]
    pub hotplug: Option<Hotplug>,
    /// A serial port (COM1), for debugging: costs thousands of exits.
    #[serde(default)]
    pub serial: Option<Serial>,
    /// Room for what a machine of this one's snapshot may have besides.
    #[serde(default)]
    pub comb: Option<Comb>,
    /// A snapshot that is taken up in place of booting. Of `boot` nothing is opened then.
    #[serde(default)]
    pub restore: Option<Restore>,
    /// Whether it is noted which pages of memory are written, so that a snapshot can have these alone
    /// ([`Handle::snapshot_changes`](crate::Handle::snapshot_changes)). Costs the guest a fault at its first write to a page after each snapshot.
    #[serde(default)]
    pub dirty_log: bool,
    /// A console (virtio): as good as no exits, but there only once the guest's driver is.
    #[serde(default)]
    pub console: Option<Console>,
    /// A watchdog (Intel 6300ESB): ends the machine when its guest does not feed it any more.
    #[serde(default)]
    pub watchdog: Option<Watchdog>,
    /// Counts exits to user space by port and address; read from the exit record.
    #[serde(default)]
    pub count_exits: bool,
}

/// Kernel, initramfs and command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Boot {
    /// ELF with a PVH note, or bzImage.
    pub kernel: FileSource,
    /// An initramfs, loaded as it is.
    #[serde(default)]
    pub initramfs: Option<FileSource>,
    /// Command line, at most [`MAX_COMMAND_LINE`] bytes.
    pub command_line: String,
}

/// Places for processors, devices and memory that a machine need not have: a snapshot of a machine can become any machine with the same comb.
/// Functions of the bus stand at the same places whether there is a device behind them or not; one without is not to be driven. What a machine
/// that is made of a snapshot has besides (more disks, images or interfaces than places, an interface with several pairs of queues, shares, a
/// watchdog) stands behind all of these, and its guest has to look for it ([`MachineSpec::surplus_places`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Comb {
    /// Processors that the guest is told of, at least `cpus`, at most [`MAX_CPUS`].
    pub cpus: u8,
    /// Disks, at least as many as there are, unless it is made of a snapshot; together with `pmems` at most [`MAX_STORES`].
    pub disks: u8,
    /// Images in place, likewise.
    pub pmems: u8,
    /// Network interfaces, likewise, at most [`MAX_NETS`].
    pub nets: u8,
    /// Room for all images in place, bytes, each rounded up to 2 MiB.
    pub pmem_bytes: u64,
    /// Room for memory that comes and goes, bytes, as `hotplug.size`, and at least that; 0 for no such place.
    pub memory_bytes: u64,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Restore {
    /// The state, read from where the file stands.
    pub state: FileSource,
    /// Memory, mapped: the file must stay as it is for as long as the machine runs.
    pub memory: FileSource,
    /// What is touched first ([`WorkingSet`](crate::snapshot::WorkingSet), as JSON), to be brought in before the guest runs.
    #[serde(default)]
    pub working_set: Option<FileSource>,
    /// Whether all of memory is read at once, to see that it is what was written.
    #[serde(default)]
    pub verify: bool,
}

/// Where a file comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub enum FileSource {
    /// Opened by the machine's builder.
    Path(PathBuf),
    /// The descriptor of this index among those passed to the builder.
    Passed(u32),
}

/// A block device: extents of files, one behind the other, as they are or as an image of a format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Disk {
    /// virtio-blk serial, 1 to [`MAX_SERIAL`] bytes, unique in the machine.
    pub serial: String,
    /// At least one; lengths are multiples of 512 bytes.
    pub extents: Vec<Extent>,
    /// VIRTIO_BLK_F_RO, and files opened without write access.
    pub read_only: bool,
    /// How the bytes of the extents become the disk's: stated here, never guessed from them.
    #[serde(default)]
    pub format: DiskFormat,
    /// How fast the disk is, reads and writes together.
    #[serde(default)]
    pub limits: Limits,
    /// How its files are read and written.
    #[serde(default, skip_serializing_if = "DiskEngine::is_default")]
    pub engine: DiskEngine,
}

/// How a disk's files are read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum DiskEngine {
    /// By a system call for each request (preadv2, pwritev2).
    #[default]
    Calls,
    /// By a ring of the kernel's (io_uring), several requests at once; of raw disks only, on Linux 5.10 or newer. What goes through a ring goes
    /// around system call filters: it is restricted to reading, writing, syncing and allocating in the disk's own files.
    IoUring,
}

impl DiskEngine {
    /// Whether it is the one that is taken if nothing is said.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What lies in a disk's extents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum DiskFormat {
    /// The disk's bytes.
    #[default]
    Raw,
    /// A qcow2 image (version 2 or 3): one extent from offset 0 of its file on, whose length is not looked at, as an image grows. The disk
    /// is as large as the image says.
    Qcow2,
}

/// How much a device may move; without buckets, as much as it can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Bytes.
    #[serde(default)]
    pub bytes: Option<Bucket>,
    /// Requests or frames.
    #[serde(default)]
    pub operations: Option<Bucket>,
}

/// A bucket of tokens, full at the start. What needs more than there are goes, and the next waits until they are paid back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bucket {
    /// Most tokens that it holds, above 0. Waits are of whole milliseconds: the rate of a bucket that fills faster is one bucket a millisecond.
    pub size: u64,
    /// Tokens that come back a second, above 0.
    pub refill: u64,
    /// Tokens beside the bucket, taken first and once.
    #[serde(default)]
    pub burst: u64,
}

/// How much a network device may move in each direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NetLimits {
    /// Frames to the guest; what is too much waits in the tap, which drops what it has no room for.
    #[serde(default)]
    pub receive: Limits,
    /// Frames from the guest; they wait in its queue.
    #[serde(default)]
    pub transmit: Limits,
}

/// A read-only virtio-pmem device: extents of files, one behind the other, mapped into the guest, so that machines which read the same file
/// share the host's pages of it. The files must keep their length for as long as the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Pmem {
    /// For messages.
    pub name: String,
    /// At least one; offsets and lengths are multiples of 4 KiB, all lengths together at most [`MAX_PMEM`].
    pub extents: Vec<Extent>,
}

impl Pmem {
    /// Bytes of all extents together, before the room that they take is rounded up.
    pub fn length(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.length))
    }
}

/// A virtio-fs device: its guest's FUSE messages (Linux's `fuse.h`) go to somebody else, who has the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Share {
    /// What the guest mounts it by, 1 to [`MAX_TAG`] bytes, unique in the machine.
    pub tag: String,
    /// A connected Unix stream socket, always passed. Messages follow one another on it without anything between; each begins with its
    /// length. Whoever is at its other end gets requests of at most 1 MiB and a page, numbered anew, and may answer them in any order.
    pub socket: FileSource,
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Extent {
    /// Which file.
    pub file: FileSource,
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A network device on a tap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Net {
    /// An open tap (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR with 12-byte headers), non-blocking or not.
    pub tap: FileSource,
    /// Further queues of the same tap (IFF_MULTI_QUEUE), open too: with each of them the device has one more pair of queues. At most
    /// [`MAX_QUEUE_PAIRS`] less one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_queues: Vec<FileSource>,
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Offered by VIRTIO_NET_F_MTU, 68 to 65,535.
    pub mtu: u16,
    /// How fast it is.
    #[serde(default)]
    pub limits: NetLimits,
}

/// The vsock device, multiplexed to a Unix socket: a host's client connects, writes `CONNECT <port>\n`, reads `OK <port>\n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Vsock {
    /// The guest's context identifier, 3 or more.
    pub cid: u32,
    /// Path of the Unix socket, created by the machine; or an already listening one.
    pub socket: FileSource,
}

/// Memory besides [`MachineSpec::memory`], behind it in the guest's addresses. Nothing of it is the host's before the guest has it. The room
/// itself costs the host's kernel what KVM keeps for a memory slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hotplug {
    /// Room, bytes: a multiple of [`HOTPLUG_STEP`] above 0, at most [`MAX_MEMORY`].
    pub size: u64,
    /// What the guest shall plug as soon as its driver is ready, bytes: a multiple of [`HOTPLUG_BLOCK`], at most `size`.
    #[serde(default)]
    pub requested: u64,
}

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Serial {
    /// Where its output is appended. What it cannot take, if it does not block, is lost; so is what a guest writes faster than 1 MiB a second
    /// in the long run.
    pub output: FileSource,
    /// Where its input comes from: a file that does not block (O_NONBLOCK), if one is passed.
    #[serde(default)]
    pub input: Option<FileSource>,
}

/// A console: one virtio port, whose files never block: a pipe, socket or terminal that is passed is passed with O_NONBLOCK.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Console {
    /// Where its output is appended, up to 1 MiB a second in the long run: a guest waits to write more. It does not wait longer than 0.1 s for
    /// a host that does not read: what it writes then is lost, and the output says how much that was.
    pub output: FileSource,
    /// Where its input comes from.
    #[serde(default)]
    pub input: Option<FileSource>,
    /// Its size, if it has one.
    #[serde(default)]
    pub size: Option<ConsoleSize>,
}

/// The size of a console, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConsoleSize {
    /// Of a row.
    pub columns: u16,
    /// How many.
    pub rows: u16,
}

/// A watchdog. The guest says how long it may be left alone; when it was so long, the machine ends
/// ([`MachineExit::Watchdog`](crate::exit::MachineExit::Watchdog)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Watchdog {
    /// What is to be done with the machine then.
    pub action: WatchdogAction,
}

/// What a machine's owner is to do when its watchdog has ended it: nobody here starts a machine again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum WatchdogAction {
    /// Start it again.
    Reset,
    /// Leave it off.
    PowerOff,
}
