//! A container's helper: a fresh process of one thread that reads a [`Plan`], builds or enters a container, and becomes its program.
//!
//! Being a program of its own it may allocate and fail like any other; what goes wrong it says in a [`Report`].

mod command;
mod credentials;
mod root;
mod seccomp;
mod terminal;
mod users;

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use kvmlet_protocol::{ErrorKind, Failure, MAX_HOST_FRAME, Process, read_frame, write_frame};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::failure::{Attempt, fail};
use crate::filter::{self, Compiled};
use crate::spawn::{Place, Plan, Report};
use crate::sys;

/// Where the helper's arguments name the socket to the agent.
const SOCKET_ARGUMENT: usize = 1;

/// The helper's program.
pub(crate) fn main() -> i32 {
    let Some(mut agent) = socket() else { return 1 };
    let Ok(plan) = read_frame::<Plan>(&mut agent, MAX_HOST_FRAME) else {
        return 1;
    };
    let Err(failure) = become_container(plan, &mut agent);
    // When the agent does not listen any more nobody is left to tell.
    drop(write_frame(&mut agent, &Report::Failed(failure)));
    1
}

/// The socket that the agent left open, by its number in the first argument.
fn socket() -> Option<UnixStream> {
    let number = std::env::args().nth(SOCKET_ARGUMENT)?;
    let inherited = sys::inherited(number.parse().ok()?)?;
    fcntl_setfd(&inherited, FdFlags::CLOEXEC).ok()?;
    Some(UnixStream::from(inherited))
}

enum Never {}

fn become_container(plan: Plan, agent: &mut UnixStream) -> Result<Never, Failure> {
    let Plan {
        process,
        strict_groups,
        filter,
        cgroup,
        place,
    } = plan;
    // What runs in the container already must not look into this process while it still is the agent's program.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).attempt("hide the helper")?;
    fs::write(cgroup.join("cgroup.procs"), "0").attempt("enter the container's cgroup")?;
    fs::write("/proc/self/oom_score_adj", process.oom_score_adj.to_string()).wanted("set oom_score_adj")?;
    let _ = rustix::process::setsid();
    match place {
        Place::Fresh { root, terminal } => {
            sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP).attempt("create the container's name spaces")?;
            root::enter(&root, &process.cwd)?;
            if terminal {
                terminal::take(agent)?;
            }
        }
        Place::Of { pid, terminal } => {
            join(pid).attempt("enter the container")?;
            if terminal {
                rustix::process::ioctl_tiocsctty(std::io::stdin()).attempt("take the terminal")?;
            }
        }
    }
    run(&process, strict_groups, filter.as_ref(), agent)
}

/// Enters the mount and cgroup name spaces of a process, found by its number in the guest (whose /proc this process still sees).
fn join(pid: u32) -> std::io::Result<()> {
    let cgroup = File::open(format!("/proc/{pid}/ns/cgroup"))?;
    let mount = File::open(format!("/proc/{pid}/ns/mnt"))?;
    move_into_link_name_space(cgroup.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
    move_into_link_name_space(mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(())
}

/// Becomes the program, in the container.
fn run(process: &Process, strict_groups: bool, filter: Option<&Compiled>, agent: &mut UnixStream) -> Result<Never, Failure> {
    if process.args.is_empty() {
        return Err(fail(ErrorKind::BadContainer, "no command specified"));
    }
    let account = users::resolve(&process.user, strict_groups)?;
    let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
    std::env::set_current_dir(cwd).wanted(format_args!("change to the working directory {cwd}"))?;
    credentials::set_rlimits(&process.rlimits)?;
    credentials::own_streams(account.identity.uid);
    // A filter may be installed by root, or by anyone who has promised not to gain privileges: as late as that allows.
    let restrict = || match filter {
        Some(filter) => filter::install(filter),
        None if process.seccomp => seccomp::install(&process.capabilities),
        None => Ok(()),
    };
    if !process.no_new_privs {
        restrict()?;
    }
    credentials::assume(&account.identity, &process.capabilities)?;
    let environment = command::environment(&process.env, &account.home)?;
    let program = command::find(&process.args[0], &process.env)?;
    let args: Vec<CString> = process.args.iter().map(|a| command::c_string(a)).collect::<Result<_, _>>()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    sys::default_signals();
    if process.no_new_privs {
        rustix::thread::set_no_new_privs(true).attempt("set no_new_privs")?;
        restrict()?;
    }
    write_frame(agent, &Report::Ready(account.identity)).map_err(|e| fail(ErrorKind::Internal, e.to_string()))?;
    let error = sys::execve(&program, &args, &environment);
    Err(command::not_executed(&program, &error))
}
