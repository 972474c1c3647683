//! A machine process's memory from `/proc/PID/smaps`: its guest's RAM apart from everything else. Linux' format, read tolerantly.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Bytes of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Private to the process, outside of the guest's RAM.
    pub(crate) private: u64,
    /// Of the guest's RAM, what the host has given.
    pub(crate) ram: u64,
}

/// Reads the text; mappings at least as large as `ram` bytes are the guest's.
pub(crate) fn parse(text: &str, ram: u64) -> Usage {
    let mut usage = Usage::default();
    let mut is_ram = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(key), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(kibibytes) = value.parse::<u64>() else { continue };
        let bytes = kibibytes << 10;
        match key {
            // The first line of each mapping's figures.
            "Size:" => is_ram = bytes >= ram,
            "Rss:" if is_ram => usage.ram += bytes,
            "Private_Clean:" | "Private_Dirty:" if !is_ram => usage.private += bytes,
            _ => {}
        }
    }
    usage
}

/// Of `smaps_rollup`: bytes of memory that are the process's own, neither a file's nor shared with one.
pub(crate) fn anonymous(text: &str) -> Result<u64> {
    let mut values = text.lines().filter_map(|line| line.strip_prefix("Anonymous:"));
    let value = values.next().and_then(|value| value.trim().strip_suffix(" kB"));
    let kibibytes: u64 = value.and_then(|value| value.parse().ok()).with_context(|| format!("read {text}"))?;
    Ok(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_anonymous_stands_in_one_line() {
        let text = "7f00-7f01 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nAnonymous:      12 kB\nAnonHugePages: 4 kB\n";
        assert_eq!(anonymous(text).unwrap(), 12 << 10);
        assert!(anonymous("Rss: 9 kB\n").is_err());
    }

    #[test]
    fn ram_is_told_from_what_is_private() {
        let mapping =
            |size: u64| format!("7f00-7f01 rw-p 0 00:00 0\nSize: {size} kB\nRss: 12 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 3 kB\n");
        let text = [mapping(131_072), mapping(64), mapping(8)].concat();
        let expected = Usage {
            private: 8 << 10,
            ram: 12 << 10,
        };
        assert_eq!(parse(&text, 128 << 20), expected);
    }
}
