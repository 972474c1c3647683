//! A filter of system calls, as a profile of the node has it: names, not numbers, which the guest knows for its own processor.

use serde::{Deserialize, Serialize};

/// What becomes of the system calls of a container's processes. Of the rules of one call one without tests wins over those with tests, else
/// the first whose tests are all met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Of a call that no rule is for. Where it is none that lets calls pass, calls newer than all that the rules name are answered ENOSYS.
    pub default: FilterAnswer,
    /// 32-bit programs have the same rules; without it they are killed.
    pub narrow: bool,
    /// What is not allowed is written to the kernel's log (SECCOMP_FILTER_FLAG_LOG).
    pub log: bool,
    /// Speculation is not held back for the filter's sake (SECCOMP_FILTER_FLAG_SPEC_ALLOW).
    pub speculation: bool,
    /// In the profile's order.
    pub rules: Vec<FilterRule>,
}

/// Calls that are answered alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRule {
    /// Their names; those that an architecture has not are of no effect there.
    pub names: Vec<String>,
    /// What becomes of them.
    pub answer: FilterAnswer,
    /// All of which must be met; each of another argument.
    pub tests: Vec<FilterTest>,
}

/// What becomes of a call (SECCOMP_RET_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterAnswer {
    /// It is carried out.
    Allow,
    /// The same, and it is logged.
    Log,
    /// It fails with this error number.
    Errno(u16),
    /// A tracer is told this number; without one it fails with ENOSYS.
    Trace(u16),
    /// SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

/// A test of one argument, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterTest {
    /// Which argument, 0 to 5.
    pub argument: u8,
    /// How it is compared.
    pub compare: FilterCompare,
    /// With what; of [`FilterCompare::MaskedEqual`] the mask.
    pub value: u64,
    /// Of [`FilterCompare::MaskedEqual`] what the masked argument must be.
    pub second: u64,
}

/// How an argument is compared (SCMP_CMP_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterCompare {
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Equal.
    Equal,
    /// Greater or equal.
    GreaterOrEqual,
    /// Greater.
    Greater,
    /// Equal where the mask has bits.
    MaskedEqual,
}
