//! Figures of the guest.

use std::fs;
use std::sync::Arc;

use kvmlet_protocol::GuestStats;

use crate::container::Container;

/// Reads them now.
pub(crate) fn read(containers: &[Arc<Container>]) -> GuestStats {
    let meminfo = meminfo();
    let usage = |container: &Arc<Container>| {
        let (memory, working_set, cpu) = container.cgroup.usage();
        (container.spec.id.clone(), memory, working_set, cpu)
    };
    GuestStats {
        memory_total: bytes(&meminfo, "MemTotal:"),
        memory_available: bytes(&meminfo, "MemAvailable:"),
        containers: containers.iter().map(usage).collect(),
    }
}

/// Bytes of memory that the kernel has.
pub(crate) fn memory_total() -> u64 {
    bytes(&meminfo(), "MemTotal:")
}

fn meminfo() -> String {
    fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// A line `Name:   123 kB`, in bytes.
fn bytes(meminfo: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    meminfo.lines().find_map(value).unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn kibibytes_become_bytes() {
        assert_eq!(bytes("MemTotal:         131072 kB\nMemFree: 1 kB\n", "MemTotal:"), 128 << 20);
        assert_eq!(bytes("", "MemTotal:"), 0);
    }
}
