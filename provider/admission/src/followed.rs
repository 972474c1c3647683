//! What there is of a kind, by a watch: of its objects' metadata in the background, or of what is read of each event.

use std::{collections::BTreeMap, fmt::Debug};

use futures_util::{StreamExt as _, future::ready};
use kube::{
    Api, Resource, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, Store},
        watcher::{self, Event},
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

/// What there is of a kind, by the events of a watch.
pub(crate) struct All<T> {
    /// By name.
    pub(crate) items: BTreeMap<String, T>,
    /// All that there was when the watch began is there.
    pub(crate) is_complete: bool,
}

impl<T> All<T> {
    /// Nothing is known yet.
    pub(crate) fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            is_complete: false,
        }
    }

    /// There are none: nobody knows the kind.
    pub(crate) fn none(&mut self) {
        self.items.clear();
        self.is_complete = true;
    }

    /// Takes an event in, of objects of which `read` says what is kept; what it reads nothing of is not there.
    pub(crate) fn take<K: Resource>(&mut self, event: Event<K>, read: impl Fn(K) -> Option<T>) {
        match event {
            Event::Init => {
                self.items.clear();
                self.is_complete = false;
            }
            Event::InitDone => self.is_complete = true,
            Event::Delete(one) => _ = self.items.remove(&one.name_any()),
            Event::Apply(one) | Event::InitApply(one) => {
                let name = one.name_any();
                match read(one) {
                    Some(read) => _ = self.items.insert(name, read),
                    None => _ = self.items.remove(&name),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{PreflightCheck, decide::tests::check};

    #[test]
    fn what_there_is_follows_the_watch_and_is_complete_when_all_was_listed() {
        let mut all = All::new();
        all.take(Event::Init, Some);
        all.take(Event::InitApply(check("a", 1, None)), Some);
        assert!(!all.is_complete);
        all.take::<PreflightCheck>(Event::InitDone, Some);
        all.take(Event::Apply(check("b", 2, None)), Some);
        assert!(all.is_complete && all.items.len() == 2);
        all.take(Event::Apply(check("a", 1, Some(true))), |_| None);
        all.take(Event::Delete(check("b", 2, None)), Some);
        assert!(all.items.is_empty());
    }
}
