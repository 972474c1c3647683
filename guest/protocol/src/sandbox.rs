//! What all containers of a pod share: network, names, volumes.

use serde::{Deserialize, Serialize};

/// The pod's surroundings inside its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Host name.
    pub hostname: String,
    /// NIS domain or empty; the host's part of an FQDN goes here only by setHostnameAsFQDN.
    pub domain: String,
    /// Content of /etc/hosts in every container.
    pub hosts: String,
    /// Content of /etc/resolv.conf in every container.
    pub resolv_conf: String,
    /// Network interfaces, found by their MAC address. `lo` comes up by itself.
    pub interfaces: Vec<Interface>,
    /// Volumes, by name.
    pub volumes: Vec<VolumeSpec>,
    /// virtio-blk serial of the scratch disk (ext4), which holds writable layers and disk volumes; grown to its device's size.
    pub scratch: String,
    /// Names of the images on virtio-pmem devices, in the order of their PCI functions; an image of another name is on a disk.
    pub pmems: Vec<String>,
    /// Host time, nanoseconds since 1970; the guest's clock is set when it is off by more than 10 ms.
    pub time: u64,
    /// Kernel parameters, as (`net.ipv4.ip_forward`, `1`).
    pub sysctls: Vec<(String, String)>,
    /// Containers share one process namespace (shareProcessNamespace).
    pub share_processes: bool,
    /// cgroup limit of all containers together, bytes; 0 for none.
    pub memory_max: u64,
}

/// A network interface in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name it shall have, `eth0`.
    pub name: String,
    /// Found by this address.
    pub mac: [u8; 6],
    /// Bytes.
    pub mtu: u32,
    /// With prefix: `10.244.1.5/24`, `fd00::5/64`.
    pub addresses: Vec<String>,
    /// In order.
    pub routes: Vec<Route>,
    /// Static neighbours.
    pub neighbours: Vec<Neighbour>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// `0.0.0.0/0` for the default one.
    pub destination: String,
    /// Gateway; empty for a directly connected network.
    pub gateway: String,
}

/// A static neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its address.
    pub address: String,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Unique in the pod.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
    /// Group that owns it (fsGroup), with the set-group-id bit.
    pub group: Option<u32>,
}

/// Kinds of volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// A directory on the scratch disk (emptyDir).
    Directory,
    /// A tmpfs (emptyDir with medium Memory) of at most this many bytes; 0 for half of the memory.
    Memory {
        /// Bytes.
        size: u64,
    },
    /// Files written by the host (configMap, secret, downwardAPI, projected) into a tmpfs.
    Files(VolumeContent),
    /// A directory of the host (hostPath), on a virtio-fs device. Since version [`crate::SHARE_VERSION`].
    Share {
        /// The device's tag.
        tag: String,
        /// Not the directory, but the one file in it, [`crate::SHARED_FILE`].
        file: bool,
    },
    /// An image's files, read-only and not executable (KEP-4639). Since version [`crate::IMAGE_VERSION`].
    Image {
        /// Name of the image, as [`crate::RootFs::device`].
        device: String,
    },
}

/// All files of a volume, behind a `..data` link that is swapped atomically.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeContent {
    /// The files.
    pub files: Vec<File>,
}

/// A file of a volume.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Relative path without `..`; directories are created.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner, root when absent.
    pub uid: Option<u32>,
    /// Content; never printed.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "File {{ path: {:?}, mode: {:o}, {} bytes }}",
            self.path,
            self.mode,
            self.data.len()
        )
    }
}
