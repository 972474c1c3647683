//! What of a template's memory a copy has touched, by the host's tables of its process (Documentation/admin-guide/mm/pagemap.rst).

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::Path,
};

use vmm_lib::snapshot::WorkingSet;

const PAGE: u64 = 4096;
/// The page is there.
const PRESENT: u64 = 1 << 63;
/// It is the file's, not a copy of it.
const OF_FILE: u64 = 1 << 61;
/// Pages between two pieces that are one for it: asking once more costs more than these.
const GAP: u64 = 4;

/// What the process has touched of the file `memory` that it maps.
pub(super) fn observe(pid: u32, memory: &Path) -> io::Result<WorkingSet> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let (mut written, mut read) = (Vec::new(), Vec::new());
    for (addresses, offset) in mappings(&maps, memory) {
        let pages = (addresses.end - addresses.start) / PAGE;
        let mut entries = vec![0; pages as usize * 8];
        pagemap.read_exact_at(&mut entries, addresses.start / PAGE * 8)?;
        for (page, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_ne_bytes(entry.try_into().expect("pieces of eight"));
            let start = offset + page as u64 * PAGE;
            if entry & PRESENT != 0 {
                let of = if entry & OF_FILE == 0 { &mut written } else { &mut read };
                add(of, start, if entry & OF_FILE == 0 { 0 } else { GAP * PAGE });
            }
        }
    }
    Ok(WorkingSet { written, read })
}

/// Where a process has mapped a file, and from which offset of it on.
fn mappings(maps: &str, file: &Path) -> Vec<(Range<u64>, u64)> {
    let one = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let offset = words.nth(1)?;
        let path = words.nth(2)?.trim_start();
        let number = |text| u64::from_str_radix(text, 16).ok();
        (Path::new(path) == file).then_some((number(start)?..number(end)?, number(offset)?))
    };
    maps.lines().filter_map(one).collect()
}

/// Adds a page behind those that there are.
fn add(pieces: &mut Vec<Range<u64>>, start: u64, gap: u64) {
    match pieces.last_mut() {
        // Two mappings may share a page of the file.
        Some(last) if start >= last.start && start.saturating_sub(last.end) <= gap => last.end = last.end.max(start + PAGE),
        _ => pieces.push(start..start + PAGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_become_pieces_and_small_gaps_are_closed() {
        let of = |gap| {
            let mut pieces = Vec::new();
            for page in [1, 2, 2, 4, 20] {
                add(&mut pieces, page * PAGE, gap);
            }
            pieces
        };
        assert_eq!(of(0), [PAGE..3 * PAGE, 4 * PAGE..5 * PAGE, 20 * PAGE..21 * PAGE]);
        assert_eq!(of(GAP * PAGE), [PAGE..5 * PAGE, 20 * PAGE..21 * PAGE]);
    }

    #[test]
    fn a_mapping_is_found_by_its_file() {
        let maps = "7f00-8000 rw-p 00002000 fe:10 1048592                    /var/a dir/memory\n\
            9000-a000 rw-p 00000000 00:00 0 \n\
            b000-c000 r--p 00000000 fe:10 7                          /var/a dir/state\n";
        assert_eq!(mappings(maps, Path::new("/var/a dir/memory")), [(0x7f00..0x8000, 0x2000)]);
    }

    #[test]
    fn a_process_sees_what_it_has_read() {
        // A file that this process has mapped and runs.
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let own = std::env::current_exe().unwrap();
        assert!(!mappings(&maps, &own).is_empty());
        let set = observe(std::process::id(), &own).unwrap();
        assert!(!set.read.is_empty(), "{set:?}");
    }
}
