//! Runs on a host: one machine monitor, ours or another, from the making of its process to its end. Ends what it has started.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::process;

/// Between two attempts to reach the guest.
const PAUSE: Duration = Duration::from_millis(2);
/// A guest that has not answered by then will not.
const DEADLINE: Duration = Duration::from_secs(90);
/// What `kvmlet vm --probe` says of an answer, and milliseconds behind it.
const ANSWERED: &str = "answered after ";

/// A monitor that runs.
pub(super) struct Monitor {
    child: Child,
    program: String,
    begun: Instant,
}

/// What kvmlet said itself.
pub(super) struct Said {
    /// From before the process was made to the line.
    pub(super) seconds: f64,
    /// Of these, what the process knows of: from where it makes its machine.
    pub(super) inside: f64,
}

impl Monitor {
    /// Starts it. Its standard error is this process's, or read by [`Self::said`].
    pub(super) fn start(argv: &[String], error: Stdio) -> Result<Self> {
        let (program, arguments) = argv.split_first().context("no command")?;
        let mut command = Command::new(program);
        // An open standard input is what holds a probed machine.
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(error);
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        Ok(Self {
            child,
            program: program.clone(),
            begun,
        })
    }

    /// Tries until the guest can be reached; answers after how long it was.
    pub(super) fn wait<T>(&mut self, mut reach: impl FnMut() -> Result<T>) -> Result<(T, f64)> {
        loop {
            let error = match reach() {
                Ok(reached) => return Ok((reached, self.begun.elapsed().as_secs_f64())),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait().context("look after the monitor")? {
                return Err(error.context(format!("{} ended: {status}", self.program)));
            }
            if self.begun.elapsed() > DEADLINE {
                return Err(error.context(format!("no answer within {} s", DEADLINE.as_secs())));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Reads its standard error, which is a pipe, to the line about the answer.
    pub(super) fn said(&mut self) -> Result<Said> {
        let mut lines = BufReader::new(self.child.stderr.as_mut().context("its standard error is no pipe")?);
        let mut line = String::new();
        while lines.read_line(&mut line).context("hear the monitor")? > 0 {
            let seconds = self.begun.elapsed().as_secs_f64();
            if let Some((_, rest)) = line.split_once(ANSWERED) {
                let inside: f64 = rest
                    .split(' ')
                    .next()
                    .unwrap_or_default()
                    .parse()
                    .with_context(|| format!("read {line}"))?;
                return Ok(Said {
                    seconds,
                    inside: inside / 1e3,
                });
            }
            eprint!("{line}");
            line.clear();
        }
        bail!("{} ended without an answer", self.program)
    }

    /// `/proc/PID/` this file.
    pub(super) fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    }

    /// What its threads have run so far, those too that have ended: with its guest's processors, and with a vhost thread, which is one of them
    /// since Linux 6.4.
    pub(super) fn processor_seconds(&self) -> Result<f64> {
        process::seconds(self.pid()?)
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Asks it to end, and waits for that.
    pub(super) fn terminate(mut self) -> Result<()> {
        kill(self.pid()?, Signal::SIGTERM).context("end the monitor")?;
        let begun = Instant::now();
        while self.child.try_wait().context("wait for the monitor")?.is_none() {
            ensure!(begun.elapsed() < DEADLINE, "{} does not end", self.program);
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
