//! Other limits for containers that run, and other processors for their pod.

use std::sync::Arc;

use kvmlet_protocol::{ErrorKind, Failure, Resources};

use crate::{container::Container, cpus, failure::fail};

/// Does all of it, or nothing where a container uses more memory than it shall have: its processes would be killed.
pub(crate) fn resize(count: u8, containers: &[(Arc<Container>, Resources)]) -> Result<(), Failure> {
    for (container, limits) in containers {
        let used = container.cgroup.figures().working_set;
        if !fits(used, limits.memory_max) {
            let (name, limit) = (&container.spec.name, limits.memory_max);
            let why = format!("attempting to set the memory limit of container {name} ({limit}) below its current usage ({used})");
            return Err(fail(ErrorKind::Conflict, why));
        }
    }
    cpus::bring_up(count)?;
    for (container, limits) in containers {
        container.cgroup.resize(limits)?;
    }
    cpus::take_down(count)
}

/// Whether so much memory is within a limit; 0 is none.
fn fits(used: u64, limit: u64) -> bool {
    limit == 0 || used <= limit
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn a_limit_below_what_is_used_does_not_fit_and_no_limit_always_does() {
        assert!(fits(5, 5) && fits(5, 0) && !fits(6, 5));
    }
}
