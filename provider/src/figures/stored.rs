//! What pods have stored in which volume and container. Guests walk through all of it for that, so it is looked at only for pages that say it, and
//! serves for a minute (the kubelet's volumeStatsAggPeriod).

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use kvmlet_protocol::StorageFigures;
use tokio::time::timeout;
use tracing::debug;

use super::{
    PATIENCE,
    collect::{AT_ONCE, machines},
    model::{Stored, StoredVolume},
};
use crate::{act::chain, driver::View, eviction::storage, kubelet::Pods, state::Slot};

/// How long one look serves.
pub(super) const FRESH: Duration = Duration::from_secs(60);

/// What each pod has stored, by its UID.
pub(super) type All = HashMap<String, Stored>;

/// Looks again at pods that are `wanted` where the last look is too old, and forgets those that have no machine.
pub(super) async fn renew(all: &mut All, pods: &Pods, wanted: fn(&View) -> bool) {
    let machines = machines(pods);
    let now = Timestamp::now();
    all.retain(|uid, stored| {
        let age = Duration::try_from(now.duration_since(stored.at)).unwrap_or(Duration::MAX);
        age < FRESH && machines.iter().any(|(view, _)| view.desired.uid == *uid)
    });
    // A container that has come since is not in the last look.
    let known = |view: &View| {
        let stored = all.get(&view.desired.uid);
        let running = view
            .state
            .containers
            .iter()
            .chain(&view.state.ephemeral)
            .filter_map(|c| match &c.slot {
                Slot::Running { id, .. } => Some(id),
                _ => None,
            });
        let is_known = |id: &String| stored.is_some_and(|stored| stored.layers.iter().any(|(known, _)| known == id));
        stored.is_some_and(|stored| !stored.told) || stored.is_some() && running.into_iter().all(is_known)
    };
    let stale: Vec<_> = machines.into_iter().filter(|(view, _)| wanted(view) && !known(view)).collect();
    let looks = stream::iter(stale).map(|(view, vsock)| look(view, vsock)).buffer_unordered(AT_ONCE);
    all.extend(looks.collect::<Vec<_>>().await);
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
