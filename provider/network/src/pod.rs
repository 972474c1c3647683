//! Owns the order in which a pod's network is made and undone, and that any number of pods may ask at once.
//!
//! Refuses to make a network that already has a trace: the caller tears that one down, or recalls it. What is asked for
//! one pod happens one after the other, and to its end: a caller that goes away cancels nothing half-way.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipnet::Ipv4Net;
use serde_json::Value;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::cni::{AddResult, CniError, Plugins};
use crate::config::NetworkConfig;
use crate::join::{self, JoinError};
use crate::netns::{Namespaces, NetnsError};
use crate::record::{Record, RecordError, Records};
use crate::types::{INTERFACE, PodInterface, PodNetwork, PodNetworkRequest, attachment, interface};

/// Names of our namespaces start so; the pod's UID follows.
const PREFIX: &str = "kvmlet-";

/// Plugins are programs that mostly wait for one lock of the kernel: more at once only make each slower.
const CONCURRENT_ATTACHMENTS: u32 = 8;

/// Why a pod has no network, or keeps one it should not have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A UID or name that would not be safe in a path or in CNI_ARGS.
    #[error("{what} {value:?} is not made of letters, digits, '-' and '.'")]
    Name {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// There is one, or part of one.
    #[error("pod {0} already has a network or the rest of one")]
    Exists(String),
    /// There is none, or only part of one.
    #[error("pod {0} has no complete network")]
    Incomplete(String),
    /// The namespace.
    #[error("cannot handle the pod's network namespace")]
    Netns(#[from] NetnsError),
    /// The plugins.
    #[error("cannot attach, check or detach the pod by CNI")]
    Cni(#[from] CniError),
    /// The plugins gave the pod's interface no address.
    #[error("the CNI plugins gave {INTERFACE} no address")]
    NoAddress,
    /// The tap.
    #[error("cannot join the pod's interface to its machine's tap")]
    Join(#[from] JoinError),
    /// The runtime ends.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The record.
    #[error("cannot keep the record of the pod's network")]
    Record(#[from] RecordError),
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Swept {
    /// Torn down.
    pub removed: Vec<String>,
    /// Not torn down, and why.
    pub failed: Vec<(String, NetworkError)>,
}

/// The networks of this node's pods. A clone is the same networks.
#[derive(Clone, Debug)]
pub struct PodNetworks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NetworkConfig,
    namespaces: Namespaces,
    plugins: Plugins,
    records: Records,
    attachments: Semaphore,
    bridge_made: AtomicBool,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl PodNetworks {
    /// Networks as `config` says.
    #[must_use]
    pub fn new(config: NetworkConfig) -> Self {
        Self {
            inner: Arc::new(Inner {
                namespaces: Namespaces::new(config.netns_dir.clone(), config.timeout),
                plugins: Plugins::new(config.plugin_dirs.clone(), config.timeout),
                records: Records::new(&config.state_dir),
                attachments: Semaphore::new(CONCURRENT_ATTACHMENTS as usize),
                bridge_made: AtomicBool::new(false),
                turns: Mutex::default(),
                config,
            }),
        }
    }

    /// Whether a pod has a record here, so that teardown has something to do; asked where no network stands yet.
    #[must_use]
    pub fn has_trace(state_dir: &std::path::Path, uid: &str) -> bool {
        !matches!(Records::new(state_dir).load(uid), Ok(None))
    }

    /// All pods of this node.
    #[must_use]
    pub fn pod_cidr(&self) -> Ipv4Net {
        self.inner.config.pod_cidr
    }

    /// Makes the pod's network. What a failure leaves is undone before it is reported, as far as that works.
    ///
    /// # Errors
    ///
    /// When a trace of the pod's network exists already, or any step fails.
    pub async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetwork, NetworkError> {
        let request = request.clone();
        self.in_turn(&request.uid.clone(), async move |inner| inner.setup(&request).await)
            .await
    }

    /// What the pod's interface was made to be, for a daemon that starts again; `None` when there is no complete one.
    ///
    /// # Errors
    ///
    /// When the record cannot be read.
    pub fn recall(&self, uid: &str) -> Result<Option<PodInterface>, NetworkError> {
        checked("UID", uid)?;
        Ok(self.inner.records.load(uid)?.and_then(|record| record.interface))
    }

    /// Is the pod's network as it was made? Its machine must hold the tap. Host ports are not looked at.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub async fn check(&self, uid: &str) -> Result<(), NetworkError> {
        let owned = uid.to_owned();
        self.in_turn(uid, async move |inner| inner.check(&owned).await).await
    }

    /// Undoes the pod's network, whole or in part; nothing there is success. The pod's machine should be gone: it holds
    /// the namespace's tap.
    ///
    /// # Errors
    ///
    /// When a step fails; then its record stays, and teardown may be asked again.
    pub async fn teardown(&self, uid: &str) -> Result<(), NetworkError> {
        let owned = uid.to_owned();
        self.in_turn(uid, async move |inner| inner.teardown(&owned).await).await
    }

    /// Tears down every network whose pod is not among `live`.
    ///
    /// # Errors
    ///
    /// When what is there cannot be listed. A network that cannot be torn down is told in the answer.
    pub async fn sweep(&self, live: &HashSet<String>) -> Result<Swept, NetworkError> {
        let mut found: BTreeSet<String> = self.inner.records.uids()?.into_iter().collect();
        let names = self.inner.namespaces.names(PREFIX)?;
        found.extend(names.iter().filter_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned));
        let mut swept = Swept::default();
        for uid in found.into_iter().filter(|uid| !live.contains(uid)) {
            match self.teardown(&uid).await {
                Ok(()) => swept.removed.push(uid),
                Err(error) => swept.failed.push((uid, error)),
            }
        }
        Ok(swept)
    }

    /// Runs `work` for one pod after all that was asked for it before, on a task that no caller can cancel.
    async fn in_turn<T, F>(&self, uid: &str, work: impl FnOnce(Arc<Inner>) -> F + Send + 'static) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, NetworkError>> + Send + 'static,
    {
        let (inner, uid) = (Arc::clone(&self.inner), uid.to_owned());
        let task = tokio::spawn(async move {
            let turn = inner.turn(&uid).await;
            let done = work(Arc::clone(&inner)).await;
            drop(turn);
            inner.forget_turn(&uid);
            done
        });
        match task.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(NetworkError::ShuttingDown),
            },
        }
    }
}

impl Inner {
    async fn turn(&self, uid: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(turns.entry(uid.to_owned()).or_default())
        };
        turn.lock_owned().await
    }

    /// Forgets a pod that nobody waits for.
    fn forget_turn(&self, uid: &str) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.get(uid).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(uid);
        }
    }

    async fn setup(&self, request: &PodNetworkRequest) -> Result<PodNetwork, NetworkError> {
        let name = namespace_name(&request.uid)?;
        checked("namespace", &request.namespace)?;
        checked("name", &request.name)?;
        if self.records.load(&request.uid)?.is_some() || self.namespaces.path(&name).exists() {
            return Err(NetworkError::Exists(request.uid.clone()));
        }
        let made = self.make(request, &name).await;
        if made.is_err()
            && let Err(error) = self.teardown(&request.uid).await
        {
            tracing::warn!(uid = request.uid, %error, "half a pod network is left");
        }
        made
    }

    async fn make(&self, request: &PodNetworkRequest, name: &str) -> Result<PodNetwork, NetworkError> {
        let mut record = Record {
            list: self.config.config_list(!request.host_ports.is_empty()),
            attachment: attachment(request, self.namespaces.path(name)),
            result: None,
            interface: None,
        };
        self.records.save(&request.uid, &record)?;
        let netns = self.namespaces.create(name).await?;
        let result = self.attach(&record).await?;
        let queues = request.queues;
        let joined = self.namespaces.visit(name, move || join::join(INTERFACE, queues)).await?;
        let interface = interface(netns, &AddResult::parse(&result)?, &joined).ok_or(NetworkError::NoAddress)?;
        record.result = Some(result);
        record.interface = Some(interface.clone());
        self.records.save(&request.uid, &record)?;
        Ok(PodNetwork {
            interface,
            tap: joined.tap,
            more_queues: joined.more_queues,
        })
    }

    /// The very first attachment runs alone: plugins that make and address one bridge at a time trip over each other.
    async fn attach(&self, record: &Record) -> Result<Value, CniError> {
        let share = if self.bridge_made.load(Ordering::Acquire) {
            1
        } else {
            CONCURRENT_ATTACHMENTS
        };
        let _permit = self.attachments.acquire_many(share).await.expect("the semaphore is never closed");
        let result = self.plugins.add(&record.list, &record.attachment).await?;
        self.bridge_made.store(true, Ordering::Release);
        Ok(result)
    }

    async fn check(&self, uid: &str) -> Result<(), NetworkError> {
        let name = namespace_name(uid)?;
        let Some(Record {
            mut list,
            attachment,
            result: Some(result),
            interface: Some(_),
        }) = self.records.load(uid)?
        else {
            return Err(NetworkError::Incomplete(uid.to_owned()));
        };
        // Debian's portmap 1.1.1 looks for IPv6 rules that it never made for an IPv4 pod, and fails its CHECK.
        list.plugins.retain(|plugin| plugin["type"] != "portmap");
        self.plugins.check(&list, &attachment, &result).await?;
        Ok(self.namespaces.visit(&name, || join::check(INTERFACE)).await?)
    }

    async fn teardown(&self, uid: &str) -> Result<(), NetworkError> {
        let name = namespace_name(uid)?;
        if let Some(record) = self.records.load(uid)? {
            let _permit = self.attachments.acquire().await.expect("the semaphore is never closed");
            self.plugins.del(&record.list, &record.attachment, record.result.as_ref()).await?;
        }
        self.namespaces.remove(&name)?;
        Ok(self.records.remove(uid)?)
    }
}

fn checked(what: &'static str, value: &str) -> Result<(), NetworkError> {
    let plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '.');
    if value.starts_with(|first: char| first.is_ascii_alphanumeric()) && value.len() <= 253 && value.chars().all(plain) {
        Ok(())
    } else {
        Err(NetworkError::Name {
            what,
            value: value.to_owned(),
        })
    }
}

fn namespace_name(uid: &str) -> Result<String, NetworkError> {
    checked("UID", uid)?;
    Ok(format!("{PREFIX}{uid}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_uid_leaves_the_directories_that_are_ours(uid in ".{0,40}") {
            if let Ok(name) = namespace_name(&uid) {
                prop_assert!(!uid.is_empty() && !uid.starts_with('.'));
                prop_assert!(!name.contains(['/', '\0', ';', '=']));
            }
        }
    }
}
