//! A host that boots systemd, beside the cluster's: for a test that installs kvmlet there as an administrator does, and shuts the host down.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Cluster, counted::end};
use crate::{
    Host, HostKind, artifacts,
    host::{Processors, Size, Source},
    paths::APART,
    process::Process,
    progress::{say, step},
    wait_for,
};

/// MiB.
const MEMORY: usize = 3072;
/// What may be used of it.
const PROCESSORS: usize = 2;

/// A cluster as one sees it who works on such a host only, which ends with this.
#[derive(Debug)]
pub struct Apart {
    /// With that host as its first and only one.
    pub cluster: Cluster,
}

impl Cluster {
    /// Starts an emulated host with systemd and nothing of kvmlet on it.
    pub fn apart(&self) -> Result<Apart> {
        let host = Host::new(&self.state, APART, HostKind::Emulated);
        // One that a test left behind that did not come to its end.
        end(&self.state, &host)?;
        let apart = Apart {
            cluster: Self {
                hosts: vec![host.clone()],
                ..self.clone()
            },
        };
        step("host that boots systemd", || {
            host.start(&Source::Emulated {
                image: artifacts::systemd_host_image()?,
                control_plane_disk: artifacts::control_plane_disk(&self.programs)?,
                size: Size {
                    processors: Processors::Several(PROCESSORS),
                    memory: MEMORY,
                },
            })?;
            host.wait_until_up(Duration::from_secs(180))
        })?;
        Ok(apart)
    }
}

impl Apart {
    /// The host.
    pub fn host(&self) -> Result<&Host> {
        self.cluster.host(0)
    }

    /// Waits until it has switched itself off.
    pub fn wait_until_off(&self, deadline: Duration) -> Result<()> {
        let host = self.host()?;
        let recorded = Process::recorded(&self.cluster.state)?;
        let process = recorded.into_iter().find(|process| process.name == host.name);
        let process = process.with_context(|| format!("{} was not started", host.name))?;
        wait_for(&format!("{} to be off", host.name), deadline, || {
            Ok((!process.is_alive()).then_some(()))
        })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        for host in &self.cluster.hosts {
            if let Err(error) = end(&self.cluster.state, host) {
                say(format_args!("{} stays: {error:#}", host.name));
            }
        }
    }
}
