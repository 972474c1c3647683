//! Writes to the API server of which only the success counts. It answers with the whole object, and nobody here reads that: the watch brings what is
//! of interest.

use std::marker::PhantomData;

use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Client, Error, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::{Request, request},
};
use serde::Serialize;

/// Writes objects of one kind in a namespace.
pub(crate) struct Writer<'a, K> {
    client: &'a Client,
    request: Request,
    kind: PhantomData<K>,
}

impl<'a, K: Resource<DynamicType = (), Scope = NamespaceResourceScope>> Writer<'a, K> {
    /// Those of `namespace`.
    pub(crate) fn of(client: &'a Client, namespace: &str) -> Self {
        Self {
            client,
            request: Request::new(K::url_path(&(), Some(namespace))),
            kind: PhantomData,
        }
    }

    /// Makes one.
    pub(crate) async fn create(&self, object: &K) -> kube::Result<()>
    where
        K: Serialize,
    {
        let bytes = serde_json::to_vec(object).map_err(Error::SerdeError)?;
        self.send(self.request.create(&PostParams::default(), bytes)).await
    }

    /// Changes one by a strategic merge patch.
    pub(crate) async fn patch(&self, name: &str, patch: impl Serialize) -> kube::Result<()> {
        self.send(self.request.patch(name, &PatchParams::default(), &Patch::Strategic(patch)))
            .await
    }

    /// Changes the status of one by a strategic merge patch.
    pub(crate) async fn patch_status(&self, name: &str, patch: impl Serialize) -> kube::Result<()> {
        let params = PatchParams::default();
        self.send(self.request.patch_subresource("status", name, &params, &Patch::Strategic(patch)))
            .await
    }

    async fn send(&self, request: Result<hyper::Request<Vec<u8>>, request::Error>) -> kube::Result<()> {
        let request = request.map_err(Error::BuildRequest)?;
        self.client.request_text(request).await.map(drop)
    }
}

/// Deletes a pod's object for good, if it is still this one.
pub(crate) async fn delete(client: &Client, pod: &Pod) -> kube::Result<()> {
    let meta = &pod.metadata;
    let pods = Writer::<Pod>::of(client, meta.namespace.as_deref().unwrap_or_default());
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: meta.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    pods.send(pods.request.delete(meta.name.as_deref().unwrap_or_default(), &params))
        .await
}
