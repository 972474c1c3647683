//! A host on which the same work always takes the same time, for comparing monitors by what they do: one of the rig's own beside the cluster's,
//! without the daemon.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::Cluster;
use crate::{
    Host, HostKind, artifacts,
    host::{Processors, Size, Source},
    netns::Netns,
    node,
    paths::State,
    process::Process,
    progress::{say, step},
};

/// Its number: no cluster has as many hosts.
const INDEX: usize = 10;
/// MiB.
const MEMORY: usize = 3072;

/// A cluster as one sees it who works on such a host only; an emulated one ends with this.
#[derive(Debug)]
pub struct Counted {
    /// With that host as its first and only one.
    pub cluster: Cluster,
    own: Option<Host>,
}

impl Cluster {
    /// Starts an emulated host with one processor whose time is what it carried out, and puts kvmlet on it; a host on real hardware is taken as
    /// it is.
    pub fn counted(&self) -> Result<Counted> {
        if self.verdict.kind == HostKind::Native {
            let cluster = self.lane(0)?;
            return Ok(Counted { cluster, own: None });
        }
        let host = Host::new(&self.state, INDEX, HostKind::Emulated);
        // One that a bench left behind that did not come to its end.
        end(&self.state, &host)?;
        let cluster = Self {
            hosts: vec![host.clone()],
            ..self.clone()
        };
        let counted = Counted {
            cluster,
            own: Some(host.clone()),
        };
        step("host that counts", || {
            host.start(&Source::Emulated {
                image: artifacts::host_image()?,
                control_plane_disk: artifacts::control_plane_disk(&self.programs)?,
                size: Size {
                    processors: Processors::Counted,
                    memory: MEMORY,
                },
            })?;
            host.wait_until_up(Duration::from_secs(180))?;
            node::install(&host, &artifacts::kvmlet()?, &artifacts::guest()?)
        })?;
        Ok(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(host) = &self.own
            && let Err(error) = end(&self.cluster.state, host)
        {
            say(format_args!("{} stays: {error:#}", host.name));
        }
    }
}

/// Ends the host, if it runs, and removes what it had.
pub(super) fn end(state: &State, host: &Host) -> Result<()> {
    let recorded = Process::recorded(state)?;
    let Some(process) = recorded.iter().find(|process| process.name == host.name) else {
        return Ok(());
    };
    process.end(state)?;
    Netns::of(state).remove_tap(&host.name)?;
    let folder = state.host(&host.name);
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
}
