//! What pods of this node were given: one place, so that two that ask at once are not given the same twice.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use crate::{
    desired::{Amounts, DesiredPod, Refusal},
    node::Host,
    resize::judge::{NotNow, judge},
    size::{self, Given, Room, Size},
};

/// The node's amounts, and who has how much of them.
#[derive(Debug)]
pub struct Ledger {
    allocatable: Amounts,
    capacity: Amounts,
    max_pods: u32,
    given: Mutex<HashMap<String, Amounts>>,
}

impl Ledger {
    /// Of a host that runs at most so many pods.
    pub fn new(host: &Host, max_pods: u32) -> Self {
        Self {
            allocatable: host.allocatable,
            capacity: host.capacity,
            max_pods,
            given: Mutex::default(),
        }
    }

    /// All of the host.
    pub fn capacity(&self) -> Amounts {
        self.capacity
    }

    /// Gives a new pod what it requests, or says with the kubelet's reasons why not.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn admit(&self, pod: &DesiredPod) -> Result<(), Refusal> {
        let mut given = self.lock();
        let (used, pods) = others(&given, &pod.uid);
        size::admit(pod, used, pods, self.allocatable, self.capacity, self.max_pods)?;
        given.insert(pod.uid.clone(), pod.requests());
        Ok(())
    }

    /// Gives a pod that runs what it requests by now.
    ///
    /// # Errors
    /// When it cannot have that, or not now.
    pub fn resize(&self, pod: &DesiredPod, size: Size, room: Option<Room>) -> Result<(), NotNow> {
        let mut all = self.lock();
        let given = Given {
            used: others(&all, &pod.uid).0,
            allocatable: self.allocatable,
            capacity: self.capacity,
        };
        judge(pod, size, &given, room)?;
        all.insert(pod.uid.clone(), pod.requests());
        Ok(())
    }

    /// A pod that was admitted before this process began.
    pub fn enter(&self, pod: &DesiredPod) {
        self.lock().insert(pod.uid.clone(), pod.requests());
    }

    /// A pod that needs nothing any more.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Amounts>> {
        self.given.lock().expect("no holder panics")
    }
}

/// What all but this one have, and how many they are.
fn others(given: &HashMap<String, Amounts>, uid: &str) -> (Amounts, u32) {
    let others = given.iter().filter(|(known, _)| *known != uid);
    others.fold((Amounts::default(), 0), |(used, pods), (_, amounts)| {
        (used.plus(*amounts), pods + 1)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{config::PodDefaults, quantity::Quantity};

    fn pod(uid: &str, cpu: &str) -> DesiredPod {
        let of = json!({"cpu": cpu, "memory": "64Mi"});
        let pod = json!({"metadata": {"uid": uid}, "spec": {"containers": [{"name": "c", "resources": {"limits": of, "requests": of}}]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    #[test]
    fn nothing_is_given_twice_and_what_a_pod_had_is_free_once_it_is_over() {
        let all = Amounts {
            cpu: Quantity::millis(2000),
            memory: Quantity::bytes(1 << 30),
            storage: Quantity::bytes(1 << 30),
        };
        let ledger = Ledger {
            allocatable: all,
            capacity: all,
            max_pods: 3,
            given: Mutex::default(),
        };
        let resize = |pod: &DesiredPod| ledger.resize(pod, size::size(pod, &PodDefaults::default()), None);
        ledger.admit(&pod("a", "1")).unwrap();
        ledger.admit(&pod("b", "500m")).unwrap();
        assert_eq!(ledger.admit(&pod("c", "1")).unwrap_err().reason, "OutOfcpu");
        assert_eq!(resize(&pod("b", "1")), Ok(()));
        assert!(
            matches!(resize(&pod("a", "1500m")), Err(NotNow::Deferred(_))),
            "and it keeps what it has"
        );
        assert_eq!(ledger.admit(&pod("c", "100m")).unwrap_err().reason, "OutOfcpu");
        ledger.remove("b");
        assert_eq!(resize(&pod("a", "1500m")), Ok(()));
    }
}
