//! Other limits for containers that run, and other processors for their pod.

use std::sync::Arc;

use kvmlet_protocol::{ErrorKind, Failure, Resources};

use crate::{container::Container, cpus, failure::fail};

/// Does all of it, or nothing where a container uses more memory than it shall have: its processes would be killed.
pub(crate) fn resize(count: u8, containers: &[(Arc<Container>, Resources)]) -> Result<(), Failure> {
    for (container, limits) in containers {
        let limit = limits.memory_max;
        container.cgroup.fits(limit).map_err(|used| {
            let name = &container.spec.name;
            let why = format!("attempting to set the memory limit of container {name} ({limit}) below its current usage ({used})");
            fail(ErrorKind::Conflict, why)
        })?;
    }
    cpus::bring_up(count)?;
    for (container, limits) in containers {
        container.cgroup.resize(limits)?;
    }
    cpus::take_down(count)
}
