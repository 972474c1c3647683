//! One watch for each config map and secret that pods of this node refer to, shared among them: it begins with the first pod and ends with the
//! last. An object is watched by its name alone, as the node authorizer demands. One that is immutable is read once, and its watch closed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    pin::pin,
    sync::{Arc, Mutex, Weak},
};

use futures_util::StreamExt;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;
use tracing::debug;

use super::{
    Entries,
    refer::{Kind, Reference},
};

/// What is kept of a config map or secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    /// UID and resource version: another one whenever something has changed.
    pub version: String,
    /// It never changes.
    pub immutable: bool,
    /// Textual entries; all of a secret's.
    pub text: Entries,
    /// A config map's binary entries.
    pub binary: Entries,
}

/// Content is never printed.
impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let entries = self.text.len() + self.binary.len();
        write!(f, "Object {{ version: {:?}, {entries} entries }}", self.version)
    }
}

/// What a watch has seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The API server has not answered yet.
    Nothing,
    /// It did not give it.
    Refused,
    /// It does not exist.
    Absent,
    /// It is like this.
    There(Arc<Object>),
}

/// A kind of object that can be watched.
pub(super) trait Source:
    kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static
{
    /// What is kept of it.
    fn read(self) -> Object;
}

fn version(meta: &ObjectMeta) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&meta.uid), part(&meta.resource_version))
}

impl Source for ConfigMap {
    fn read(self) -> Object {
        Object {
            version: version(&self.metadata),
            immutable: self.immutable == Some(true),
            text: self.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes())).collect(),
            binary: self.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(),
        }
    }
}

impl Source for Secret {
    fn read(self) -> Object {
        Object {
            version: version(&self.metadata),
            immutable: self.immutable == Some(true),
            text: self.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect(),
            binary: Entries::new(),
        }
    }
}

/// A watch that is under way; it ends with the last who holds it.
#[derive(Debug)]
pub struct Watch {
    seen: watch::Receiver<Seen>,
    task: tokio::task::AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// What it sees, and will see.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// It is closed: the object was immutable when it was read.
    fn is_closed(&self) -> bool {
        matches!(&*self.seen.borrow(), Seen::There(object) if object.immutable)
    }
}

/// The watches of one pod.
pub type Watched = BTreeMap<Reference, Arc<Watch>>;

/// All watches of the node.
#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<HashMap<Reference, Weak<Watch>>>);

impl Watches {
    /// The watch of an object, begun by `begin` if there is none. One that is closed is not shared further: the object may have been deleted and
    /// made anew since.
    fn join(&self, reference: &Reference, begin: impl FnOnce(watch::Sender<Seen>) -> tokio::task::AbortHandle) -> Arc<Watch> {
        let mut all = self.0.lock().expect("no holder panics");
        if let Some(present) = all.get(reference).and_then(Weak::upgrade).filter(|watch| !watch.is_closed()) {
            return present;
        }
        all.retain(|_, watch| watch.strong_count() > 0);
        let (sender, seen) = watch::channel(Seen::Nothing);
        let begun = Arc::new(Watch { seen, task: begin(sender) });
        all.insert(reference.clone(), Arc::downgrade(&begun));
        begun
    }

    /// Makes `own` the watches of exactly these objects.
    pub(super) fn keep(&self, own: &mut Watched, wanted: &BTreeSet<Reference>, client: &Client) {
        self.keep_with(own, wanted, |reference, sender| {
            let (namespace, name) = (reference.namespace.as_str(), reference.name.clone());
            match reference.kind {
                Kind::ConfigMap => tokio::spawn(follow::<ConfigMap>(Api::namespaced(client.clone(), namespace), name, sender)),
                Kind::Secret => tokio::spawn(follow::<Secret>(Api::namespaced(client.clone(), namespace), name, sender)),
            }
            .abort_handle()
        });
    }

    fn keep_with(
        &self,
        own: &mut Watched,
        wanted: &BTreeSet<Reference>,
        begin: impl Fn(&Reference, watch::Sender<Seen>) -> tokio::task::AbortHandle,
    ) {
        own.retain(|reference, _| wanted.contains(reference));
        for reference in wanted {
            if !own.contains_key(reference) {
                own.insert(reference.clone(), self.join(reference, |sender| begin(reference, sender)));
            }
        }
    }
}

