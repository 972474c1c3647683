//! What `kvmlet vm` runs, from its first to its last moment: leaves the daemon's session, takes its order, listens, runs the machine, and
//! writes how it ended, however it ended. One machine, once.

use std::{
    any::Any,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit};
use vmm_lib::{
    builder::{Builder, Handle},
    exit::{MachineExit, MachineReport},
    spec::{FileSource, MachineSpec},
};

use crate::{
    control::MachineState,
    logs::{Book, Writer},
    record::{self, ExitRecord, RecordError},
    server::Server,
    start::{Answer, OLDEST_VERSION, Start, VERSION},
    wire::{Receiver, WireError, send},
};

/// Name of the socket in a machine's directory that the daemon talks to.
pub(crate) const CONTROL_SOCKET: &str = "control.sock";
/// Name of the vsock device's socket, unless the specification says otherwise.
const VSOCK_SOCKET: &str = "vsock.sock";
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

/// An order that can be followed.
struct Order {
    spec: MachineSpec,
    passed: Vec<OwnedFd>,
    directory: OwnedFd,
    listener: UnixListener,
    started: u64,
}

impl Order {
    fn prepare(start: Start, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let started = record::now();
        if !(OLDEST_VERSION..=VERSION).contains(&start.version) {
            return Err(format!(
                "this program starts machines of versions {OLDEST_VERSION} to {VERSION}, not {}",
                start.version
            ));
        }
        let mut descriptors = descriptors.into_iter();
        let directory = descriptors.next().ok_or("the machine's directory was not passed")?;
        log_to_stderr(&start.log_filter)?;
        raise_descriptor_limit();
        let io = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
        record::remove(&directory, CONTROL_SOCKET).map_err(io("remove the old control socket"))?;
        let listener = UnixListener::bind(within(&directory, CONTROL_SOCKET)).map_err(io("listen on the control socket"))?;
        Ok(Self {
            spec: start.spec,
            passed: descriptors.collect(),
            directory,
            listener,
            started,
        })
    }

    fn follow(self, signals: &SigSet, receiver: Receiver) -> Result<MachineExit, ProcessError> {
        let Self {
            spec,
            passed,
            directory,
            listener,
            started,
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
        watch_signals(*signals, Arc::clone(&kill))?;
        let server = Server {
            book: Arc::clone(&book),
            kill,
        };
        server.start(listener).map_err(host("start the control thread"))?;
        // A daemon that has gone meanwhile will find the socket.
        let _ = send(receiver.stream(), &Answer::Listening, &[]);
        drop(receiver);
        let writer = match &spec.vsock {
            Some(vsock) => Some(start_writer(&book, vsock_socket(&vsock.socket, &directory))?),
            None => None,
        };
        let report = run_machine(spec, passed, &book, &engine);
        let exit = report.exit.clone();
        tracing::info!(?exit, "the machine has ended");
        let record = ExitRecord {
            version: 1,
            started,
            ended: record::now(),
            report,
        };
        let recorded = record.write(&directory);
        book.set_state(MachineState::Ended);
        if let Some(writer) = writer {
            let _ = writer.join();
        }
        let _ = record::remove(&directory, CONTROL_SOCKET);
        recorded.map_err(ProcessError::Record)?;
        Ok(exit)
    }
}

/// The machine, or the wish that it shall not run.
#[derive(Default)]
struct Engine(Mutex<(Option<Handle>, bool)>);

impl Engine {
    fn stop(&self) {
        let mut engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        engine.1 = true;
        if let Some(handle) = &engine.0 {
            handle.stop();
        }
    }

    /// Takes note of a machine about to run; stops it if that was wished before.
    fn started(&self, handle: Handle) {
        let mut engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if engine.1 {
            handle.stop();
        }
        engine.0 = Some(handle);
    }
}

/// Builds and runs the machine on a thread of its own, so that even a panic has a report.
fn run_machine(spec: MachineSpec, passed: Vec<OwnedFd>, book: &Arc<Book>, engine: &Arc<Engine>) -> MachineReport {
    let failed = |what: String| MachineReport {
        exit: MachineExit::Error { what },
        exits: None,
        vcpu_cpu_micros: Vec::new(),
    };
    let (book, engine) = (Arc::clone(book), Arc::clone(engine));
    let machine = thread::Builder::new().name("machine".into()).spawn(move || {
        let machine = Builder::new(spec, passed).build()?;
        engine.started(machine.handle());
        book.set_state(MachineState::Running);
        Ok::<_, vmm_lib::builder::BuildError>(machine.run())
    });
    match machine.map(thread::JoinHandle::join) {
        Ok(Ok(Ok(report))) => report,
        Ok(Ok(Err(error))) => failed(chain(&error)),
        Ok(Err(panic)) => failed(format!("the monitor panicked: {}", panic_text(panic.as_ref()))),
        Err(error) => failed(format!("start the machine's thread: {error}")),
    }
}

/// An error with its sources, in one line.
fn chain(error: &dyn std::error::Error) -> String {
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

fn start_writer(book: &Arc<Book>, socket: PathBuf) -> Result<thread::JoinHandle<()>, ProcessError> {
    let writer = Writer::new(Arc::clone(book), socket).map_err(host("prepare the log writer"))?;
    thread::Builder::new()
        .name("logs".into())
        .spawn(move || writer.run())
        .map_err(host("start the log writer"))
}

fn watch_signals(signals: SigSet, kill: Arc<dyn Fn() + Send + Sync>) -> Result<(), ProcessError> {
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                // The daemon's terminal is not ours.
                if signal != Signal::SIGHUP {
                    tracing::info!(%signal, "stopping the machine");
                    kill();
                }
            }
        })
        .map(drop)
        .map_err(host("start the signal thread"))
}

/// A file of an open directory by a path that is short, however deep the directory lies (socket addresses have 108 bytes).
pub(crate) fn within(directory: &impl AsFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}

fn vsock_socket(socket: &FileSource, directory: &OwnedFd) -> PathBuf {
    match socket {
        FileSource::Path(path) => path.clone(),
        FileSource::Passed(_) => within(directory, VSOCK_SOCKET),
    }
}

/// Standard error is `machine.log`.
fn log_to_stderr(filter: &str) -> Result<(), String> {
    let filter = filter
        .parse::<tracing_subscriber::EnvFilter>()
        .map_err(|error| format!("understand the log filter: {error}"))?;
    // A program that has a subscriber already keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(io::stderr)
        .try_init();
    Ok(())
}

/// Image layers, log files and vsock clients need more than the usual 1,024 descriptors.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
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
