//! What the threads of a machine really call, seen by a tracer while a guest drives its disk and a daemon asks for all it can: each call is on the
//! list of its thread's kind, and what of the lists was not called here is said. The kernel would end the process at a call that is on none; here
//! the call is named.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::fd::AsFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use kvmlet_machine::jail::{Needs, Role};
use kvmlet_machine::{ClientError, Machine};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
    },
    unistd::Pid,
};
use rustix::process::{WaitOptions, wait};
use vmm_lib::Attachment;
use vmm_lib::spec::{Disk, DiskEngine, DiskFormat, Extent, FileSource, Limits, Vsock};

use support::guest::writes_a_sector;
use support::{SOON, kernel, order, spawned, uid};

fn main() {
    support::main(&[(
        "what_threads_call_is_on_the_lists_of_their_kinds",
        what_threads_call_is_on_the_lists_of_their_kinds,
    )]);
}

/// `__WALL` and `__WNOTHREAD`: all that this thread traces, and nobody else's children.
const MINE: u32 = 0x6000_0000;
/// A stop for a system call (PTRACE_O_TRACESYSGOOD).
const CALL: u32 = Signal::SIGTRAP as u32 | 0x80;
/// Filters that the process has before a guest runs.
const OF_PROCESS: u32 = 2;

/// System calls of each kind of thread.
type Seen = BTreeMap<Role, BTreeSet<i64>>;

/// The kind of a thread that has entered its own filter.
fn role(name: &str) -> Option<Role> {
    let kinds = [
        ("signals", Role::Signals),
        ("control client", Role::Client),
        ("control", Role::Control),
        ("logs", Role::Logs),
        ("vcpu", Role::Vcpu),
        ("block", Role::Block),
        ("vsock", Role::Vsock),
        ("rng", Role::Rng),
        ("machine", Role::Process),
    ];
    kinds.into_iter().find(|(begins, _)| name.starts_with(begins)).map(|(_, role)| role)
}

/// Follows a process, which is not confined yet, to its end: what its threads called once they were.
fn follow(process: Pid) -> Seen {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    ptrace::seize(process, options).expect("root may");
    ptrace::interrupt(process).expect("it runs");
    let (mut seen, mut filters) = (Seen::new(), BTreeMap::<i32, u32>::new());
    let tasks = format!("/proc/{process}/task");
    while let Ok(Some((thread, status))) = wait(WaitOptions::from_bits_retain(MINE)) {
        let status = status.as_raw() as u32;
        let thread = Pid::from_raw(thread.as_raw_nonzero().get());
        if status & 0xff != 0x7f {
            if thread == process {
                break;
            }
            continue;
        }
        let (signal, event) = (status >> 8 & 0xff, status >> 16);
        if signal == CALL
            && let Ok(registers) = ptrace::getregs(thread)
            // On the way in.
            && registers.rax as i64 == -i64::from(nix::libc::ENOSYS)
        {
            let number = registers.orig_rax as i64;
            let count = filters.entry(thread.as_raw()).or_default();
            let name = fs::read_to_string(Path::new(&tasks).join(thread.to_string()).join("comm")).unwrap_or_default();
            let kind = match *count {
                0 | 1 if thread == process => None,
                OF_PROCESS if thread == process => Some(Role::Process),
                _ if thread == process => Some(Role::Main),
                0 => Some(Role::Process),
                _ => Some(role(name.trim_end()).unwrap_or_else(|| panic!("a thread of no known kind: {name}"))),
            };
            if let Some(kind) = kind {
                seen.entry(kind).or_default().insert(number);
            }
            *count += u32::from(number == nix::libc::SYS_seccomp);
        }
        let passed_on = (signal != CALL && event == 0)
            .then(|| Signal::try_from(signal as i32).ok())
            .flatten();
        // It may have been killed meanwhile.
        let _ = ptrace::syscall(thread, passed_on);
    }
    seen
}

fn disk(path: &Path, serial: &str) -> Disk {
    Disk {
        serial: serial.into(),
        extents: vec![Extent {
            file: FileSource::Path(path.into()),
            offset: 0,
            length: 4096,
        }],
        read_only: false,
        format: DiskFormat::Raw,
        limits: Limits::default(),
        engine: DiskEngine::Calls,
    }
}

/// Waits until the guest has written to its disk, and asks for all that a daemon does.
fn drive(machine: &Machine, path: &Path) -> Result<(), String> {
    let io = |error: std::io::Error| error.to_string();
    let refused = |error: ClientError| error.to_string();
    let end = Instant::now() + SOON.expect("it is soon");
    while fs::read(path).map_err(io)?[512..516] != *b"Hell" {
        let gone = machine.wait(Some(Duration::from_millis(5))).map_err(refused)?;
        if gone || Instant::now() > end {
            return Err("nothing was written".to_owned());
        }
    }
    let mut control = machine.control().map_err(refused)?;
    control.status().map_err(refused)?;
    let file = File::open(path).map_err(io)?;
    let later = Attachment::Disk(Disk {
        read_only: true,
        extents: vec![Extent {
            file: FileSource::Passed(0),
            offset: 0,
            length: 4096,
        }],
        ..disk(path, "later")
    });
    let slot = control.attach(&later, &[file.as_fd()]).map_err(refused)?;
    control.detach(slot, false).map_err(refused)
}

fn what_threads_call_is_on_the_lists_of_their_kinds() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk");
    fs::write(&path, [0; 4096]).expect("it can be written");
    let mut order = order(kernel(directory.path(), &writes_a_sector()), uid());
    order.spec.rng = true;
    order.spec.disks = vec![disk(&path, "disk")];
    order.spec.vsock = Some(Vsock {
        cid: 3,
        socket: FileSource::Path(directory.path().join("vsock.sock")),
    });
    let process = spawned(directory.path(), order.jail.uid);
    let pid = Pid::from_raw(i32::try_from(process.pid()).expect("a pid"));
    let tracer = thread::spawn(move || follow(pid));
    let machine = process.start(&order, &[]).expect("it starts");
    let driven = drive(&machine, &path);
    // A process that a filter has ended is there no more.
    let _ = machine.kill_process();
    let seen = tracer.join().expect("each thread is of a known kind");
    for (role, calls) in &seen {
        let listed = role.listed(Needs::default());
        let others: Vec<_> = calls.difference(&listed).collect();
        assert!(others.is_empty(), "{role:?} calls what is not on its list: {others:?}");
        let unseen: Vec<_> = listed.difference(calls).collect();
        eprintln!("{role:?}: {} calls seen, listed besides: {unseen:?}", calls.len());
    }
    driven.unwrap_or_else(|what| panic!("{what}: {}", support::log(directory.path())));
    for (role, call) in [
        (Role::Process, nix::libc::SYS_clone),
        (Role::Vcpu, nix::libc::SYS_ioctl),
        (Role::Block, nix::libc::SYS_pwritev2),
        (Role::Control, nix::libc::SYS_accept4),
        (Role::Client, nix::libc::SYS_recvmsg),
    ] {
        assert!(seen.get(&role).is_some_and(|calls| calls.contains(&call)), "{role:?}: {seen:?}");
    }
}
