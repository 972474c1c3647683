//! ELF kernels with a PVH note: their segments go to their physical addresses, and the kernel begins in 32 bits with a start info
//! (Xen's public `hvm/start_info.h`, version 1).

use super::image::Image;
use super::map;
use super::{BootError, COMMAND_LINE, Entry, Kernel, Module, START_INFO, check_place, write};
use crate::dirty::Ram;
use crate::memory::Layout;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// No kernel has as many as this; Linux has five.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Notes beyond this are not looked at.
const MAX_NOTES: u64 = 64 << 10;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_PVH_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;
const MODULE_LIST: u64 = START_INFO + 0x40;
const MEMORY_MAP: u64 = START_INFO + 0x80;

/// A program header.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    alignment: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Loads the kernel; `limit` is where low memory ends.
pub(super) fn load(image: &Image<'_>, memory: &Ram, limit: u64) -> Result<Kernel, BootError> {
    let segments = segments(image)?;
    let mut loaded: Vec<(u64, u64)> = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD && segment.memory_size > 0) {
        if segment.file_size > segment.memory_size {
            return Err(BootError::BrokenElf("a segment has more bytes in the file than in memory"));
        }
        let (start, end) = (segment.address, check_place(segment.address, segment.memory_size, limit)?);
        if loaded.iter().any(|(other, other_end)| start < *other_end && *other < end) {
            return Err(BootError::KernelOverlaps(start));
        }
        loaded.push((start, end));
        // What the file does not fill is zero: the memory is fresh.
        image.load(segment.offset, segment.file_size, memory, start)?;
    }
    let entry = pvh_entry(image, &segments)?;
    if !loaded.iter().any(|(start, end)| (*start..*end).contains(&entry)) {
        return Err(BootError::BrokenElf("the PVH entry lies outside of what is loaded"));
    }
    let end = loaded.iter().map(|(_, end)| *end).max().unwrap_or(0);
    Ok(Kernel {
        entry: Entry::Pvh {
            entry,
            start_info: START_INFO,
        },
        end,
        initramfs_limit: limit,
    })
}

fn segments(image: &Image<'_>) -> Result<Vec<Segment>, BootError> {
    let mut header = [0; HEADER];
    if image.size() < 4 {
        return Err(BootError::NotAKernel);
    }
    image.read(0, &mut header[..4])?;
    if header[..4] != *b"\x7fELF" {
        return Err(BootError::NotAKernel);
    }
    image.read(0, &mut header)?;
    // 64 bits, little-endian, x86-64.
    if header[4] != 2 || header[5] != 1 || u16_at(&header, 18) != 62 {
        return Err(BootError::NotAKernel);
    }
    let (offset, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(BootError::BrokenElf("program headers of another size, none or far too many"));
    }
    let mut table = vec![0; PROGRAM_HEADER * usize::from(count)];
    image.read(offset, &mut table)?;
    let parse = |entry: &[u8]| Segment {
        kind: u32_at(entry, 0),
        offset: u64_at(entry, 8),
        address: u64_at(entry, 24),
        file_size: u64_at(entry, 32),
        memory_size: u64_at(entry, 40),
        alignment: u64_at(entry, 48),
    };
    Ok(table.chunks_exact(PROGRAM_HEADER).map(parse).collect())
}

fn pvh_entry(image: &Image<'_>, segments: &[Segment]) -> Result<u64, BootError> {
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let mut notes = vec![0; segment.file_size.min(MAX_NOTES) as usize];
        image.read(segment.offset, &mut notes)?;
        let alignment = if segment.alignment == 8 { 8 } else { 4 };
        if let Some(entry) = find_pvh_note(&notes, alignment) {
            return Ok(entry);
        }
    }
    Err(BootError::NoPvhEntry)
}

fn find_pvh_note(mut notes: &[u8], alignment: usize) -> Option<u64> {
    while notes.len() >= 12 {
        let (name_size, size, kind) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize, u32_at(notes, 8));
        let start = (12usize.checked_add(name_size)?).checked_next_multiple_of(alignment)?;
        let end = start.checked_add(size)?;
        let (name, description) = (notes.get(12..12 + name_size)?, notes.get(start..end)?);
        if kind == NOTE_PVH_ENTRY && name == b"Xen\0" {
            return match size {
                4 => Some(u64::from(u32_at(description, 0))),
                8 => Some(u64_at(description, 0)),
                _ => None,
            };
        }
        notes = notes.get(end.checked_next_multiple_of(alignment)?..)?;
    }
    None
}

/// Writes what EBX points at.
pub(super) fn write_start_info(memory: &Ram, layout: &Layout, rsdp: u64, module: Option<Module>) -> Result<(), BootError> {
    let ranges = map::ranges(layout);
    let mut info = Vec::new();
    for word in [START_MAGIC, 1, 0, u32::from(module.is_some())] {
        info.extend(word.to_le_bytes());
    }
    for address in [MODULE_LIST, COMMAND_LINE, rsdp, MEMORY_MAP] {
        info.extend(address.to_le_bytes());
    }
    info.extend((ranges.len() as u64).to_le_bytes());
    write(memory, "the start info", START_INFO, &info)?;
    if let Some(module) = module {
        let entry: Vec<u8> = [module.address, module.size, 0, 0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        write(memory, "the module list", MODULE_LIST, &entry)?;
    }
    let entry = |range: &map::Range| [range.start, range.size, u64::from(range.kind)].map(u64::to_le_bytes).concat();
    write(
        memory,
        "the memory map",
        MEMORY_MAP,
        &ranges.iter().flat_map(entry).collect::<Vec<_>>(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut note = [name.len() as u32, description.len() as u32, kind]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect::<Vec<u8>>();
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(description);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn the_pvh_note_is_found_behind_others() {
        let notes = [
            note(b"GNU\0", 3, &[1; 20]),
            note(b"Xen\0", 17, &[2; 3]),
            note(b"Xen\0", 18, &0x100_0000u32.to_le_bytes()),
        ]
        .concat();
        assert_eq!(find_pvh_note(&notes, 4), Some(0x100_0000));
    }

    #[test]
    fn notes_with_sizes_beyond_their_end_are_no_notes() {
        for length in 0..40 {
            let mut notes = note(b"Xen\0", 18, &[0; 8]);
            notes.truncate(length.min(notes.len() - 1));
            assert_eq!(find_pvh_note(&notes, 4), None, "{length}");
        }
        assert_eq!(find_pvh_note(&[0xff; 64], 4), None);
        assert_eq!(find_pvh_note(&[0xff; 64], 8), None);
    }
}
