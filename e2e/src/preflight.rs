//! Which kind of host this machine can be, found out by booting: a `/dev/kvm` that opens may still not boot a kernel.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{HostKind, artifacts::Guest};

/// A canary machine that takes longer than this does not boot.
const DEADLINE: Duration = Duration::from_secs(20);

/// The kind of host to use, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The kind.
    pub kind: HostKind,
    /// The reason, part of a sentence.
    pub reason: String,
}

impl Verdict {
    fn emulated(reason: impl Into<String>) -> Self {
        Self {
            kind: HostKind::Emulated,
            reason: reason.into(),
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        match self.kind {
            HostKind::Native => format!("KVM hosts are this machine: {}", self.reason),
            HostKind::Emulated => format!("KVM hosts are emulated (QEMU without hardware virtualisation): {}", self.reason),
        }
    }
}

/// Decides. `$KVMLET_HOST` (`native`, `emulated`) overrides; with kvmlet and its guest at hand a machine is booted, without
/// them the processor's flags must do.
pub fn decide(built: Option<(&Path, &Guest)>) -> Result<Verdict> {
    match env::var("KVMLET_HOST").as_deref() {
        Ok("native") => {
            return Ok(Verdict {
                kind: HostKind::Native,
                reason: "KVMLET_HOST says so".into(),
            });
        }
        Ok("emulated") => return Ok(Verdict::emulated("KVMLET_HOST says so")),
        Ok(other) if !other.is_empty() => bail!("KVMLET_HOST is {other:?}: neither native nor emulated"),
        _ => {}
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Ok(Verdict::emulated(format!("opening /dev/kvm: {error}")));
    }
    let Some((kvmlet, guest)) = built else {
        let processors = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        return Ok(
            match processors.split_ascii_whitespace().find(|word| matches!(*word, "svm" | "vmx")) {
                Some(flag) => Verdict {
                    kind: HostKind::Native,
                    reason: format!("its processor says {flag} (nothing was booted: no kvmlet)"),
                },
                None => Verdict::emulated("/dev/kvm opens, but the processor has neither svm nor vmx (nothing was booted: no kvmlet)"),
            },
        );
    };
    let mut probe = Command::new(kvmlet);
    probe
        .args(["vm", "--probe", "--kernel"])
        .arg(&guest.kernel)
        .arg("--initramfs")
        .arg(&guest.initramfs);
    let started = Instant::now();
    Ok(match boot(&mut probe) {
        Ok(()) => {
            let reason = format!("its KVM booted a canary machine in {:.1} s", started.elapsed().as_secs_f64());
            Verdict {
                kind: HostKind::Native,
                reason,
            }
        }
        Err(error) => Verdict::emulated(format!("/dev/kvm opens, but a canary machine did not boot: {error:#}")),
    })
}

/// Runs the probe under its deadline; an error is one line.
fn boot(probe: &mut Command) -> Result<()> {
    let mut child = probe
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start kvmlet")?;
    let ended = crate::wait_for("it", DEADLINE, || child.try_wait().context("wait for kvmlet"));
    if ended.is_err() {
        // It may end by itself just now.
        let _ = child.kill();
    }
    let output = child.wait_with_output().context("wait for kvmlet")?;
    let said = String::from_utf8_lossy(&output.stderr);
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => bail!("{status}: {}", said.lines().last().unwrap_or("it said nothing")),
        Err(error) => Err(error),
    }
}
