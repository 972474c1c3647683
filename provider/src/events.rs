//! Events for a pod's owner, in the core group (a node may write no other): equal ones are counted up, not repeated.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::Client;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

use crate::write::Writer;

/// What is to be told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Note {
    /// `Normal` or `Warning`.
    pub kind: &'static str,
    /// Reason in CamelCase.
    pub reason: &'static str,
    /// `spec.containers{c}` or nothing.
    pub field: Option<String>,
    /// For people.
    pub message: String,
}

impl Note {
    /// A normal event.
    pub fn normal(reason: &'static str, field: Option<String>, message: String) -> Self {
        Self {
            kind: "Normal",
            reason,
            field,
            message,
        }
    }

    /// A warning.
    pub fn warning(reason: &'static str, field: Option<String>, message: String) -> Self {
        Self {
            kind: "Warning",
            reason,
            field,
            message,
        }
    }
}

/// Hands events to the task that writes them; never blocks.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<(ObjectReference, Note)>);

/// Events that wait to be written before further ones are dropped with a warning.
const QUEUE: usize = 4096;
/// Events whose repetition is remembered.
const REMEMBERED: usize = 4096;
/// Longest message the API takes, bytes.
const MAX_MESSAGE: usize = 1024;

impl Recorder {
    /// Starts the writer.
    pub fn start(client: Client, host: String) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, host, receiver));
        Self(sender)
    }

    /// An event on a pod.
    pub fn pod(&self, pod: &Pod, note: Note) {
        let meta = &pod.metadata;
        self.send(
            ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: note.field.clone(),
            },
            note,
        );
    }

    /// An event on the node.
    pub fn node(&self, name: &str, note: Note) {
        let reference = ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: Some(name.into()),
            ..Default::default()
        };
        self.send(reference, note);
    }

    fn send(&self, about: ObjectReference, note: Note) {
        if self.0.try_send((about, note)).is_err() {
            warn!("an event is dropped: the API server takes them more slowly than they arise");
        }
    }
}

async fn write(client: Client, host: String, mut receiver: mpsc::Receiver<(ObjectReference, Note)>) {
    let mut seen: HashMap<(Option<String>, Note), (Arc<str>, i32)> = HashMap::new();
    let mut counter = 0u64;
    while let Some((about, note)) = receiver.recv().await {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let events = Writer::<Event>::of(&client, &namespace);
        let key = (about.uid.clone(), note.clone());
        let now = Time(Timestamp::now());
        if let Some((name, count)) = seen.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": now});
            match events.patch(name, patch).await {
                Ok(()) => continue,
                // It has expired: written anew below.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    warn!(%error, reason = note.reason, "count up an event");
                    continue;
                }
            }
        }
        counter += 1;
        let stamp = u64::try_from(now.0.as_nanosecond()).unwrap_or_default().wrapping_add(counter);
        let name = format!("{}.{stamp:x}", about.name.as_deref().unwrap_or_default());
        let mut message = note.message.clone();
        if message.len() > MAX_MESSAGE {
            let cut = (0..=MAX_MESSAGE - 3).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(cut);
            message.push_str("...");
        }
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: about,
            type_: Some(note.kind.into()),
            reason: Some(note.reason.into()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("kvmlet".into()),
                host: Some(host.clone()),
            }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            reporting_component: Some("kvmlet".into()),
            reporting_instance: Some(host.clone()),
            ..Default::default()
        };
        match events.create(&event).await {
            Ok(()) => {
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
                seen.insert(key, (name.into(), 1));
            }
            Err(error) => warn!(%error, reason = note.reason, "write an event"),
        }
    }
}
