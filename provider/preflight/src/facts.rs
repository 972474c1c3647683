//! What a host is like, as far as checks ask for it. Plain data: read in `gather`, judged in `judge`.

use std::{path::PathBuf, time::SystemTime};

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// It can be read and written.
    Opens,
    /// Nothing is at its path.
    Missing,
    /// Something else is.
    Other,
    /// It is there and does not open.
    Refused {
        /// The kernel's words.
        error: String,
        /// Permission bits.
        mode: u32,
        /// User and group that it belongs to.
        owner: (u32, u32),
    },
}

/// What is on the file system that has, or will have, the state directory; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For this process.
    pub available: u64,
    /// In all.
    pub total: u64,
}

/// All that is judged.
#[derive(Debug, Clone)]
pub struct Facts {
    /// `uname -m`.
    pub architecture: String,
    /// `uname -r`.
    pub kernel: String,
    /// `vmx` or `svm`, where the processor has it.
    pub virtualization: Option<&'static str>,
    /// The processor says that this is a guest itself.
    pub nested: bool,
    /// Its processor is software: QEMU without KVM.
    pub emulated: bool,
    /// An emulated one will do.
    pub use_emulation: bool,
    /// What the machine calls itself (DMI).
    pub product: Option<String>,
    /// Effective user.
    pub user: u32,
    /// Effective capabilities, by number.
    pub capabilities: u64,
    /// `/dev/kvm`.
    pub kvm: Device,
    /// What KVM says of itself.
    pub kvm_works: Result<(), String>,
    /// `/dev/net/tun`.
    pub tun: Device,
    /// Files that the daemon may have open (the hard limit, to which it raises its own).
    pub open_files: u64,
    /// Most pods of the node.
    pub max_pods: u32,
    /// Controllers of control groups v2; `None` where there is another version, or none.
    pub controllers: Option<Vec<String>>,
    /// `machines.io`, if it cannot be had why.
    pub io: Result<(), String>,
    /// CNI plugins that the node's network is made with, and whether they are there.
    pub plugins: Vec<(String, bool)>,
    /// Where they were looked for.
    pub plugin_dirs: Vec<PathBuf>,
    /// Programs of the host, and whether they are in PATH.
    pub programs: Vec<(&'static str, bool)>,
    /// Kinds of namespaces of the kernel.
    pub namespaces: Vec<String>,
    /// The type of the root's file system.
    pub root: Option<String>,
    /// The kernel filters system calls.
    pub seccomp: bool,
    /// Linux security modules that are on; `None` where it cannot be seen.
    pub security_modules: Option<String>,
    /// The guest's kernel, its path and when it was written.
    pub guest_kernel: (PathBuf, Result<SystemTime, String>),
    /// The guest's initramfs.
    pub guest_initramfs: (PathBuf, Result<SystemTime, String>),
    /// The program of machines.
    pub program: (PathBuf, Result<SystemTime, String>),
    /// `stateDir`.
    pub state_dir: PathBuf,
    /// The room there.
    pub space: Result<Space, String>,
    /// `reserved.ephemeralStorage`, bytes.
    pub reserved: u64,
    /// The host's clock.
    pub now: SystemTime,
}
