//! `kvmlet console`: what the kernel of a pod's machine has written to its serial port, where the node keeps that.

use std::{
    fs::File,
    io::{self, ErrorKind, IsTerminal as _, Read as _},
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};

use super::{
    Host,
    model::{Pod, Process},
    text,
};
use crate::{cli::ConsoleArguments, print::print};

/// How often is looked whether there is more.
const AGAIN: Duration = Duration::from_millis(250);
/// Read at once.
const PIECE: usize = 64 << 10;

/// Prints a console, and what comes if that is wished.
pub(crate) fn console(arguments: &ConsoleArguments) -> anyhow::Result<ExitCode> {
    let host = Host::open(&arguments.pod.config.path)?;
    let pod = host.find(&arguments.pod.pod)?;
    let directory = host.store.machine_dir(&pod.desired.uid);
    let file = directory.join("console.log");
    let opened = match File::open(&file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(missing(&pod, host.config.guest.serial, &host.path, &directory)),
        Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
    };
    copy(opened, arguments.follow, || host.is_alive(&pod.desired.uid))?;
    Ok(ExitCode::SUCCESS)
}

/// Why there is no console, and what there is instead.
fn missing(pod: &Pod, serial: bool, config: &Path, machine: &Path) -> String {
    let (name, config) = (pod.full(), config.display());
    let log = format!("what its machine's process says is in {}", machine.join("machine.log").display());
    match (&pod.process, &pod.started) {
        (Process::Never, _) => format!("{name} has no machine ({}), and so no console", pod.standing()),
        (_, Some(started)) if started.has_serial() => {
            format!(
                "the console of {name} is gone: {} has been removed; {log}",
                machine.join("console.log").display()
            )
        }
        _ if serial => format!(
            "the console of {name} is not kept: its machine was started before guest.serial was switched on, and has no serial port. \
             Those that start from now on have one: delete the pod, and its successor's console is kept; {log}"
        ),
        _ => format!(
            "the console of {name} is not kept: machines have no serial port, as guest.serial is false in {config}. With `guest: {{serial: true}}` there \
             and the daemon restarted, machines that start from then on have one; none of them is a copy of a template, and they boot slowly; {log}"
        ),
    }
}

fn copy(mut file: File, follow: bool, is_alive: impl Fn() -> bool) -> anyhow::Result<()> {
    let is_terminal = io::stdout().is_terminal();
    let mut piece = vec![0; PIECE];
    loop {
        // Asked before the file is read: what was written until the end is then seen.
        let more = follow && is_alive();
        loop {
            let read = file.read(&mut piece).context("read the console")?;
            if read == 0 {
                break;
            }
            let seen = &piece[..read];
            let goes_on = if is_terminal { print(&text::visible(seen)) } else { print(seen) };
            if !goes_on? {
                return Ok(());
            }
        }
        if !more {
            return Ok(());
        }
        thread::sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;
    use kvmlet_provider::{figures::Phase, started::Started};
    use serde_json::json;

    use super::*;
    use crate::operate::model::tests::pod;

    fn said(serial: bool, change: impl FnOnce(&mut Pod)) -> String {
        missing(&pod("hello", change), serial, Path::new("/etc/kvmlet/config.yaml"), Path::new("/m"))
    }

    #[test]
    fn who_looks_for_a_console_that_is_not_kept_is_told_what_turns_it_on() {
        let off = said(false, |_| {});
        for part in [
            "default/hello",
            "guest.serial is false in /etc/kvmlet/config.yaml",
            "guest: {serial: true}",
            "/m/machine.log",
        ] {
            assert!(off.contains(part), "{part:?} is not in {off}");
        }
        let later = said(true, |_| {});
        assert!(later.contains("before guest.serial was switched on"), "{later}");
        let none = said(true, |pod| pod.process = Process::Never);
        assert!(none.contains("has no machine (Lost)"), "{none}");
    }

    #[test]
    fn a_console_that_was_removed_is_not_said_to_be_switched_off() {
        let spec = json!({"version": vmm_lib::spec::SPEC_VERSION, "name": "m", "cpus": 2, "memory": 192 << 20,
            "serial": {"output": {"path": "/m/console.log"}}, "boot": {"kernel": {"path": "/k"}, "initramfs": null, "commandLine": ""}});
        let phases = [(Phase::Queue, Duration::ZERO)];
        let started = Started::new(Timestamp::UNIX_EPOCH, &phases, &serde_json::from_value(spec).unwrap());
        let gone = said(true, |pod| pod.started = Some(started));
        assert!(gone.contains("/m/console.log has been removed"), "{gone}");
    }
}
