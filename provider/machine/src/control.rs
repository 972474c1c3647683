//! What daemon and machine process say to one another over `control.sock`: a handshake, then one request and one reply at a time, and on a
//! connection that subscribed, events between them. All of it is JSON that may gain fields.

use serde::{Deserialize, Serialize};
use vmm_lib::{Attachment, Occupied};

/// From the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First on each connection: the versions that the daemon speaks.
    Hello { oldest: u32, newest: u32 },
    /// Asks for [`Status`].
    Status,
    /// From now on a container's output goes to the descriptor that comes along, until `budget` bytes are written to it.
    LogFile { container: String, budget: u64 },
    /// A container will write no more; what still waits for a file is dropped.
    CloseLog { container: String },
    /// Stops the machine at once. Asked again after its end: does not wait for logs any longer.
    Kill,
    /// Asks for [`Memory`], and before that has the guest grow or shrink until it has `resize` bytes in all.
    Memory { resize: Option<u64> },
    /// Puts a device on the machine's bus; the descriptors that it names come along.
    Attach { device: Attachment },
    /// Takes a device off the machine's bus, if need be by `force`.
    Detach { slot: u8, force: bool },
    /// Asks what is on the machine's bus.
    Devices,
    /// Asks for events on this connection; those that hold now come first.
    Subscribe,
    /// Writes a snapshot into the two descriptors that come along, state and memory, and stops the machine. For templates only.
    Snapshot,
    /// The same, of all of memory or of the `changes` since the last one, and the machine may `go_on`. For machines that a person runs only.
    SnapshotByHand { changes: bool, go_on: bool },
}

/// From the machine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The version that both speak from now on.
    Welcome { version: u32 },
    /// The answer to [`Request::Status`].
    Status(Status),
    /// The answer to [`Request::Memory`].
    Memory(Memory),
    /// The answer to [`Request::Attach`].
    Attached { slot: u8 },
    /// The answer to [`Request::Devices`].
    Devices(Vec<Occupied>),
    /// It is done.
    Done,
    /// It cannot be done.
    Failed { message: String },
    /// Not a reply: something happened.
    Event(Event),
}

/// What a machine process tells by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Event {
    /// The next line does not fit into the container's file; its output waits for a fresh one.
    BudgetSpent {
        /// Container identifier.
        container: String,
    },
    /// The machine has ended and `exit.json` is written; the process ends too once no output waits for a file.
    Ended,
}

/// A machine process as it sees itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its process id.
    pub pid: u32,
    /// Its machine.
    pub state: MachineState,
    /// Every container whose log file it was given, or that has said something; by identifier.
    pub logs: Vec<LogStatus>,
    /// The connection to the agent's log port.
    pub link: LinkStatus,
}

/// A machine's memory, bytes, in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// What it began with, and never has less than.
    pub least: u64,
    /// What it may have.
    pub most: u64,
    /// What its guest shall have.
    pub wanted: u64,
    /// What its guest has: it follows `wanted` while it runs, and keeps what it cannot free.
    pub present: u64,
}

/// Where a machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MachineState {
    /// Being built.
    Starting,
    /// Its processors run.
    Running,
    /// Ended; output still waits for a file.
    Ended,
}

/// A container's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogStatus {
    /// Container identifier.
    pub container: String,
    /// Whether it has a file.
    pub has_file: bool,
    /// Bytes that may still be written to the file.
    pub budget_left: u64,
    /// The next line does not fit: a fresh file is needed.
    pub spent: bool,
    /// Lines (or parts of lines) written, in all files.
    pub lines: u64,
    /// Bytes written, in all files.
    pub bytes: u64,
    /// Lines that wait.
    pub waiting: u64,
    /// Why the file could not be written to; tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The connection to the agent's log port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// Whether the agent has answered.
    pub connected: bool,
    /// How often the guest broke the protocol, and its connection was closed.
    pub violations: u64,
    /// The last violation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_violation: Option<String>,
}
