//! Whether a host can be a node: each check has a name that stays, is passed or not, and says what to do.
//!
//! What the host is like is gathered once ([`facts`], `gather`), and judged by functions that look at nothing else ([`judge`]). The last check boots a
//! machine as pods get one ([`canary`]): a KVM that has all it should may still boot nothing. Changes nothing on the host; what the canary needs for
//! its time goes with it.

pub mod canary;
pub mod facts;
mod gather;
pub mod judge;

use std::path::Path;

use kvmlet_provider::config::Config;
use serde::Serialize;

pub use facts::Facts;

/// One answer about a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Names stay from version to version: `kvm-device`.
    pub name: &'static str,
    /// Whether it is as a node needs it.
    pub passed: bool,
    /// What was found; if it has not passed, what to do.
    pub message: String,
}

impl Check {
    /// Of what was found, or of what is wrong.
    pub fn new(name: &'static str, found: Result<String, String>) -> Self {
        let passed = found.is_ok();
        let (Ok(message) | Err(message)) = found;
        Self { name, passed, message }
    }
}

/// Without these a daemon would only fail later, and not as clearly: it does not start.
pub const NEEDED: [&str; 6] = [
    judge::KVM_DEVICE,
    judge::KVM_PERMISSIONS,
    judge::KVM_CAPABILITIES,
    judge::GUEST_KERNEL,
    judge::GUEST_INITRAMFS,
    judge::MACHINE_IO,
];

/// All checks but the canary, for a node of this configuration whose machines run `program`. A host whose processor is emulated by software does not
/// pass unless `use_emulation` is set. Milliseconds; boots nothing.
pub fn look(config: &Config, program: &Path, use_emulation: bool) -> Vec<Check> {
    judge::judge(&Facts::gather(config, program, use_emulation))
}
