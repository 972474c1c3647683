//! bzImages, entered in 64 bits (Linux' Documentation/arch/x86/boot.rst): the payload decompresses itself. Needs protocol 2.12.

use super::image::Image;
use super::map;
use super::{BootError, COMMAND_LINE, Entry, HIGH_START, Kernel, Module, ZERO_PAGE, check_place, write};
use crate::dirty::Ram;
use crate::memory::Layout;

/// The setup header lies here, in the file and in the boot parameters alike.
const HEADER: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const COMMAND_LINE_POINTER: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const COMMAND_LINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The header ends at 0x202 plus the byte at 0x201.
const HEADER_END: usize = 0x201;
/// In the boot parameters only.
const ACPI_RSDP: usize = 0x70;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;

const MIN_VERSION: u16 = 0x20c;
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
const UNREGISTERED_LOADER: u8 = 0xff;
/// What is read of the file to look at it.
const HEAD: usize = 0x300;

/// Whether this is a bzImage.
pub(super) fn is(image: &Image<'_>) -> Result<bool, BootError> {
    let mut magic = [0; 4];
    if image.size() < HEAD as u64 {
        return Ok(false);
    }
    image.read(MAGIC as u64, &mut magic)?;
    Ok(magic == *b"HdrS")
}

fn head(image: &Image<'_>) -> Result<[u8; HEAD], BootError> {
    let mut head = [0; HEAD];
    image.read(0, &mut head)?;
    Ok(head)
}

fn u16_at(head: &[u8; HEAD], at: usize) -> u16 {
    u16::from_le_bytes([head[at], head[at + 1]])
}

fn u32_at(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from(u16_at(head, at)) | u32::from(u16_at(head, at + 2)) << 16
}

/// Loads the payload; `limit` is where low memory ends.
pub(super) fn load(image: &Image<'_>, memory: &Ram, limit: u64) -> Result<Kernel, BootError> {
    let head = head(image)?;
    let version = u16_at(&head, VERSION);
    if version < MIN_VERSION || u16_at(&head, XLOADFLAGS) & KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry { version });
    }
    let setup_sectors = if head[HEADER] == 0 { 4 } else { u64::from(head[HEADER]) };
    let offset = (setup_sectors + 1) * SECTOR;
    let declared = u64::from(u32_at(&head, HEADER + 3)) * 16;
    let size = image.size().saturating_sub(offset).min(declared);
    // The last paragraph may be cut short in the file: a signature follows or nothing does.
    if size + 16 <= declared || size == 0 {
        return Err(BootError::Truncated {
            what: "kernel",
            wanted: offset + declared,
            size: image.size(),
        });
    }
    if size <= ENTRY_64 {
        return Err(BootError::No64BitEntry { version });
    }
    let preferred = u64::from(u32_at(&head, PREF_ADDRESS)) | u64::from(u32_at(&head, PREF_ADDRESS + 4)) << 32;
    let start = if preferred == 0 { HIGH_START } else { preferred };
    let end = check_place(start, size.max(u64::from(u32_at(&head, INIT_SIZE))), limit)?;
    image.load(offset, size, memory, start)?;
    let initramfs_limit = u64::from(u32_at(&head, INITRD_ADDR_MAX)) + 1;
    Ok(Kernel {
        entry: Entry::Linux64 {
            entry: start + ENTRY_64,
            zero_page: ZERO_PAGE,
        },
        end,
        initramfs_limit,
    })
}

/// Writes what RSI points at.
pub(super) fn write_zero_page(
    image: &Image<'_>,
    memory: &Ram,
    layout: &Layout,
    rsdp: u64,
    command_line_size: u32,
    module: Option<Module>,
) -> Result<(), BootError> {
    let head = head(image)?;
    let mut page = [0u8; 4096];
    let end = (MAGIC + usize::from(head[HEADER_END])).min(E820_TABLE);
    page[HEADER..end].copy_from_slice(&head[HEADER..end]);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(TYPE_OF_LOADER, &[UNREGISTERED_LOADER]);
    put(COMMAND_LINE_POINTER, &(COMMAND_LINE as u32).to_le_bytes());
    put(COMMAND_LINE_SIZE, &command_line_size.to_le_bytes());
    if let Some(module) = module {
        // Both are below 4 GiB: the initramfs lies in low memory.
        put(RAMDISK_IMAGE, &(module.address as u32).to_le_bytes());
        put(RAMDISK_SIZE, &(module.size as u32).to_le_bytes());
    }
    put(ACPI_RSDP, &rsdp.to_le_bytes());
    let ranges = map::ranges(layout);
    put(E820_ENTRIES, &[ranges.len() as u8]);
    for (index, range) in ranges.iter().enumerate() {
        let at = E820_TABLE + 20 * index;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &range.size.to_le_bytes());
        put(at + 16, &range.kind.to_le_bytes());
    }
    write(memory, "the boot parameters", ZERO_PAGE, &page)
}