async fn follow<K: Source>(api: Api<K>, name: String, seen: watch::Sender<Seen>) {
    {
        let mut stream = pin!(watcher::watch_object(api, &name).default_backoff());
        while let Some(event) = stream.next().await {
            match event {
                Ok(object) => {
                    let next = object.map_or(Seen::Absent, |object| Seen::There(Arc::new(object.read())));
                    let closed = matches!(&next, Seen::There(object) if object.immutable);
                    seen.send_if_modified(|old| {
                        let changed = *old != next;
                        *old = next;
                        changed
                    });
                    if closed {
                        break;
                    }
                }
                Err(error) => {
                    debug!(%error, name, "watch an object that a pod refers to");
                    // What was seen stays. Whoever waits asks by itself, and is told why it cannot be had.
                    seen.send_if_modified(|old| {
                        let first = *old == Seen::Nothing;
                        if first {
                            *old = Seen::Refused;
                        }
                        first
                    });
                }
            }
        }
    }
    // Who waits for a change goes on waiting.
    seen.closed().await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    fn reference(name: &str) -> Reference {
        Reference {
            kind: Kind::Secret,
            namespace: "n".into(),
            name: name.into(),
        }
    }

    fn wanted(names: &[&str]) -> BTreeSet<Reference> {
        names.iter().map(|name| reference(name)).collect()
    }

    /// A watch that was begun: of what, how it sees something, and what ends when it does.
    type Begun = (String, watch::Sender<Seen>, oneshot::Receiver<()>);

    /// Watches that see what the test says and never end by themselves.
    fn begin(begun: &Mutex<Vec<Begun>>) -> impl Fn(&Reference, watch::Sender<Seen>) -> tokio::task::AbortHandle {
        |reference, sender| {
            let (held, ended) = oneshot::channel();
            begun.lock().unwrap().push((reference.name.clone(), sender, ended));
            let task = async move {
                let _held: oneshot::Sender<()> = held;
                std::future::pending::<()>().await;
            };
            tokio::spawn(task).abort_handle()
        }
    }

    /// Waits until a watch has been ended.
    async fn gone(ended: &mut oneshot::Receiver<()>) {
        let ended = tokio::time::timeout(Duration::from_secs(60), ended).await.expect("it goes on");
        assert!(ended.is_err(), "nobody sends anything");
    }

    #[tokio::test(start_paused = true)]
    async fn pods_share_a_watch_that_ends_with_the_last_of_them() {
        let (watches, begun) = (Watches::default(), Mutex::default());
        let (mut one, mut two) = (Watched::new(), Watched::new());
        watches.keep_with(&mut one, &wanted(&["a", "b"]), begin(&begun));
        watches.keep_with(&mut two, &wanted(&["a"]), begin(&begun));
        watches.keep_with(&mut two, &wanted(&["a"]), begin(&begun));
        let names = |begun: &[Begun]| begun.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>();
        let mut ends = std::mem::take(&mut *begun.lock().unwrap());
        assert_eq!(names(&ends), ["a", "b"]);
        let (mut b, mut a) = (ends.pop().unwrap().2, ends.pop().unwrap().2);
        watches.keep_with(&mut one, &wanted(&[]), begin(&begun));
        gone(&mut b).await;
        assert_eq!(a.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(two);
        gone(&mut a).await;
        // The next pod begins anew, and nothing is left of what has ended.
        watches.keep_with(&mut one, &wanted(&["a"]), begin(&begun));
        assert_eq!(names(&begun.lock().unwrap()), ["a"]);
        assert_eq!(watches.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_immutable_object_that_was_made_anew_is_read_anew_by_the_next_pod() {
        let (watches, begun) = (Watches::default(), Mutex::default());
        let (mut one, mut two) = (Watched::new(), Watched::new());
        watches.keep_with(&mut one, &wanted(&["a"]), begin(&begun));
        let object = Object {
            version: "u/1".into(),
            immutable: true,
            text: Entries::new(),
            binary: Entries::new(),
        };
        begun.lock().unwrap()[0].1.send_replace(Seen::There(Arc::new(object)));
        watches.keep_with(&mut two, &wanted(&["a"]), begin(&begun));
        assert_eq!(begun.lock().unwrap().len(), 2);
        // The first pod keeps what it has.
        assert!(matches!(&*one[&reference("a")].seen().borrow(), Seen::There(_)));
        assert_eq!(*two[&reference("a")].seen().borrow(), Seen::Nothing);
    }

    #[test]
    fn entries_are_taken_and_never_printed() {
        let map: ConfigMap = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u", "resourceVersion": "7"},
            "data": {"a": "hidden"}, "binaryData": {"b": "AAE="}, "immutable": true}))
        .unwrap();
        let object = map.read();
        assert_eq!((object.version.as_str(), object.immutable), ("u/7", true));
        assert_eq!((&object.text["a"][..], &object.binary["b"][..]), (&b"hidden"[..], &[0, 1][..]));
        assert!(!format!("{object:?}").contains("hidden"));
    }
}
