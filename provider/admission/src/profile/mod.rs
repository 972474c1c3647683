//! Profiles: which pods go to virtual nodes, and how, said by objects of the cluster rather than labels. `types` is the object as it is
//! written, here it is as reviews need it: in order, its selectors compiled. Pure; `follow` watches them.

#[cfg(test)]
mod crd;
pub mod follow;
pub mod types;

use std::cmp::Reverse;

use kube::core::{Selector, SelectorExt as _};
use tracing::warn;

pub use self::types::{BurstProfile, Effect, PassedOver, Status};
use crate::policy::Labels;

/// A namespace that no profile reaches, whatever it selects.
const SYSTEM: &str = "kube-system";

/// A profile.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What it does to pods.
    pub effect: Effect,
    /// Which of its versions this is.
    pub generation: i64,
    /// What was written into its status last.
    pub status: Option<Status>,
    priority: i32,
    namespaces: Selector,
    pods: Selector,
}

/// What profiles say of a pod that one or more of them select.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    /// The first of them, which decides.
    pub profile: &'a Profile,
    /// The names of the others, in order.
    pub passed_over: Vec<&'a str>,
}

/// All profiles, in the order in which they are asked: a higher priority first, of the same by name.
#[derive(Debug, Clone, Default)]
pub struct Profiles {
    all: Vec<Profile>,
    /// The webhook's own namespace, which no profile reaches either.
    own: String,
}

impl Profiles {
    /// Puts profiles in order; `own` is the webhook's own namespace. One with a selector that means nothing selects nothing: the API server lets
    /// no such profile in.
    pub fn new<'a>(objects: impl IntoIterator<Item = &'a BurstProfile>, own: impl Into<String>) -> Self {
        let mut all: Vec<Profile> = objects.into_iter().filter_map(compile).collect();
        all.sort_by(|a, b| (Reverse(a.priority), &a.name).cmp(&(Reverse(b.priority), &b.name)));
        Self { all, own: own.into() }
    }

    /// What they say of a pod with these labels in a namespace; none where none selects it.
    pub fn choose(&self, name: &str, namespace: &Labels, pod: &Labels) -> Option<Chosen<'_>> {
        if name == SYSTEM || name == self.own {
            return None;
        }
        let mut selecting = self
            .all
            .iter()
            .filter(|one| one.namespaces.matches(namespace) && one.pods.matches(pod));
        let profile = selecting.next()?;
        let passed_over = selecting.map(|one| one.name.as_str()).collect();
        Some(Chosen { profile, passed_over })
    }

    /// Those there are, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Profile> {
        self.all.iter()
    }

    /// How many pods of a profile may be on virtual nodes; none where it says nothing of it, or is gone.
    pub fn max(&self, name: &str) -> Option<u32> {
        self.all.iter().find(|one| one.name == name)?.effect.max
    }
}

fn compile(object: &BurstProfile) -> Option<Profile> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let spec = &object.spec;
    let selectors = (spec.namespace_selector.clone().try_into(), spec.pod_selector.clone().try_into());
    let (Ok(namespaces), Ok(pods)) = selectors else {
        warn!(name, "a selector of this profile means nothing, so it selects no pod");
        return None;
    };
    Some(Profile {
        name,
        effect: spec.effect.clone(),
        generation: object.metadata.generation.unwrap_or_default(),
        status: object.status.clone(),
        priority: spec.priority,
        namespaces,
        pods,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn profile(name: &str, spec: Value) -> BurstProfile {
        let object = json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "BurstProfile", "metadata": {"name": name}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn labels(key: &str, value: &str) -> Labels {
        [(key.to_owned(), value.to_owned())].into()
    }

    fn names(profiles: &Profiles, namespace: &Labels, pod: &Labels) -> Vec<String> {
        let chosen = profiles.choose("n", namespace, pod);
        let names = chosen
            .into_iter()
            .flat_map(|one| [vec![one.profile.name.as_str()], one.passed_over].concat());
        names.map(str::to_owned).collect()
    }

    #[test]
    fn a_higher_priority_decides_and_of_the_same_the_name() {
        let all = ["b", "a", "z", "y"].map(|name| {
            let priority = match name {
                "z" => 5,
                "y" => -1,
                _ => 0,
            };
            profile(name, json!({"priority": priority, "effect": {"policy": "fair"}}))
        });
        assert_eq!(
            names(&Profiles::new(&all, "own"), &Labels::new(), &Labels::new()),
            ["z", "a", "b", "y"]
        );
    }

    #[test]
    fn a_pod_is_selected_by_its_labels_and_its_namespaces() {
        let expressions = json!([{"key": "tier", "operator": "NotIn", "values": ["db"]}, {"key": "team", "operator": "Exists"}]);
        let spec = json!({"namespaceSelector": {"matchLabels": {"env": "ci"}}, "podSelector": {"matchExpressions": expressions}, "effect": {"max": 1}});
        let profiles = Profiles::new(&[profile("p", spec)], "own");
        let (ci, team) = (labels("env", "ci"), labels("team", "a"));
        assert_eq!(names(&profiles, &ci, &team), ["p"]);
        assert!(names(&profiles, &labels("env", "prod"), &team).is_empty());
        assert!(names(&profiles, &ci, &Labels::new()).is_empty());
        let mut database = team;
        database.insert("tier".into(), "db".into());
        assert!(names(&profiles, &ci, &database).is_empty());
    }

    #[test]
    fn a_profile_that_selects_everything_reaches_neither_kube_system_nor_the_webhooks_own_namespace() {
        let profiles = Profiles::new(&[profile("all", json!({"effect": {"policy": "virtualNodeOnly"}}))], "kvmlet-system");
        let none = Labels::new();
        assert!(profiles.choose("default", &none, &none).is_some());
        assert!(profiles.choose("kube-system", &none, &none).is_none());
        assert!(profiles.choose("kvmlet-system", &none, &none).is_none());
    }

    #[test]
    fn only_a_profile_that_is_there_and_says_a_max_bounds_its_pods() {
        let all = [
            profile("some", json!({"effect": {"max": 0}})),
            profile("any", json!({"effect": {"policy": "fair"}})),
        ];
        let profiles = Profiles::new(&all, "own");
        assert_eq!(
            (profiles.max("some"), profiles.max("any"), profiles.max("gone")),
            (Some(0), None, None)
        );
    }
}
