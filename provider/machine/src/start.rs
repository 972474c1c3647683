//! What the daemon sends a machine process once, over the socket that is its standard input.

use serde::{Deserialize, Serialize};
use vmm_lib::spec::MachineSpec;

use crate::jail::Jail;

/// The newest version of [`Start`] and of the control messages.
pub const VERSION: u32 = 1;
/// The oldest version still understood.
pub const OLDEST_VERSION: u32 = 1;

/// The order to run a machine. Beside it travel descriptors: first the machine's directory, then those that the
/// [`MachineSpec`] calls `Passed`, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`VERSION`].
    pub version: u32,
    /// The machine.
    pub spec: MachineSpec,
    /// What confines the process.
    pub jail: Jail,
    /// Whether a snapshot of it may be taken, and its threads may make the system calls that this takes.
    #[serde(default)]
    pub template: bool,
    /// What goes into `machine.log`, as tracing-subscriber's filters are written: `info`, `vmm_lib=debug,info`.
    pub log_filter: String,
}

/// The process's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// `control.sock` listens; whatever happens to the machine will be in `exit.json`.
    Listening,
    /// It cannot be started; the process ends.
    Refused(String),
}
