//! The jail of a machine process: what it can still do once a guest runs. Entered by the only thread of the process, as root, with every file
//! open; from there on the process has a user of its own, no capability, an empty root and the system calls on its lists. Nothing of it can
//! be switched off. `docs/security.md` says which wall meets which attack.
//!
//! The order matters: namespaces and the root need root's capabilities, the user goes before the filters (which would forbid that), and the
//! filter that all threads share comes last. Each thread adds its own filter when it begins ([`Filters::enter`]).

mod calls;
mod filters;
mod root;
mod share;
mod walls;

use std::{fs, io};

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

pub use self::{
    calls::{Needs, Role},
    filters::Filters,
    share::{SharedRoot, confine_share},
    walls::Limits,
};

/// What distinguishes one machine's jail from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Jail {
    /// User and group of the process; no other process has them.
    pub uid: u32,
    /// Longest file it may write, bytes: scratch disk and logs are shorter.
    pub file_size: u64,
}

/// Why a process could not be confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// Root's uid, or one that is no uid.
    #[error("a machine cannot run as user {0}")]
    Uid(u32),
    /// Other threads would stay outside.
    #[error("a process of {0} threads cannot be confined")]
    Threads(usize),
    /// Whoever started it made no pid namespace for it.
    #[error("the process has no pid namespace of its own")]
    PidNamespace,
    /// The kernel refused a step.
    #[error("{what}")]
    Step {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A filter cannot be made or installed.
    #[error("filter system calls: {0}")]
    Filter(String),
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> JailError {
    move |source| JailError::Step {
        what,
        source: source.into(),
    }
}

/// Confines the calling process, which has one thread and is the first of its pid namespace.
pub fn confine(jail: &Jail, limits: &Limits, filters: &Filters) -> Result<(), JailError> {
    check(jail.uid)?;
    root::leave_namespaces()?;
    root::empty_root()?;
    walls::limit(limits, jail.file_size)?;
    walls::change_user(jail.uid, CapabilitySet::empty())?;
    walls::landlock(walls::Files::None)?;
    filters.enter(Role::Process)
}

/// A process that can be confined: of one thread, the first of its pid namespace, with a user to become.
fn check(uid: u32) -> Result<(), JailError> {
    if uid == 0 || uid == u32::MAX {
        return Err(JailError::Uid(uid));
    }
    let threads = fs::read_dir("/proc/self/task").map_err(step("count the threads"))?.count();
    if threads != 1 {
        return Err(JailError::Threads(threads));
    }
    if !rustix::process::getpid().is_init() {
        return Err(JailError::PidNamespace);
    }
    // rustix looks for the vDSO when it is first asked for the time; a confined thread may not.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Ok(())
}
