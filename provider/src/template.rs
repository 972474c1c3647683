//! Templates: one small machine that has booted, of which all others that fit are copies. Knows what a template is like and what a copy is told.

use kvmlet_protocol::Renewal;
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_lib::spec::Comb;

use crate::act::now_nanoseconds;

/// Memory of a template, bytes; what a pod needs above that comes by virtio-mem.
pub const MEMORY: u64 = 128 << 20;
/// Bytes that a copy is given for its random number generator.
const ENTROPY: usize = 64;

/// The places of a template: what most pods have at the most. A pod with more is booted.
pub fn comb() -> Comb {
    Comb {
        cpus: 8,
        disks: 4,
        pmems: 8,
        nets: 1,
        pmem_bytes: (1 << 30) + 8 * (2 << 20),
        memory_bytes: 64 << 30,
    }
}

/// A template's kernel command line: further processors are started by the agent of a copy that has them.
pub fn command_line(line: &str) -> String {
    format!("{line} maxcpus=1")
}

/// What a copy with these processors and devices is told.
pub fn renewal(cpus: u8, devices: Vec<u8>) -> std::io::Result<Renewal> {
    let mut entropy = vec![0; ENTROPY];
    let mut filled = 0;
    while filled < ENTROPY {
        filled += getrandom(&mut entropy[filled..], GetRandomFlags::empty())?;
    }
    Ok(Renewal {
        entropy,
        time: now_nanoseconds(),
        cpus,
        devices,
    })
}
