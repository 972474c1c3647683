//! What the host says of itself in /proc and of a file system: read here and nowhere else.

use std::{fs, io, path::Path};

use kvmlet_protocol::DiskFigures;

/// /proc/meminfo, in bytes (proc_meminfo(5)); what it does not have is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) available: u64,
    pub(crate) inactive_files: u64,
    pub(crate) anonymous: u64,
}

/// The host's memory, now.
pub(crate) fn memory() -> io::Result<Memory> {
    fs::read_to_string("/proc/meminfo").map(|text| memory_of(&text))
}

fn memory_of(meminfo: &str) -> Memory {
    let bytes = |name: &str| number_after(meminfo, name).saturating_mul(1024);
    Memory {
        total: bytes("MemTotal:"),
        free: bytes("MemFree:"),
        available: bytes("MemAvailable:"),
        inactive_files: bytes("Inactive(file):"),
        anonymous: bytes("AnonPages:"),
    }
}

/// The host's processes and threads, and the most there can be.
pub(crate) fn processes() -> (u64, u64) {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let most = text("/proc/sys/kernel/pid_max").trim().parse().unwrap_or(0);
    (processes_of(&text("/proc/loadavg")), most)
}

/// The fourth field of /proc/loadavg: runnable and all.
fn processes_of(loadavg: &str) -> u64 {
    let field = loadavg.split_ascii_whitespace().nth(3).and_then(|field| field.split_once('/'));
    field.and_then(|(_, all)| all.parse().ok()).unwrap_or(0)
}

/// The file system that a path is on.
pub(crate) fn disk(path: &Path) -> io::Result<DiskFigures> {
    let seen = rustix::fs::statvfs(path)?;
    let in_bytes = |blocks: u64| blocks.saturating_mul(seen.f_frsize);
    Ok(DiskFigures {
        capacity: in_bytes(seen.f_blocks),
        available: in_bytes(seen.f_bavail),
        used: in_bytes(seen.f_blocks.saturating_sub(seen.f_bfree)),
        inodes: seen.f_files,
        inodes_free: seen.f_ffree,
    })
}

/// The number after the first word of a line.
pub(crate) fn number_after(text: &str, word: &str) -> u64 {
    let value = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == word).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().find_map(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes_and_what_a_kernel_does_not_say_is_none() {
        let seen = memory_of("MemTotal:     100 kB\nMemAvailable: 70 kB\nInactive(file): 20 kB\n");
        assert_eq!((seen.total, seen.available, seen.inactive_files), (100 << 10, 70 << 10, 20 << 10));
        assert_eq!((seen.free, seen.anonymous), (0, 0));
    }

    #[test]
    fn processes_are_all_of_them_and_not_only_those_that_run() {
        assert_eq!(processes_of("0.1 0.2 0.3 2/345 6789\n"), 345);
        assert_eq!(processes_of("nonsense"), 0);
    }
}
