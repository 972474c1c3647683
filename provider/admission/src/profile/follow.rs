//! The profiles there are, by a watch of them. A change counts for every pod that is reviewed after it has come here.

use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{BurstProfile, Profiles};
use crate::followed::All;

/// What is known of them; nothing before the API server has said it.
pub type Known = Option<Arc<Profiles>>;

/// Begins to follow them; `own` is the webhook's own namespace.
pub fn follow(client: Client, own: String) -> watch::Receiver<Known> {
    let (tell, known) = watch::channel(None);
    tokio::spawn(async move {
        let mut all = All::new();
        let watch = watcher::watcher(Api::<BurstProfile>::all(client), watcher::Config::default());
        let mut events = std::pin::pin!(watch.default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => all.take(event, Some),
                // Whoever has not installed the kind has none, and sends pods by labels.
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                    warn!("there is no kind BurstProfile in this cluster: pods are sent by labels alone");
                    all.none();
                }
                Err(error) => {
                    warn!(%error, "watch profiles");
                    continue;
                }
            }
            if all.is_complete {
                let profiles = Profiles::new(all.items.values(), own.clone());
                debug!(profiles = profiles.iter().count(), "profiles as they are from now on");
                tell.send_replace(Some(Arc::new(profiles)));
            }
        }
    });
    known
}

#[cfg(test)]
mod tests {
    use kube::runtime::watcher::Event;
    use serde_json::json;

    use super::*;

    #[test]
    fn profiles_are_told_when_all_are_known_and_at_every_change() {
        let profile = |name: &str| -> BurstProfile {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"effect": {"policy": "fair"}}})).unwrap()
        };
        let take = |all: &mut All<BurstProfile>, event| {
            all.take(event, Some);
            all.is_complete
        };
        let mut all = All::new();
        assert!(!take(&mut all, Event::Init));
        assert!(!take(&mut all, Event::InitApply(profile("a"))));
        assert!(take(&mut all, Event::InitDone));
        assert!(take(&mut all, Event::Apply(profile("b"))));
        assert_eq!(all.items.len(), 2);
        assert!(take(&mut all, Event::Delete(profile("a"))));
        assert_eq!(all.items.keys().collect::<Vec<_>>(), ["b"]);
    }
}
