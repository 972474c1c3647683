//! A machine on KVM: small, typed, without Kubernetes and without an async runtime.
//!
//! A [`spec::MachineSpec`] says what the machine shall be; [`Builder`] checks it and makes a [`Machine`] whose guest has not run yet;
//! [`Machine::run`] blocks until the machine's end and returns an [`exit::MachineReport`]. A [`Handle`] stops it from elsewhere.
//!
//! ```no_run
//! use vmm_lib::spec::{Boot, FileSource, MachineSpec, SPEC_VERSION};
//!
//! let spec = MachineSpec {
//!     version: SPEC_VERSION,
//!     name: "example".into(),
//!     cpus: 1,
//!     memory: 128 << 20,
//!     boot: Boot {
//!         kernel: FileSource::Path("vmlinux".into()),
//!         initramfs: Some(FileSource::Path("initramfs.cpio".into())),
//!         command_line: vmm_lib::boot::FAST_COMMAND_LINE.into(),
//!     },
//!     disks: vec![],
//!     pmems: vec![],
//!     shares: Vec::new(),
//!     nets: vec![],
//!     vsock: None,
//!     rng: true,
//!     balloon: true,
//!     hotplug: None,
//!     serial: None,
//!     comb: None,
//!     restore: None,
//!     pmem_room: 0,
//!     dirty_log: false,
//!     console: None,
//!     watchdog: None,
//!     count_exits: false,
//! };
//! let machine = vmm_lib::Builder::new(spec, vec![]).build()?;
//! println!("{:?}", machine.run().exit);
//! # Ok::<(), vmm_lib::BuildError>(())
//! ```
//!
//! # The machine
//! x86-64; ELF kernels by their PVH entry or bzImages by their 64-bit one; hardware-reduced ACPI (power off and reset by register, nothing
//! legacy); KVM's interrupt controllers, no PIT; PCI bus 0 through an ECAM page that the guest reads without an exit; modern virtio with
//! MSI-X only, whose registers take writes that do not act by themselves without one. What a guest does wrong ends its device or its machine with a typed reason, never the process.
//!
//! # Threads
//! `vcpuN` run the guest; each device has its own, named after it. SIGRTMIN is taken to get processors out of the guest. There are no others
//! and nothing runs before [`Machine::run`], whose caller makes all of them.
//!
//! # Confinement
//! This library confines nothing and makes it possible: [`files::open_files`] opens all that a specification names, [`Builder::kvm`] takes
//! `/dev/kvm` open, [`virtio::vsock::dialer`] reaches the guest without a path, and what [`Builder::enter`] is given is called by each thread
//! before its work. From [`Builder::build`] on no path is looked up.

// Files of tests that are shared with those outside name the library as they do.
#[cfg(test)]
extern crate self as vmm_lib;

mod arch;
mod attach;
pub mod builder;
mod bus;
mod complaints;
mod devices;
mod dirty;
pub mod exit;
pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod generation;
mod hotplug;
mod images;
mod irq;
pub mod kvm;
mod late_images;
mod loading;
mod lock;
pub mod machine;
mod memory;
mod outlet;
mod pause;
mod pci;
mod posted;
#[cfg(test)]
mod schema;
mod serial;
pub mod snapshot;
pub mod spec;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod threads;
pub mod timeline;
pub mod validate;
mod vcpu;
pub mod virtio;
mod watchdog;

pub use arch::boot;
pub use attach::{AttachError, Attachment, DetachError, Occupied};
pub use builder::{BuildError, Builder};
pub use hotplug::{Hotplugged, ResizeError};
pub use machine::{Handle, Machine};

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
