//! What pods have stored in which volume and container. Guests walk through all of it for that, so it is looked at only for pages that say it, and
//! serves for a minute (the kubelet's volumeStatsAggPeriod).

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use kvmlet_protocol::StorageFigures;
use tokio::time::timeout;
use tracing::debug;

use super::{
    collect::{AT_ONCE, machines},
    model::{Stored, StoredVolume},
};
use crate::{act::chain, driver::View, eviction::storage, kubelet::Pods, state::Slot};

/// How long one look serves.
pub(super) const FRESH: Duration = Duration::from_secs(60);
/// How long a guest may take to answer: it walks through all of its volumes.
const PATIENCE: Duration = Duration::from_secs(10);

/// What each pod has stored, by its UID.
pub(super) type All = HashMap<String, Stored>;

/// The last looks.
#[derive(Debug, Default)]
pub(super) struct Looks {
    all: Mutex<All>,
    /// Held by who looks: no pod is asked twice at once.
    turn: tokio::sync::Mutex<()>,
}

impl Looks {
    /// What was found last.
    pub(super) fn all(&self) -> All {
        self.all.lock().expect("no holder panics").clone()
    }

    /// Looks again at pods that are `wanted` where the last look is too old, and forgets those that have no machine.
    pub(super) async fn renew(&self, pods: &Pods, wanted: fn(&View) -> bool) {
        let _turn = self.turn.lock().await;
        let machines = machines(pods);
        let all = {
            let mut all = self.all.lock().expect("no holder panics");
            all.retain(|uid, _| machines.iter().any(|(view, _)| view.desired.uid == *uid));
            all.clone()
        };
        let is_stale = |view: &View| all.get(&view.desired.uid).is_none_or(|stored| !serves(stored, view));
        let stale = machines.into_iter().filter(|(view, _)| wanted(view) && is_stale(view));
        let looks = stream::iter(stale).map(|(view, vsock)| look(view, vsock)).buffer_unordered(AT_ONCE);
        let keep = async |(uid, stored)| {
            self.all.lock().expect("no holder panics").insert(uid, stored);
        };
        looks.for_each(keep).await;
    }
}

/// Whether a look is young enough, and has all containers that run by now. What did not answer is not asked again before its time.
fn serves(stored: &Stored, view: &View) -> bool {
    let has = |id: &String| stored.layers.iter().any(|(known, _)| known == id);
    let mut containers = view.state.containers.iter().chain(&view.state.ephemeral);
    let mut has_all = || {
        containers.all(|container| match &container.slot {
            Slot::Running { id, .. } => has(id),
            _ => true,
        })
    };
    let age = Duration::try_from(Timestamp::now().duration_since(stored.at)).unwrap_or(Duration::MAX);
    age < FRESH && (!stored.told || has_all())
}

/// Whether a pod has a volume that somebody else claims for it: of others the kubelet has no metrics.
pub(super) fn has_claims(view: &View) -> bool {
    let mut volumes = view.desired.volumes().iter();
    volumes.any(|volume| volume.persistent_volume_claim.is_some())
}

/// One that does not say in time, or cannot, is not asked again before its look is too old.
async fn look(view: Arc<View>, vsock: PathBuf) -> (String, Stored) {
    let volumes = view.desired.volumes();
    let counted = volumes.iter().filter(|volume| is_counted(volume));
    let names = counted.map(|volume| volume.name.clone()).collect();
    let found = match timeout(PATIENCE, storage(&vsock, names)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            debug!(error = chain(&error), pod = view.desired.name, "what a pod has stored");
            None
        }
        Err(_) => None,
    };
    (view.desired.uid.clone(), stored(volumes, found))
}

/// Whether the kubelet counts a volume: not the host's directories, nor images.
fn is_counted(volume: &Volume) -> bool {
    volume.host_path.is_none() && volume.image.is_none()
}

/// A guest's answer, with what the pod says of its volumes.
fn stored(volumes: &[Volume], found: Option<StorageFigures>) -> Stored {
    let (told, found) = (found.is_some(), found.unwrap_or_default());
    let claim = |name: &str| {
        let volume = volumes.iter().find(|volume| volume.name == name)?;
        Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone())
    };
    Stored {
        at: Timestamp::now(),
        told,
        volumes: found
            .volumes
            .into_iter()
            .map(|(name, figures)| StoredVolume {
                claim: claim(&name),
                name,
                figures,
            })
            .collect(),
        layers: found.containers.into_iter().map(|one| (one.id, one.layer)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use kvmlet_protocol::{DirectoryFigures, LayerFigures};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_of_a_claim_names_it_and_what_is_the_hosts_or_an_images_is_not_counted() {
        let volumes: Vec<Volume> = serde_json::from_value(json!([
            {"name": "host", "hostPath": {"path": "/srv"}}, {"name": "image", "image": {"reference": "i"}},
            {"name": "cache", "emptyDir": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": "mine"}}]))
        .unwrap();
        let counted: Vec<_> = volumes
            .iter()
            .filter(|volume| is_counted(volume))
            .map(|volume| &*volume.name)
            .collect();
        assert_eq!(counted, ["cache", "data"]);
        let found = StorageFigures {
            volumes: counted
                .iter()
                .map(|name| ((*name).to_owned(), DirectoryFigures::default()))
                .collect(),
            containers: vec![LayerFigures {
                id: "1".into(),
                ..LayerFigures::default()
            }],
        };
        let stored = stored(&volumes, Some(found));
        let claims: Vec<_> = stored.volumes.iter().map(|volume| volume.claim.as_deref()).collect();
        assert_eq!(claims, [None, Some("mine")]);
        assert_eq!(stored.layers[0].0, "1");
    }
}
