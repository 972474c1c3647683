//! Machine processes: what one runs, and how the daemon starts and adopts it.
//!
//! ```text
//!  daemon ── spawn `kvmlet-machine vm` ─▶ process       stdin is a socket: one Start with every open file, one answer
//!         ── control.sock ──────▶ requests; log files travel as descriptors
//!         ◀─ control.sock ─────── events: a budget is spent, the machine has ended
//!         ◀─ exit.json ────────── written by the process, however it ends by itself
//!  guest  ── FUSE messages ─────▶ `kvmlet-machine fs`, one a shared directory ([`run_share`]), by way of the machine process
//!  guest  ── vsock LOG_PORT ────▶ CRI lines into the files the daemon has passed
//! ```
//!
//! The process outlives the daemon, and is confined before its machine is built ([`jail`]). The daemon makes the machine's directory, spawns the process ([`spawn`]), may put its pid into a cgroup,
//! and sends one [`Start`]; a daemon that was away finds it again by [`adopt`]. All of it is blocking threads; nothing here knows
//! Kubernetes. Files in the directory: `machine.json` (who runs it), `machine.log`, `control.sock`, `exit.json`.

mod client;
mod control;
mod devices;
pub mod jail;
mod logs;
mod memory;
mod order;
mod process;
mod record;
mod server;
mod share;
mod start;
mod uids;
mod wire;

pub use client::{Adoption, ClientError, Control, Events, Found, Machine, Program, Spawned, adopt, find, spawn};
pub use control::{Event, LinkStatus, LogStatus, MachineState, Memory, Status};
pub use order::threads;
pub use process::{ProcessError, run};
pub use record::{ExitRecord, RecordError};
pub use server::serve_by_hand;
pub use share::{Share, ShareError, run_share, spawn_share};
pub use start::{OLDEST_VERSION, Start, VERSION};
pub use uids::{UidError, Uids};
pub use wire::WireError;
