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
    policy::{self, Labels},
    server::{LabelsFuture, Namespaces},
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

    /// The API server has found the namespace's labels, or the pod's, to ask for it. Where the watch does not say so, it is behind, and the
    /// API server is asked.
    fn labels<'a>(&'a self, namespace: &'a str, pod: &'a Labels) -> LabelsFuture<'a> {
        Box::pin(async move {
            if let Some(known) = self.store.get(&ObjectRef::new(namespace)) {
                let labels: Labels = known.labels().clone();
                if policy::is_asked(pod, &labels) {
                    return Ok(labels);
                }
            }
            let api: Api<Namespace> = Api::all(self.client.clone());
            let found = api.get_metadata(namespace).await.map_err(|error| error.to_string())?;
            Ok(found.labels().clone())
        })
    }
}
