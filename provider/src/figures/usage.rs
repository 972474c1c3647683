//! What each pod uses, for whoever has to choose between pods.

use std::{collections::HashMap, sync::Arc};

use super::model::GuestSample;
use crate::{context::Context, kubelet::Pods};

/// What a pod uses, as its guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodUsage {
    /// Working set of its containers, bytes.
    pub memory: u64,
    /// What they wrote to disk, and their logs, bytes: `ephemeral-storage` of /stats/summary.
    pub storage: u64,
    /// Each container's name and working set.
    pub containers: Vec<(String, u64)>,
}

impl From<&GuestSample> for PodUsage {
    fn from(guest: &GuestSample) -> Self {
        Self {
            memory: guest.pod.working_set,
            storage: guest.storage(),
            containers: guest
                .containers
                .iter()
                .map(|one| (one.name.clone(), one.group.working_set))
                .collect(),
        }
    }
}

/// Of the pods whose guests answer, by UID.
pub async fn usage(context: &Arc<Context>, pods: &Pods) -> HashMap<String, PodUsage> {
    let read = context.readings.fresh(context, pods).await;
    read.now.answered().map(|(pod, guest)| (pod.uid.clone(), guest.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::summary::tests::snapshot;

    #[test]
    fn what_a_pod_wrote_is_on_its_disk_and_in_its_logs() {
        let seen = snapshot(2_000, 1);
        let expected = PodUsage {
            memory: 4096,
            storage: 71,
            containers: vec![("main".into(), 4096)],
        };
        assert_eq!(PodUsage::from(seen.pods[0].guest.as_ref().unwrap()), expected);
    }
}
