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
/// Most network interfaces.
pub const MAX_NETS: usize = 4;
/// Longest kernel command line, bytes.
pub const MAX_COMMAND_LINE: usize = 2047;
/// Longest tag of a share, bytes (virtio 1.2, 5.11.4).
pub const MAX_TAG: usize = 36;
/// Longest virtio-blk serial, bytes (virtio 1.2, 5.2.6).
pub const MAX_SERIAL: usize = 20;

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
    /// A serial port (COM1), for debugging: costs thousands of exits.
    #[serde(default)]
    pub serial: Option<Serial>,
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

/// A block device: extents of files, one behind the other.
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
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Offered by VIRTIO_NET_F_MTU, 68 to 65,535.
    pub mtu: u16,
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

/// A serial port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Serial {
    /// Where its output is appended.
    pub output: FileSource,
}
