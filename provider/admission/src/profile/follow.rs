//! The profiles there are, by a watch of them. A change counts for every pod that is reviewed after it has come here.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{BurstProfile, Profiles};

/// What is known of them; nothing before the API server has said it.
pub type Known = Option<Arc<Profiles>>;

/// Begins to follow them; `own` is the webhook's own namespace.
pub fn follow(client: Client, own: String) -> watch::Receiver<Known> {
    let (tell, known) = watch::channel(None);
    tokio::spawn(async move {
        let mut all = BTreeMap::new();
        let watch = watcher::watcher(Api::<BurstProfile>::all(client), watcher::Config::default());
        let mut events = std::pin::pin!(watch.default_backoff());
        while let Some(event) = events.next().await {
            let is_complete = match event {
                Ok(event) => take(&mut all, event),
                // Whoever has not installed the kind has none, and sends pods by labels.
                Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => {
                    warn!("there is no kind BurstProfile in this cluster: pods are sent by labels alone");
                    all.clear();
                    true
                }
                Err(error) => {
                    warn!(%error, "watch profiles");
                    false
                }
            };
            if is_complete {
                let profiles = Profiles::new(all.values(), own.clone());
                debug!(profiles = profiles.iter().count(), "profiles as they are from now on");
                tell.send_replace(Some(Arc::new(profiles)));
            }
        }
    });
    known
}

/// Takes an event in; whether `all` are what there is then.
fn take(all: &mut BTreeMap<String, BurstProfile>, event: Event<BurstProfile>) -> bool {
    match event {
        Event::Init => all.clear(),
        Event::InitApply(one) => _ = all.insert(one.name_any(), one),
        Event::InitDone => return true,
        Event::Apply(one) => {
            all.insert(one.name_any(), one);
            return true;
        }
        Event::Delete(one) => return all.remove(&one.name_any()).is_some(),
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn profiles_are_told_when_all_are_known_and_at_every_change() {
        let profile = |name: &str| -> BurstProfile {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"effect": {"policy": "fair"}}})).unwrap()
        };
        let mut all = BTreeMap::new();
        assert!(!take(&mut all, Event::Init));
        assert!(!take(&mut all, Event::InitApply(profile("a"))));
        assert!(take(&mut all, Event::InitDone));
        assert!(take(&mut all, Event::Apply(profile("b"))));
        assert_eq!(all.len(), 2);
        assert!(take(&mut all, Event::Delete(profile("a"))));
        assert_eq!(all.keys().collect::<Vec<_>>(), ["b"]);
    }
}
