//! What the replica that leads knows of pods that profiles and policies have a say in: which are let onto virtual nodes next, and what is told of
//! each profile. Plain data, without I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{
    decide::{Toleration, Unfit, toleration},
    overflow::{Due, follow_up, is_over},
    policy::{PASSED_OVER, PROFILE},
    profile::{PassedOver, Status},
};

/// A pod: its namespace and its name.
pub(crate) type Key = (String, String);

/// What of a pod counts.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    profile: Option<String>,
    passed_over: Vec<String>,
    /// When it was created, RFC 3339: who came first is let in first.
    since: String,
    /// Whether it is on a virtual node, or may come there.
    has_place: bool,
    is_there: bool,
    due: Due,
}

impl Seen {
    fn of(pod: &Value, is_virtual: impl Fn(&str) -> bool, unfit: Unfit) -> Self {
        let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
        let node = spec["nodeName"].as_str().filter(|name| !name.is_empty());
        let is_there = node.is_some_and(&is_virtual);
        let others = metadata["annotations"][PASSED_OVER].as_str().unwrap_or_default();
        Self {
            profile: metadata["labels"][PROFILE].as_str().map(str::to_owned),
            passed_over: others.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            since: metadata["creationTimestamp"].as_str().unwrap_or_default().to_owned(),
            has_place: is_there || (node.is_none() && toleration(spec) == Toleration::Ours),
            is_there,
            due: follow_up(pod, is_virtual, unfit),
        }
    }
}

/// The pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    all: BTreeMap<Key, Seen>,
    /// Pods that have something due now.
    due: BTreeSet<Key>,
    /// Pods that wait to be let in, the oldest first.
    waiting: BTreeSet<(String, Key)>,
    /// Pods that were given a place: they keep it, as nobody takes a toleration away, whatever older versions of them still come.
    given: BTreeSet<Key>,
    /// How many pods of each profile have a place.
    places: BTreeMap<String, u32>,
    /// Whether all there are have been seen: before that nothing is decided.
    is_complete: bool,
}

impl Pods {
    /// Forgets all: what there is comes anew.
    pub(crate) fn begin(&mut self) {
        *self = Self::default();
    }

    /// All there are have come.
    pub(crate) fn complete(&mut self) {
        self.is_complete = true;
    }

    /// Takes in a pod (JSON) as it is now.
    pub(crate) fn apply(&mut self, key: Key, pod: &Value, is_virtual: impl Fn(&str) -> bool, unfit: Unfit) {
        let is_given = self.given.contains(&key);
        self.remove(&key);
        if is_over(pod) {
            return;
        }
        let mut seen = Seen::of(pod, is_virtual, unfit);
        match seen.due {
            Due::Nothing => {}
            Due::Now(_) => _ = self.due.insert(key.clone()),
            Due::Place(_) if is_given => seen.has_place = true,
            Due::Place(_) => _ = self.waiting.insert((seen.since.clone(), key.clone())),
        }
        if is_given {
            self.given.insert(key.clone());
        }
        if let (true, Some(profile)) = (seen.has_place, &seen.profile) {
            *self.places.entry(profile.clone()).or_default() += 1;
        }
        self.all.insert(key, seen);
    }

    /// A pod is gone.
    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(seen) = self.all.remove(key) else { return };
        self.due.remove(key);
        self.given.remove(key);
        self.waiting.remove(&(seen.since, key.clone()));
        if let (true, Some(profile)) = (seen.has_place, seen.profile) {
            self.places.entry(profile).and_modify(|places| *places -= 1);
        }
    }

    /// The pod that is changed next, and how (a JSON patch). One that is let in has its place from then on, not only when the API server says so.
    pub(crate) fn next(&mut self, max: impl Fn(&str) -> Option<u32>) -> Option<(Key, Vec<Value>)> {
        if !self.is_complete {
            return None;
        }
        let key = match self.due.pop_first() {
            Some(key) => key,
            None => {
                let place = self.waiting.iter().find(|(_, key)| self.has_room(key, &max))?.clone();
                self.waiting.remove(&place);
                place.1
            }
        };
        let seen = self.all.get_mut(&key)?;
        match std::mem::take(&mut seen.due) {
            Due::Nothing => None,
            Due::Now(operations) => Some((key, operations)),
            Due::Place(operations) => {
                seen.has_place = true;
                self.given.insert(key.clone());
                if let Some(profile) = &seen.profile {
                    *self.places.entry(profile.clone()).or_default() += 1;
                }
                Some((key, operations))
            }
        }
    }

    /// The API server refused a change: the pod is gone or another by now. It is decided anew by its newest version, that which came meanwhile or comes.
    pub(crate) fn refused(&mut self, key: &Key) {
        if !self.given.remove(key) {
            return;
        }
        let Some(seen) = self.all.get_mut(key) else { return };
        if matches!(seen.due, Due::Place(_)) {
            self.waiting.insert((seen.since.clone(), key.clone()));
        }
        if let (true, Some(profile)) = (std::mem::take(&mut seen.has_place), &seen.profile) {
            self.places.entry(profile.clone()).and_modify(|places| *places -= 1);
        }
    }

    fn has_room(&self, key: &Key, max: impl Fn(&str) -> Option<u32>) -> bool {
        let profile = self.all.get(key).and_then(|seen| seen.profile.as_deref());
        let places = |name| self.places.get(name).copied().unwrap_or_default();
        profile.is_none_or(|name| max(name).is_none_or(|max| places(name) < max))
    }

    /// What is to be told of each profile that pods name; nothing while not all pods are known.
    pub(crate) fn told(&self) -> Option<BTreeMap<&str, Status>> {
        if !self.is_complete {
            return None;
        }
        let mut told: BTreeMap<&str, Status> = BTreeMap::new();
        for seen in self.all.values() {
            let Some(profile) = seen.profile.as_deref() else { continue };
            let status = told.entry(profile).or_default();
            status.pods += 1;
            status.on_virtual_nodes += u32::from(seen.is_there);
            status.waiting += u32::from(!seen.has_place && matches!(seen.due, Due::Place(_)));
            for other in &seen.passed_over {
                let by = &mut told.entry(other).or_default().passed_over;
                match by.iter_mut().find(|one| one.by == profile) {
                    Some(one) => one.pods += 1,
                    None => by.push(PassedOver {
                        by: profile.to_owned(),
                        pods: 1,
                    }),
                }
            }
        }
        for status in told.values_mut() {
            status.passed_over.sort_by(|a, b| a.by.cmp(&b.by));
        }
        Some(told)
    }
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
