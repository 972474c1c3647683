//! The config maps, secrets, services and tokens that a pod refers to, read from the API server when they are needed: by name only, as the
//! node authorizer demands. Services are watched once for the whole node.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};

/// Why an object could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It does not exist.
    #[error("{kind} {name:?} not found")]
    NotFound {
        /// `configmap`, `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap`, `Secret`.
        kind: &'static str,
        /// Namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The API server did not give it.
    #[error("failed to sync {kind} {name:?}: {message}")]
    Api {
        /// Kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the API server said.
        message: String,
    },
}

/// Where objects come from.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    services: Store<Service>,
}

/// A config map's or a secret's entries.
pub type Entries = BTreeMap<String, Vec<u8>>;

impl Objects {
    /// Starts the watch of services.
    pub fn start(client: Client) -> Self {
        let (services, writer) = reflector::store();
        let watch = watcher::watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
        let stream = reflector::reflector(writer, watch);
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = futures_util::StreamExt::next(&mut stream).await {
                if let Err(error) = event {
                    tracing::warn!(%error, "watch services");
                }
            }
        });
        Self { client, services }
    }

    /// A config map's textual entries: variables come from these alone, as the kubelet's do.
    pub async fn config_map_text(&self, namespace: &str, name: &str) -> Result<Entries, ObjectError> {
        let object: ConfigMap = self.get("configmap", namespace, name).await?;
        Ok(object.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect())
    }

    /// A config map's entries, binary ones too.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Entries, ObjectError> {
        let object: ConfigMap = self.get("configmap", namespace, name).await?;
        let text = object.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        let binary = object.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
        Ok(text.chain(binary).collect())
    }

    /// A secret's entries.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Entries, ObjectError> {
        let object: Secret = self.get("secret", namespace, name).await?;
        Ok(object.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect())
    }

    /// Every service of the cluster, as far as known; waits for the first list at most this long.
    pub async fn services(&self) -> Vec<std::sync::Arc<Service>> {
        let ready = self.services.wait_until_ready();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(10), ready).await;
        self.services.state()
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, ObjectError> {
        let meta = &pod.metadata;
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.as_deref())
            .filter(|a| !a.is_empty())
            .unwrap_or("default");
        let request = TokenRequest {
            metadata: ObjectMeta::default(),
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.map(|a| vec![a.to_owned()]).unwrap_or_default()),
                attestations: None,
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
            }),
            status: None,
        };
        let failed = |message: String| ObjectError::Api {
            kind: "token of service account",
            name: account.into(),
            message,
        };
        let answer = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|e| failed(e.to_string()))?;
        answer
            .status
            .and_then(|s| s.token)
            .ok_or_else(|| failed("the answer holds no token".into()))
    }

    async fn get<K>(&self, kind: &'static str, namespace: &str, name: &str) -> Result<K, ObjectError>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        match Api::<K>::namespaced(self.client.clone(), namespace).get_opt(name).await {
            Ok(Some(object)) => Ok(object),
            Ok(None) => Err(ObjectError::NotFound { kind, name: name.into() }),
            Err(error) => Err(ObjectError::Api {
                kind,
                name: name.into(),
                message: error.to_string(),
            }),
        }
    }
}
