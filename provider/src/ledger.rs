//! What pods of this node were given: one place, so that two that ask at once are not given the same twice.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::watch;

use crate::{
    desired::{Amounts, DesiredPod, Refusal},
    node::Stock,
    resize::judge::{NotNow, judge},
    size::{self, Given, Room, Size},
};

/// The node's amounts, and who has how much of them.
#[derive(Debug)]
pub struct Ledger {
    stock: watch::Receiver<Stock>,
    max_pods: u32,
    given: Mutex<HashMap<String, Amounts>>,
}

impl Ledger {
    /// Of a host that runs at most so many pods.
    pub fn new(stock: watch::Receiver<Stock>, max_pods: u32) -> Self {
        Self {
            stock,
            max_pods,
            given: Mutex::default(),
        }
    }

    /// How much the host has now. Pods keep what they were given, also where that has become more.
    pub fn stock(&self) -> Stock {
        *self.stock.borrow()
    }

    /// Gives a new pod what it requests, or says with the kubelet's reasons why not.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn admit(&self, pod: &DesiredPod) -> Result<(), Refusal> {
        let mut given = self.lock();
        let (used, pods) = others(&given, &pod.uid);
        let Stock { capacity, allocatable } = self.stock();
        size::admit(pod, used, pods, allocatable, capacity, self.max_pods)?;
        given.insert(pod.uid.clone(), pod.requests());
        Ok(())
    }

    /// Gives a pod that runs what it requests by now.
    ///
    /// # Errors
    /// When it cannot have that, or not now.
    pub fn resize(&self, pod: &DesiredPod, size: Size, room: Option<Room>) -> Result<(), NotNow> {
        let mut all = self.lock();
        let Stock { capacity, allocatable } = self.stock();
        let given = Given {
            used: others(&all, &pod.uid).0,
            allocatable,
            capacity,
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

    /// What pods were given in all, and how many they are.
    pub fn given(&self) -> (Amounts, u32) {
        others(&self.lock(), "")
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

    fn of(cpus: u64) -> Stock {
        let all = Amounts {
            cpu: Quantity::millis(cpus * 1000),
            memory: Quantity::bytes(1 << 30),
            storage: Quantity::bytes(1 << 30),
        };
        Stock {
            capacity: all,
            allocatable: all,
        }
    }

    #[test]
    fn what_a_host_has_more_is_given_and_what_it_has_less_is_taken_from_nobody() {
        let host = watch::Sender::new(of(1));
        let ledger = Ledger::new(host.subscribe(), 9);
        ledger.admit(&pod("a", "1")).unwrap();
        assert_eq!(ledger.admit(&pod("b", "1")).unwrap_err().reason, "OutOfcpu");
        host.send_replace(of(2));
        ledger.admit(&pod("b", "1")).unwrap();
        host.send_replace(of(1));
        assert_eq!(ledger.admit(&pod("c", "100m")).unwrap_err().reason, "OutOfcpu");
        ledger.remove("a");
        assert_eq!(ledger.admit(&pod("c", "100m")).unwrap_err().reason, "OutOfcpu");
        ledger.remove("b");
        ledger.admit(&pod("c", "100m")).unwrap();
    }

    #[test]
    fn nothing_is_given_twice_and_what_a_pod_had_is_free_once_it_is_over() {
        let host = watch::Sender::new(of(2));
        let ledger = Ledger::new(host.subscribe(), 3);
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
        assert_eq!((ledger.given().0.cpu.milli_value(), ledger.given().1), (2000, 2));
        ledger.remove("b");
        assert_eq!(resize(&pod("a", "1500m")), Ok(()));
    }
}
