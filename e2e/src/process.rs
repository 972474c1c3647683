//! Background processes of the rig: each is recorded by id and start time before anything depends on it, so that a later
//! run of this program, also after a crash, ends exactly those and no other.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    paths::{State, write},
    wait::wait_for,
};

/// A process that was started by the rig.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is, unique in a cluster.
    pub name: String,
    /// Its id.
    pub pid: i32,
    /// Clock ticks after boot at its start: tells it from a later process with the same id.
    pub start_time: u64,
}

/// A process's state letter and start time.
fn stat(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

impl Process {
    /// Starts `command` in a session of its own, output to `logs/NAME.log`, and records it.
    pub fn spawn(state: &State, name: &str, command: &mut Command) -> Result<Self> {
        let path = state.logs().join(format!("{name}.log"));
        fs::create_dir_all(state.logs()).context("create the folder of logs")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let errors = log.try_clone().context("share a log")?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).process_group(0).spawn();
        let pid = child.with_context(|| format!("start {name}"))?.id();
        let pid = i32::try_from(pid).expect("process ids are small");
        let (_, start_time) = stat(pid).with_context(|| format!("{name} ended at once, see {}", path.display()))?;
        let process = Self {
            name: name.to_owned(),
            pid,
            start_time,
        };
        write(&process.record(state), serde_json::to_vec(&process).context("describe a process")?)?;
        Ok(process)
    }

    /// All that were recorded and not ended.
    pub fn recorded(state: &State) -> Result<Vec<Self>> {
        let Ok(entries) = fs::read_dir(state.processes()) else {
            return Ok(Vec::new());
        };
        let mut processes = Vec::new();
        for entry in entries {
            let path = entry.context("list process records")?.path();
            let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            // A record cut short by a crash names no process.
            processes.extend(serde_json::from_slice::<Self>(&text).ok());
        }
        processes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(processes)
    }

    /// The one of this name, if it was recorded and not ended.
    pub fn named(state: &State, name: &str) -> Result<Option<Self>> {
        Ok(Self::recorded(state)?.into_iter().find(|process| process.name == name))
    }

    /// Whether it is this very process that runs.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start_time)| start_time == self.start_time && !matches!(state, 'Z' | 'X'))
    }

    /// An error that points at the log, unless it runs.
    pub fn check(&self, state: &State) -> Result<()> {
        if self.is_alive() {
            return Ok(());
        }
        let log = state.logs().join(format!("{}.log", self.name));
        bail!("{} has ended; the end of {}:\n{}", self.name, log.display(), tail(&log, 12));
    }

    /// Ends it at once and forgets it. Its state is the cluster's, which goes with it.
    pub fn end(&self, state: &State) -> Result<()> {
        if self.is_alive() {
            // It may end by itself in between: the condition below decides.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
            wait_for(&format!("the end of {}", self.name), Duration::from_secs(20), || {
                Ok((!self.is_alive()).then_some(()))
            })?;
        }
        fs::remove_file(self.record(state)).with_context(|| format!("forget {}", self.name))
    }

    fn record(&self, state: &State) -> PathBuf {
        state.processes().join(format!("{}.json", self.name))
    }
}

/// The last lines of a file; empty when there is none.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    last_lines(&String::from_utf8_lossy(&text), lines)
}

/// The last lines of a text.
pub fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_another_start_time_is_not_ours() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let (_, start_time) = stat(pid).unwrap();
        let own = Process {
            name: "own".into(),
            pid,
            start_time,
        };
        assert!(own.is_alive());
        assert!(
            !Process {
                start_time: start_time + 1,
                ..own
            }
            .is_alive()
        );
    }

    #[test]
    fn a_recorded_process_is_found_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let state = State {
            root: folder.path().into(),
            namespace: "unused".into(),
        };
        let process = Process::spawn(&state, "sleeper", Command::new("sleep").arg("600")).unwrap();
        assert_eq!(Process::recorded(&state).unwrap(), vec![process.clone()]);
        process.end(&state).unwrap();
        assert!(!process.is_alive());
        assert!(Process::recorded(&state).unwrap().is_empty());
    }
}
