//! What `kvmlet-machine vm` runs, from its first to its last moment: leaves the daemon's session, takes its order and is confined ([`crate::order`]), listens, runs the machine, and
//! writes how it ended, however it ended. One machine, once.

use std::{
    any::Any,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};
use vmm_lib::{
    builder::{BuildError, Builder},
    exit::{MachineExit, MachineReport},
    machine::Handle,
    snapshot::SnapshotFiles,
    threads::ThreadKind,
    virtio::vsock::{Dialer, Inlet},
};

use crate::{
    control::{MachineState, Memory},
    jail::{Filters, JailError, Role},
    logs::{Book, Writer},
    memory::memory,
    order::{Order, Parts},
    record::{self, ExitRecord, RecordError},
    server::{Server, Wanted},
    start::{Answer, Start},
    wire::{Receiver, WireError, send},
};

/// For the daemon to send its order after the spawn.
const ORDER_DEADLINE: Duration = Duration::from_secs(60);

/// Why a machine process could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Standard input is no socket, or the daemon went away before it gave its order.
    #[error("receive the order to start")]
    Order(#[source] WireError),
    /// The order cannot be followed; the daemon has been told.
    #[error("{0}")]
    Refused(String),
    /// The exit record could not be written.
    #[error("write the exit record")]
    Record(#[source] RecordError),
    /// The main thread cannot be confined further.
    #[error("confine the main thread")]
    Jail(#[from] JailError),
    /// The host refused a thread, a socket or a signal mask.
    #[error("{what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ProcessError {
    move |error| ProcessError::Host {
        what,
        source: error.into(),
    }
}

/// Runs the machine that is ordered over standard input. Returns after its end, when its record and its logs are written.
pub fn run() -> Result<MachineExit, ProcessError> {
    // A process that leads a group already cannot make a session, and needs none.
    let _ = rustix::process::setsid();
    let signals = block_signals()?;
    let input = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(host("duplicate standard input"))?;
    let parent = UnixStream::from(input);
    parent.set_read_timeout(Some(ORDER_DEADLINE)).map_err(host("set a deadline"))?;
    let mut receiver = Receiver::new(parent);
    let (start, descriptors) = receiver.receive::<Start>().map_err(ProcessError::Order)?;
    let order = match Order::prepare(start, descriptors) {
        Ok(order) => order,
        Err(reason) => {
            let _ = send(receiver.stream(), &Answer::Refused(reason.clone()), &[]);
            return Err(ProcessError::Refused(reason));
        }
    };
    order.follow(&signals, receiver)
}

/// SIGTERM, SIGINT and SIGHUP shall be met by a thread that waits for them. Threads inherit the mask.
fn block_signals() -> Result<SigSet, ProcessError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(host("block signals"))?;
    Ok(signals)
}

impl Order {
    fn follow(self, signals: &SigSet, receiver: Receiver) -> Result<MachineExit, ProcessError> {
        let Self {
            parts,
            vsock,
            listener,
            exit: file,
            filters,
            pid,
            started,
            needs,
        } = self;
        let book = Arc::new(Book::new());
        let engine = Arc::new(Engine::default());
        let kill: Arc<dyn Fn() + Send + Sync> = {
            let (book, engine) = (Arc::clone(&book), Arc::clone(&engine));
            Arc::new(move || {
                if book.state() == MachineState::Ended {
                    book.abandon();
                } else {
                    engine.stop();
                }
            })
        };
        watch_signals(*signals, Arc::clone(&kill), filters.clone())?;
        let enter = filters.clone();
        let server = Server {
            book: Arc::clone(&book),
            pid,
            rings: needs.rings,
            enter: Arc::new(move |role| enter.enter(role).map_err(io::Error::other)),
            kill,
            snapshot: {
                let engine = Arc::clone(&engine);
                Arc::new(move |files, wanted| engine.snapshot(files, wanted, needs.template))
            },
            memory: {
                let engine = Arc::clone(&engine);
                Arc::new(move |resize| engine.memory(resize))
            },
            machine: {
                let engine = Arc::clone(&engine);
                Arc::new(move || engine.machine())
            },
        };
        server.start(listener).map_err(host("start the control thread"))?;
        // A daemon that has gone meanwhile will find the socket.
        let _ = send(receiver.stream(), &Answer::Listening, &[]);
        drop(receiver);
        let (writer, inlet) = match vsock {
            Some((dialer, inlet)) => (Some(start_writer(&book, dialer, filters.clone())?), Some(inlet)),
            None => (None, None),
        };
        let machine = run_machine(parts, inlet, &filters, &book, &engine);
        filters.enter(Role::Main)?;
        let report = finished(machine);
        let exit = report.exit.clone();
        tracing::info!(?exit, "the machine has ended");
        let record = ExitRecord {
            version: 1,
            started,
            ended: record::now(),
            report,
        };
        let recorded = file.write(&record);
        book.set_state(MachineState::Ended);
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        recorded.map_err(ProcessError::Record)?;
        Ok(exit)
    }
}

/// The machine, or the wish that it shall not run.
#[derive(Default)]
struct Engine(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// With the memory that it began with, bytes.
    machine: Option<(Handle, u64)>,
    stopped: bool,
}

impl Engine {
    fn stop(&self) {
        let mut engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        engine.stopped = true;
        if let Some((handle, _)) = &engine.machine {
            handle.stop();
        }
    }

    /// Writes a snapshot of a template, at which it ends.
    fn snapshot(&self, files: SnapshotFiles, wanted: Wanted, template: bool) -> Result<(), String> {
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Not held while it takes its time.
        let handle = engine.machine.as_ref().map(|(handle, _)| handle.clone());
        drop(engine);
        match handle {
            Some(_) if wanted != Wanted::TEMPLATE => Err("only of a machine that a person runs such a snapshot is taken".into()),
            Some(handle) if template => handle.snapshot(files, false).map_err(|error| chain(&error)),
            Some(_) => Err("this machine was not started as a template".into()),
            None => Err("the machine does not run yet".into()),
        }
    }

    fn memory(&self, resize: Option<u64>) -> Result<Memory, String> {
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, least) = engine.machine.as_ref().ok_or("the machine is not made yet")?;
        memory(handle, *least, resize)
    }

    fn machine(&self) -> Option<Handle> {
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        engine.machine.as_ref().map(|(handle, _)| handle.clone())
    }

    /// Takes note of a machine about to run; stops it if that was wished before.
    fn started(&self, handle: Handle, memory: u64) {
        let mut engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if engine.stopped {
            handle.stop();
        }
        engine.machine = Some((handle, memory));
    }
}

