//! PID 1 in the guest: starts containers, streams, reaps.
//!
//! One static binary in three roles, told apart by its name (argv[0]): the agent itself, which the kernel starts; a container's
//! helper ([`child`]), a fresh process of one thread that builds a container's surroundings and becomes its program; and the
//! holder of a process name space that containers share. It refuses to panic: PID 1 must not end.
#![cfg_attr(not(test), no_main)]

mod agent;
mod atomic;
mod attach;
mod boot;
mod bpf;
mod bus;
mod cgroup;
mod child;
mod container;
mod cpus;
mod device;
mod exec;
mod failure;
mod files;
mod filter;
mod forward;
mod interface;
mod lines;
mod logs;
mod netlink;
mod reaper;
mod renew;
mod resize;
mod server;
mod session;
mod setup;
mod spawn;
mod stats;
mod stdin;
mod sys;
mod usage;
mod volume;
mod watchdog;

/// What the entry in [`sys`] calls.
#[cfg_attr(test, allow(dead_code, reason = "the test harness has an entry of its own"))]
fn run() -> i32 {
    match std::env::args_os().next().as_deref().and_then(|name| name.to_str()) {
        Some(spawn::CONTAINER) => child::main(),
        Some(spawn::HOLDER) => reaper::hold(),
        _ => boot::main(),
    }
}
