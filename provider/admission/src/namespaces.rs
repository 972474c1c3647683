//! Labels of namespaces, by a watch of all of them.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        reflector::{ObjectRef, Store},
        watcher,
    },
};

use crate::{
    followed::followed,
    server::{LabelsFuture, LookedFor, Namespaces},
};

/// Namespaces of the API server.
pub struct Watched {
    client: Client,
    store: Store<PartialObjectMeta<Namespace>>,
}

impl Watched {
    /// Begins to follow them.
    pub fn start(client: Client) -> Self {
        let store = followed(Api::all(client.clone()), watcher::Config::default(), "namespaces");
        Self { client, store }
    }
}

impl Namespaces for Watched {
    fn is_ready(&self) -> bool {
        futures_util::FutureExt::now_or_never(self.store.wait_until_ready()).is_some_and(|known| known.is_ok())
    }

    /// Where the watch has other labels than are looked for, it is behind, and the API server is asked.
    fn labels<'a>(&'a self, namespace: &'a str, are_looked_for: LookedFor<'a>) -> LabelsFuture<'a> {
        Box::pin(async move {
            if let Some(known) = self.store.get(&ObjectRef::new(namespace))
                && are_looked_for(known.labels())
            {
                return Ok(known.labels().clone());
            }
            let api: Api<Namespace> = Api::all(self.client.clone());
            let found = api.get_metadata(namespace).await.map_err(|error| error.to_string())?;
            Ok(found.labels().clone())
        })
    }
}
