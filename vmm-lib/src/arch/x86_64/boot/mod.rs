//! Puts a kernel, its initramfs, command line and tables into guest memory, and says where to begin. Files are read straight into the
//! guest's pages, once. Refuses kernels that need a decompressor's help in 16 bits, and whatever does not fit or overlaps.

pub(crate) mod acpi;
mod bzimage;
mod elf;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod image;
mod line;
mod map;

use std::fs::File;

use vm_memory::{Bytes, GuestAddress};

use crate::dirty::Ram;
use crate::memory::Layout;
use crate::timeline::{Phase, Timeline};
use image::Image;

pub use line::{with_console, with_initcalls, with_virtio_console};

/// Options that save a Linux guest time and exits on this machine: there is no keyboard controller, no legacy port and no PCI outside of the
/// ECAM to look for; a panic ends the machine as [`MachineExit::Reset`](crate::exit::MachineExit::Reset).
pub const FAST_COMMAND_LINE: &str = "quiet nomodule dummy.numdummies=0 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=noearly \
                                     random.trust_cpu=on cryptomgr.notests no_timer_check panic=-1 reboot=acpi";

/// Start info, and behind it module list and memory map (PVH).
const START_INFO: u64 = 0x1000;
/// Linux' boot parameters.
const ZERO_PAGE: u64 = 0x7000;
/// Command line, at most a page.
const COMMAND_LINE: u64 = 0x2_0000;
/// Low memory ends here; what follows is for firmware.
const LOW_END: u64 = 0xa_0000;
/// ACPI tables, in the firmware's range.
const ACPI: u64 = 0xe_0000;
/// Kernels and initramfs lie above.
const HIGH_START: u64 = 0x10_0000;

/// Why nothing can be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("read the {what}")]
    Read {
        /// Kernel or initramfs.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file ends before what it says it has.
    #[error("the {what} is truncated: {wanted} bytes are needed, {size} are there")]
    Truncated {
        /// Kernel or initramfs.
        what: &'static str,
        /// Bytes that must be there.
        wanted: u64,
        /// Bytes that are.
        size: u64,
    },
    /// Neither ELF nor bzImage.
    #[error("the kernel is neither an x86-64 ELF file nor a bzImage")]
    NotAKernel,
    /// An ELF kernel without the note that names its 32-bit entry.
    #[error("the kernel has no PVH entry (built without CONFIG_PVH?)")]
    NoPvhEntry,
    /// An ELF header that contradicts itself.
    #[error("the kernel's ELF headers are broken: {0}")]
    BrokenElf(&'static str),
    /// A bzImage that cannot be entered in 64 bits.
    #[error("the bzImage (boot protocol {version:#x}) has no 64-bit entry")]
    No64BitEntry {
        /// Its protocol.
        version: u16,
    },
    /// A piece of the kernel would lie outside memory.
    #[error("the kernel needs memory at {start:#x} to {end:#x}, the machine has {HIGH_START:#x} to {limit:#x}")]
    KernelOutside {
        /// Its first byte.
        start: u64,
        /// Behind its last.
        end: u64,
        /// Where low memory ends.
        limit: u64,
    },
    /// Two pieces of the kernel would lie over one another.
    #[error("pieces of the kernel overlap at {0:#x}")]
    KernelOverlaps(u64),
    /// No room for the initramfs.
    #[error("the initramfs of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {limit:#x}")]
    NoRoomForInitramfs {
        /// Its size.
        size: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Where it would have to end.
        limit: u64,
    },
    /// Tables did not fit into memory.
    #[error("write {what}")]
    Write {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// How the boot processor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// 32 bits, paging off, start info in EBX.
    Pvh { entry: u64, start_info: u64 },
    /// 64 bits, identity paging, boot parameters in RSI.
    Linux64 { entry: u64, zero_page: u64 },
}

/// What a kernel's loader says.
struct Kernel {
    entry: Entry,
    /// Behind its last byte.
    end: u64,
    /// An initramfs must end here at the latest.
    initramfs_limit: u64,
}

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Module {
    address: u64,
    size: u64,
}

/// What a machine boots.
pub(crate) struct Plan<'a> {
    pub(crate) memory: &'a Ram,
    pub(crate) layout: &'a Layout,
    pub(crate) kernel: &'a File,
    pub(crate) initramfs: Option<&'a File>,
    pub(crate) command_line: &'a str,
    pub(crate) cpus: u8,
    pub(crate) serial: bool,
}

/// Loads everything, and takes note when.
pub(crate) fn load(plan: &Plan<'_>, timeline: &mut Timeline) -> Result<Entry, BootError> {
    let rsdp = acpi::write(plan.memory, plan.layout, plan.cpus, plan.serial, ACPI)?;
    let line = [plan.command_line.as_bytes(), &[0]].concat();
    write(plan.memory, "the command line", COMMAND_LINE, &line)?;
    timeline.done(Phase::Tables);
    let kernel_image = Image::new("kernel", plan.kernel)?;
    let boots_bzimage = bzimage::is(&kernel_image)?;
    let kernel = if boots_bzimage {
        bzimage::load(&kernel_image, plan.memory, plan.layout.low)?
    } else {
        elf::load(&kernel_image, plan.memory, plan.layout.low)?
    };
    timeline.done(Phase::Kernel);
    let module = plan.initramfs.map(|file| load_initramfs(file, plan, &kernel)).transpose()?;
    if boots_bzimage {
        bzimage::write_zero_page(&kernel_image, plan.memory, plan.layout, rsdp, line.len() as u32 - 1, module)?;
    } else {
        elf::write_start_info(plan.memory, plan.layout, rsdp, module)?;
    }
    timeline.done(Phase::Initramfs);
    Ok(kernel.entry)
}

/// Puts the initramfs as high as it can lie, out of the kernel's way.
fn load_initramfs(file: &File, plan: &Plan<'_>, kernel: &Kernel) -> Result<Module, BootError> {
    let image = Image::new("initramfs", file)?;
    let (size, limit, kernel_end) = (image.size(), plan.layout.low.min(kernel.initramfs_limit), kernel.end);
    let address = limit
        .checked_sub(size)
        .map(|address| address & !0xfff)
        .filter(|address| *address >= kernel_end);
    let address = address.ok_or(BootError::NoRoomForInitramfs { size, kernel_end, limit })?;
    image.load(0, size, plan.memory, address)?;
    Ok(Module { address, size })
}

fn write(memory: &Ram, what: &'static str, address: u64, data: &[u8]) -> Result<(), BootError> {
    memory
        .write_slice(data, GuestAddress(address))
        .map_err(|source| BootError::Write { what, source })
}

/// Checks that a piece of the kernel lies where kernels may lie.
fn check_place(start: u64, size: u64, limit: u64) -> Result<u64, BootError> {
    let end = start.saturating_add(size);
    if start < HIGH_START || end > limit {
        Err(BootError::KernelOutside { start, end, limit })
    } else {
        Ok(end)
    }
}