type Running = io::Result<thread::JoinHandle<Result<MachineReport, BuildError>>>;

/// Builds and runs the machine on a thread of its own, so that even a panic has a report. That thread keeps the process's filter: it builds
/// the machine and makes its threads.
fn run_machine(
    parts: Result<Parts, BuildError>,
    inlet: Option<Inlet>,
    filters: &Filters,
    book: &Arc<Book>,
    engine: &Arc<Engine>,
) -> Running {
    let (book, engine, filters) = (Arc::clone(book), Arc::clone(engine), filters.clone());
    let enter = move |kind| filters.enter(role(kind)).map_err(io::Error::other);
    thread::Builder::new().name("machine".into()).spawn(move || {
        let Parts { spec, files, kvm } = parts?;
        let memory = spec.memory;
        let mut builder = Builder::new(spec, files).kvm(kvm).enter(Arc::new(enter));
        if let Some(inlet) = inlet {
            builder = builder.inlet(inlet);
        }
        let machine = builder.build()?;
        engine.started(machine.handle(), memory);
        book.set_state(MachineState::Running);
        Ok(machine.run())
    })
}

fn role(kind: ThreadKind) -> Role {
    match kind {
        ThreadKind::Vcpu => Role::Vcpu,
        ThreadKind::Block => Role::Block,
        ThreadKind::BlockRing => Role::BlockRing,
        ThreadKind::Net => Role::Net,
        ThreadKind::Vsock => Role::Vsock,
        ThreadKind::Rng => Role::Rng,
        ThreadKind::Pmem => Role::Pmem,
        ThreadKind::Balloon => Role::Balloon,
        ThreadKind::Mem => Role::Mem,
        ThreadKind::Console => Role::Console,
        ThreadKind::Serial => Role::Serial,
        ThreadKind::Watchdog => Role::Watchdog,
        ThreadKind::Fs => Role::Fs,
    }
}

/// Waits for the machine's end.
fn finished(machine: Running) -> MachineReport {
    let failed = |what: String| MachineReport {
        exit: MachineExit::Error { what },
        exits: None,
        vcpu_cpu_micros: Vec::new(),
    };
    match machine.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(report))) => report,
        Ok(Ok(Err(error))) => failed(chain(&error)),
        Ok(Err(panic)) => failed(format!("the monitor panicked: {}", panic_text(panic.as_ref()))),
        Err(error) => failed(format!("start the machine's thread: {error}")),
    }
}

/// An error with its sources, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

fn start_writer(book: &Arc<Book>, dialer: Dialer, filters: Filters) -> Result<thread::JoinHandle<()>, ProcessError> {
    let writer = Writer::new(Arc::clone(book), Box::new(move || dialer.dial())).map_err(host("prepare the log writer"))?;
    thread::Builder::new()
        .name("logs".into())
        .spawn(move || match filters.enter(Role::Logs) {
            Ok(()) => writer.run(),
            Err(error) => tracing::error!(%error, "the log writer cannot be confined"),
        })
        .map_err(host("start the log writer"))
}

fn watch_signals(signals: SigSet, kill: Arc<dyn Fn() + Send + Sync>, filters: Filters) -> Result<(), ProcessError> {
    let watch = move || {
        if let Err(error) = filters.enter(Role::Signals) {
            tracing::error!(%error, "the signal thread cannot be confined");
            return;
        }
        while let Ok(signal) = signals.wait() {
            // The daemon's terminal is not ours.
            if signal != Signal::SIGHUP {
                tracing::info!(%signal, "stopping the machine");
                kill();
            }
        }
    };
    let thread = thread::Builder::new().name("signals".into()).spawn(watch);
    thread.map(drop).map_err(host("start the signal thread"))
}

/// Opens `machine.log` for a process's standard output and error.
pub(crate) fn open_log(directory: &OwnedFd) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::openat(
        directory,
        "machine.log",
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}
