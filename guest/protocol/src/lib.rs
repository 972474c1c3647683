//! What the host and the guest's agent say to one another: one room, plain data, no I/O.
//!
//! Every stream is a vsock connection of its own (vsock's credit is the flow control), opened by the host. Each connection starts
//! with [`Hello`] from the host and [`Welcome`] from the agent; then, on [`CONTROL_PORT`], strictly one [`Request`] and one
//! [`Response`] at a time, until [`Request::Exec`] or [`Request::Attach`] turns the connection into a session of [`ExecInput`] and
//! [`ExecOutput`], or [`Request::Forward`] into one of [`Forwarded`] both ways;
//! on [`LOG_PORT`], [`LogRecord`]s one way and [`LogAck`]s the other.
//!
//! Refuses: frames above their limit (the reader errs before it allocates), unknown versions, trailing bytes.
#![forbid(unsafe_code)]

pub mod container;
pub mod control;
pub mod exec;
pub mod figures;
pub mod filter;
pub mod forward;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
pub mod log;
pub mod sandbox;

pub use container::{
    ContainerSpec, ContainerState, ContainerStatus, ExitStatus, Extras, Identity, Mount, Process, Resources, Rlimit, RootFs, User,
};
pub use control::{ErrorKind, Failure, GuestStats, Hello, Renewal, Request, Response, Welcome};
pub use exec::{AttachSpec, ExecInput, ExecOutput, ExecSpec};
pub use figures::{
    ContainerFigures, DirectoryFigures, DiskFigures, GroupFigures, GuestFigures, LayerFigures, NetworkFigures, StorageFigures,
};
pub use filter::{Filter, FilterAnswer, FilterCompare, FilterRule, FilterTest};
pub use forward::Forwarded;
pub use frame::{FrameError, decode, encode, read_frame, write_frame};
pub use log::{LogAck, LogRecord, LogStream};
pub use sandbox::{File, Interface, Neighbour, Route, SandboxSpec, VolumeContent, VolumeKind, VolumeSpec};

/// vsock port on which the agent takes [`Request`]s.
pub const CONTROL_PORT: u32 = 1024;
/// vsock port on which the agent hands out the containers' output.
pub const LOG_PORT: u32 = 1025;
/// The newest version of this protocol; the agent and the host speak the smaller of their two newest.
pub const VERSION: u16 = 11;
/// The oldest version that understands today's [`SandboxSpec`]: a guest that is new must speak it.
pub const SANDBOX_VERSION: u16 = 2;
/// The oldest version that has [`Request::Renew`].
pub const RENEW_VERSION: u16 = 3;
/// The oldest version that has [`Request::Attached`] and [`Request::Detaching`].
pub const DEVICES_VERSION: u16 = 4;
/// The oldest version that has [`Request::StartWith`], [`Request::Attach`] and [`Request::Forward`].
pub const STREAMS_VERSION: u16 = 5;
/// The oldest version that has [`Request::Figures`].
pub const FIGURES_VERSION: u16 = 6;
/// The oldest version that has [`Request::Usage`].
pub const USAGE_VERSION: u16 = 6;
/// The oldest version that has [`Request::Resize`].
pub const RESIZE_VERSION: u16 = 7;
/// The oldest version that knows [`VolumeKind::Share`].
pub const SHARE_VERSION: u16 = 3;
/// The oldest version that knows [`VolumeKind::Image`].
pub const IMAGE_VERSION: u16 = 8;
/// The oldest version that has [`Request::LimitPod`].
pub const LIMIT_POD_VERSION: u16 = 8;
/// The oldest version that has [`Request::Storage`].
pub const STORAGE_VERSION: u16 = 9;
/// The oldest version whose [`Request::Attached`] finds a watchdog too, and has it fed.
pub const WATCHDOG_VERSION: u16 = 10;
/// The oldest version that has [`Request::StartAs`].
pub const START_AS_VERSION: u16 = 11;
/// The oldest version that has [`Request::ReadFile`].
pub const READ_FILE_VERSION: u16 = 11;
/// A word of a template's kernel command line: an agent that finds it answers nothing but [`Request::Renew`] and [`Request::PowerOff`] until it was
/// renewed, since version 10.
pub const TEMPLATE_WORD: &str = "kvmlet.template";
/// Name of a file that is shared alone, in a directory that has nothing else.
pub const SHARED_FILE: &str = "file";
/// The oldest version still spoken.
pub const OLDEST_VERSION: u16 = 1;
/// Largest frame, in bytes, that a host may send (a volume's content travels in one).
pub const MAX_HOST_FRAME: usize = 16 << 20;
/// Largest frame, in bytes, that a host accepts from a guest.
pub const MAX_GUEST_FRAME: usize = 1 << 20;
/// Largest file, in bytes, that the agent reads for the host.
pub const MAX_FILE: usize = 512 << 10;
/// Largest piece of output or input, in bytes, in one frame of a stream.
pub const MAX_CHUNK: usize = 64 << 10;
/// Bytes of a container's output that the agent keeps unacknowledged before it stops reading its pipe.
pub const LOG_WINDOW: usize = 256 << 10;
