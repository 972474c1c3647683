//! `--boot-trace`: boots a machine with its kernel's log on a pipe, notes when each line came and when the agent answered, ends it, and prints
//! the timeline. Whatever console the machine would have had is not there.

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kvmlet_protocol::Welcome;
use vmm_lib::{
    Builder,
    boot::with_initcalls,
    spec::{FileSource, MachineSpec, Serial, Vsock},
};

use super::{
    agent::hello,
    boot_log::{Said, parse},
    by_hand::tell_end,
    running::Running,
    timeline::assemble,
};

/// How long a boot may take; the serial port makes it several times longer.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// How long an agent may take behind the start of the first process, before there is taken to be none.
const HELLO_TIME: Duration = Duration::from_secs(20);
/// Between two attempts to reach the agent.
const AGAIN: Duration = Duration::from_millis(5);
/// A longer line is cut, more lines are left out: the guest writes them.
const LONGEST_LINE: usize = 1024;
const MOST_LINES: usize = 100_000;
/// Lines of the log that are shown of a guest that did not boot.
const LAST_LINES: usize = 8;

/// What is waited for.
enum Event {
    Line(Instant, String),
    Answered(Instant, Box<Welcome>),
    Ended,
}

/// What was seen of a boot.
#[derive(Default)]
struct Seen {
    log: Vec<(Instant, String)>,
    init: bool,
    answered: Option<(Instant, Box<Welcome>)>,
}

/// Boots, prints the timeline on standard output, ends the machine.
pub(super) fn run(mut spec: MachineSpec, mut files: Vec<OwnedFd>) -> anyhow::Result<ExitCode> {
    let (log, writer) = io::pipe().context("make a pipe")?;
    spec.serial = Some(Serial {
        output: FileSource::Passed(files.len() as u32),
        input: None,
    });
    spec.console = None;
    files.push(writer.into());
    spec.boot.command_line = with_initcalls(&spec.boot.command_line);
    let socket = match &spec.vsock {
        Some(Vsock {
            socket: FileSource::Path(path),
            ..
        }) => Some(path.clone()),
        _ => None,
    };
    let machine = Builder::new(spec, files).build().context("make the machine")?;
    let (events, happened) = mpsc::channel();
    let ended = events.clone();
    let running = Running::start(machine, move || {
        let _ = ended.send(Event::Ended);
    })?;
    let reader = thread::Builder::new().name("log".into());
    let lines = events.clone();
    let reader = reader.spawn(move || read(log, &lines))?;
    let done = Arc::new(AtomicBool::new(false));
    let greeter = socket.clone().map(|socket| greet(socket, events, done.clone())).transpose()?;
    let mut seen = Seen::default();
    wait(&happened, &mut seen, socket.is_some());
    done.store(true, Ordering::Relaxed);
    let handle = running.handle.clone();
    let report = running.stop()?;
    // Both end with the machine: its pipe and its socket are closed.
    let _ = reader.join();
    if let Some(greeter) = greeter {
        let _ = greeter.join();
    }
    // What was still on its way.
    happened.try_iter().for_each(|event| seen.take(event));
    seen.show(&handle.timeline());
    if seen.answered.is_some() || seen.init {
        return Ok(ExitCode::SUCCESS);
    }
    for (_, line) in &seen.log[seen.log.len().saturating_sub(LAST_LINES)..] {
        eprintln!("{line}");
    }
    // It was stopped because its time was over, or it ended before.
    let _ = tell_end(&report.exit);
    Ok(ExitCode::FAILURE)
}

/// Until there is nothing more to wait for.
fn wait(happened: &mpsc::Receiver<Event>, seen: &mut Seen, agent: bool) {
    let mut deadline = Instant::now() + BOOT_TIME;
    while let Ok(event) = happened.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let ended = matches!(event, Event::Ended);
        let begun = seen.init;
        seen.take(event);
        if ended || seen.answered.is_some() || (seen.init && !agent) {
            return;
        }
        if seen.init && !begun {
            deadline = deadline.min(Instant::now() + HELLO_TIME);
        }
    }
}

impl Seen {
    fn take(&mut self, event: Event) {
        match event {
            Event::Line(at, line) => {
                self.init |= matches!(parse(&line).said, Said::Init(_));
                if self.log.len() < MOST_LINES {
                    self.log.push((at, line));
                }
            }
            Event::Answered(at, welcome) => self.answered = Some((at, welcome)),
            Event::Ended => {}
        }
    }

    fn show(&self, host: &vmm_lib::timeline::Timeline) {
        let since = |at: Instant| at.saturating_duration_since(host.begun());
        let log: Vec<_> = self.log.iter().map(|(at, line)| (since(*at), line.clone())).collect();
        let answered = self.answered.as_ref().map(|(at, _)| since(*at));
        if let Some((_, welcome)) = &self.answered {
            println!("Linux {}, kvmlet's agent {}\n", welcome.kernel, welcome.agent);
        }
        print!("{}", assemble(host.steps(), &log, answered));
    }
}

/// Sends the log's lines until it ends.
fn read(mut log: io::PipeReader, events: &Sender<Event>) {
    let (mut line, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = log.read(&mut buffer) {
        let now = Instant::now();
        for byte in &buffer[..count] {
            if *byte == b'\n' {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                let _ = events.send(Event::Line(now, text));
            } else if line.len() < LONGEST_LINE {
                line.push(*byte);
            }
        }
    }
}

/// Tries to greet the agent until it answers.
fn greet(socket: PathBuf, events: Sender<Event>, done: Arc<AtomicBool>) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("greeter".into()).spawn(move || {
        while !done.load(Ordering::Relaxed) {
            if let Ok(welcome) = hello(&socket) {
                let _ = events.send(Event::Answered(Instant::now(), Box::new(welcome.1)));
                return;
            }
            thread::sleep(AGAIN);
        }
    })
}
