//! The config maps, secrets, services and tokens that a pod refers to: by name only, as the node authorizer demands. Config maps and secrets are
//! watched one by one while a pod refers to them ([`watched`]), services once for the whole node.

pub mod refer;
pub mod watched;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
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

use self::watched::{Source, Watches};
pub use self::{
    refer::{Kind, Reference},
    watched::{Object, Seen, Watched},
};
use crate::{
    desired::DesiredPod,
    token::{Issue, Token, Wish},
};

/// How long a watch that has just begun is waited for before the API server is asked itself.
const FIRST_SIGHT: Duration = Duration::from_secs(5);

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
    watches: Arc<Watches>,
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
        Self {
            client,
            services,
            watches: Arc::default(),
        }
    }

    /// Every service of the cluster, as far as known; waits for the first list at most this long.
    pub async fn services(&self) -> Vec<Arc<Service>> {
        let ready = self.services.wait_until_ready();
        let _ = tokio::time::timeout(Duration::from_secs(10), ready).await;
        self.services.state()
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn token(&self, pod: &Pod, wish: &Wish) -> Result<Token, ObjectError> {
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
                audiences: Some(wish.audience.iter().cloned().collect()),
                attestations: None,
                expiration_seconds: Some(wish.seconds),
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
        let asked = Timestamp::now();
        let answer = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace)
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(|e| failed(e.to_string()))?;
        // The API server may give another lifetime than was asked for.
        let seconds = answer.spec.and_then(|s| s.expiration_seconds).unwrap_or(wish.seconds);
        let value = answer.status.and_then(|s| s.token);
        Ok(Token {
            value: value.ok_or_else(|| failed("the answer holds no token".into()))?,
            issue: Issue { at: asked, seconds },
        })
    }

    async fn get<K: Source>(&self, kind: Kind, namespace: &str, name: &str) -> Result<Arc<Object>, ObjectError> {
        match Api::<K>::namespaced(self.client.clone(), namespace).get_opt(name).await {
            Ok(Some(object)) => Ok(Arc::new(object.read())),
            Ok(None) => Err(ObjectError::NotFound {
                kind: kind.word(),
                name: name.into(),
            }),
            Err(error) => Err(ObjectError::Api {
                kind: kind.word(),
                name: name.into(),
                message: error.to_string(),
            }),
        }
    }
}

/// The objects that one pod refers to, watched while it does.
pub struct PodObjects {
    objects: Objects,
    own: Mutex<Watched>,
}

impl PodObjects {
    /// Of a pod that refers to nothing yet.
    pub fn new(objects: Objects) -> Self {
        Self {
            objects,
            own: Mutex::default(),
        }
    }

    /// Watches what the pod refers to; nothing when there is none.
    pub fn keep(&self, pod: Option<&DesiredPod>) {
        let wanted = pod.map(refer::of_pod).unwrap_or_default();
        self.objects
            .watches
            .keep(&mut self.own.lock().expect("no holder panics"), &wanted, &self.objects.client);
    }

    /// The watch of an object that the pod refers to.
    pub fn watched(&self, reference: &Reference) -> Option<tokio::sync::watch::Receiver<Seen>> {
        self.own.lock().expect("no holder panics").get(reference).map(|watch| watch.seen())
    }

    /// An object as it is: from its watch, where that knows it, else from the API server.
    pub async fn object(&self, reference: &Reference) -> Result<Arc<Object>, ObjectError> {
        if let Some(mut seen) = self.watched(reference) {
            let _ = tokio::time::timeout(FIRST_SIGHT, seen.wait_for(|seen| *seen != Seen::Nothing)).await;
            if let Seen::There(object) = &*seen.borrow() {
                return Ok(object.clone());
            }
        }
        // What a watch does not know of may have come just now, and why it cannot be had is only said to who asks.
        let (namespace, name) = (&reference.namespace, &reference.name);
        match reference.kind {
            Kind::ConfigMap => self.objects.get::<ConfigMap>(Kind::ConfigMap, namespace, name).await,
            Kind::Secret => self.objects.get::<Secret>(Kind::Secret, namespace, name).await,
        }
    }

    /// A config map's textual entries: variables come from these alone, as the kubelet's do.
    pub async fn config_map_text(&self, namespace: &str, name: &str) -> Result<Entries, ObjectError> {
        let object = self.object(&Reference::new(Kind::ConfigMap, namespace, name)).await?;
        Ok(object.text.clone())
    }

    /// A secret's entries.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Entries, ObjectError> {
        let object = self.object(&Reference::new(Kind::Secret, namespace, name)).await?;
        Ok(object.text.clone())
    }

    /// Every service of the cluster, as far as known.
    pub async fn services(&self) -> Vec<Arc<Service>> {
        self.objects.services().await
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn token(&self, pod: &Pod, wish: &Wish) -> Result<Token, ObjectError> {
        self.objects.token(pod, wish).await
    }
}
