//! What there is of a kind, by a watch of its objects' metadata.

use std::fmt::Debug;

use futures_util::{StreamExt as _, future::ready};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tracing::warn;

/// Begins to follow them; `what` is what messages call them.
pub(crate) fn followed<K>(all: Api<PartialObjectMeta<K>>, config: watcher::Config, what: &'static str) -> Store<PartialObjectMeta<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    PartialObjectMeta<K>: Resource<DynamicType = ()> + DeserializeOwned,
{
    let (store, writer) = reflector::store();
    let watch = watcher::watcher(all, config).default_backoff();
    tokio::spawn(reflector::reflector(writer, watch).for_each(move |event| {
        if let Err(error) = event {
            warn!(%error, "watch {what}");
        }
        ready(())
    }));
    store
}
