//! An emulated host beside the cluster's, for one purpose, which ends with what holds it: one that counts, for comparing monitors by what they do,
//! and one that boots systemd, on which kvmlet is installed as an administrator does it.

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};

use super::Cluster;
use crate::{
    Host, HostKind, artifacts,
    host::{Processors, Size, Source},
    netns::Netns,
    node,
    paths::{APART, COUNTED},
    process::Process,
    progress::{say, step},
    wait_for,
};

/// MiB of the one that boots systemd.
const MEMORY: usize = 3072;
/// MiB of the one that counts: a hundred pods fit.
const ROOM: usize = 8192;
/// What may be used of the one that boots systemd.
const PROCESSORS: usize = 2;

/// There is one host that boots systemd.
static APART_IS_TAKEN: Mutex<()> = Mutex::new(());

/// A cluster as one sees it who works on such a host only.
#[derive(Debug)]
pub struct Beside {
    /// With that host as its first and only one.
    pub cluster: Cluster,
    /// Whether the host ends with this: real hardware does not.
    own: bool,
    /// Held until it has.
    _taken: Option<MutexGuard<'static, ()>>,
}

impl Cluster {
    /// Starts an emulated host with systemd and nothing of kvmlet on it; waits while somebody else has one.
    pub fn apart(&self) -> Result<Beside> {
        self.start_apart(|| Ok(Processors::Several(PROCESSORS)))
    }

    /// The same for what makes the host's kernel rewrite itself all the time.
    pub fn apart_in_turn(&self) -> Result<Beside> {
        self.start_apart(|| Ok(Processors::InTurn(PROCESSORS, artifacts::counting_qemu()?)))
    }

    fn start_apart(&self, processors: impl FnOnce() -> Result<Processors>) -> Result<Beside> {
        let taken = APART_IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut apart = self.start_beside("host that boots systemd", APART, || {
            let size = Size {
                processors: processors()?,
                memory: MEMORY,
            };
            Ok((artifacts::systemd_host_image()?, size))
        })?;
        apart._taken = Some(taken);
        Ok(apart)
    }

    /// Starts an emulated host with one processor whose time is what it carried out, and puts kvmlet on it; a host on real hardware is taken as
    /// it is. It has no daemon.
    pub fn counted(&self) -> Result<Beside> {
        if self.verdict.kind == HostKind::Native {
            let cluster = self.lane(0)?;
            return Ok(Beside {
                cluster,
                own: false,
                _taken: None,
            });
        }
        let counted = self.start_beside("host that counts", COUNTED, || {
            let size = Size {
                processors: Processors::Counted(artifacts::counting_qemu()?),
                memory: ROOM,
            };
            Ok((artifacts::host_image()?, size))
        })?;
        let host = counted.host()?;
        node::install(host, &self.kvmlet()?, &self.guest()?)?;
        node::configure(&self.state, host)?;
        Ok(counted)
    }

    fn start_beside(&self, what: &str, index: usize, made: impl FnOnce() -> Result<(PathBuf, Size)>) -> Result<Beside> {
        let host = Host::new(&self.state, index, HostKind::Emulated);
        let beside = Beside {
            cluster: Self {
                hosts: vec![host.clone()],
                ..self.clone()
            },
            own: true,
            _taken: None,
        };
        // One that a run left behind that did not come to its end.
        beside.end()?;
        step(what, || {
            let (image, size) = made()?;
            host.start(&Source::Emulated {
                image,
                control_plane_disk: artifacts::control_plane_disk(&self.programs)?,
                size,
            })?;
            host.wait_until_up(Duration::from_secs(180))
        })?;
        Ok(beside)
    }
}

impl Beside {
    /// The host.
    pub fn host(&self) -> Result<&Host> {
        self.cluster.host(0)
    }

    /// Waits until it has switched itself off.
    pub fn wait_until_off(&self, deadline: Duration) -> Result<()> {
        let name = &self.host()?.name;
        let process = self.process()?.with_context(|| format!("{name} was not started"))?;
        wait_for(&format!("{name} to be off"), deadline, || Ok((!process.is_alive()).then_some(())))
    }

    fn process(&self) -> Result<Option<Process>> {
        Process::named(&self.cluster.state, &self.host()?.name)
    }

    /// Ends the host, if it runs, and removes what it had.
    fn end(&self) -> Result<()> {
        let (Some(process), state) = (self.process()?, &self.cluster.state) else {
            return Ok(());
        };
        process.end(state)?;
        Netns::of(state).remove_tap(&process.name)?;
        let folder = state.host(&process.name);
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if self.own
            && let Err(error) = self.end()
        {
            say(format_args!("the host beside the cluster stays: {error:#}"));
        }
    }
}
