//! Which config maps and secrets a pod refers to. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Volume};

use crate::desired::DesiredPod;

/// Kinds of objects that hold entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A config map.
    ConfigMap,
    /// A secret.
    Secret,
}

impl Kind {
    /// As the API server's messages have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }
}

/// One object that a pod refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace: the pod's.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// Of these parts.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// As `secret/keys`, for people and records: one pod's references are all of one namespace.
impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind.word(), self.name)
    }
}

/// Names of one kind, as they are met.
struct Found<'a> {
    namespace: &'a str,
    references: BTreeSet<Reference>,
}

impl Found<'_> {
    fn add(&mut self, kind: Kind, name: &str) {
        // A reference without a name is refused where it is read.
        if !name.is_empty() {
            self.references.insert(Reference::new(kind, self.namespace, name));
        }
    }

    fn container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            if let Some(from) = &source.config_map_ref {
                self.add(Kind::ConfigMap, &from.name);
            }
            if let Some(from) = &source.secret_ref {
                self.add(Kind::Secret, &from.name);
            }
        }
        for from in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
            if let Some(from) = &from.config_map_key_ref {
                self.add(Kind::ConfigMap, &from.name);
            }
            if let Some(from) = &from.secret_key_ref {
                self.add(Kind::Secret, &from.name);
            }
        }
    }

    fn volume(&mut self, volume: &Volume) {
        if let Some(source) = &volume.config_map {
            self.add(Kind::ConfigMap, &source.name);
        }
        if let Some(source) = &volume.secret {
            self.add(Kind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                self.add(Kind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                self.add(Kind::Secret, &source.name);
            }
        }
    }
}

/// All that a pod refers to: for its volumes, its containers' environment, its images.
pub fn of_pod(pod: &DesiredPod) -> BTreeSet<Reference> {
    let mut found = Found {
        namespace: &pod.namespace,
        references: BTreeSet::new(),
    };
    let secrets = pod.pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    secrets.for_each(|secret| found.add(Kind::Secret, &secret.name));
    let containers = pod.containers.iter().chain(&pod.ephemeral);
    containers.for_each(|container| found.container(pod.spec_of(container)));
    pod.volumes().iter().for_each(|volume| found.volume(volume));
    found.references
}

/// What one volume of a pod is made of.
pub fn of_volume(namespace: &str, volume: &Volume) -> BTreeSet<Reference> {
    let mut found = Found {
        namespace,
        references: BTreeSet::new(),
    };
    found.volume(volume);
    found.references
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_object_that_a_pod_names_is_found_once() {
        let pod = json!({"metadata": {"namespace": "n"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "from"}}, {"secretRef": {"name": "hidden"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "keyed", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "k"}}}, {"name": "C", "value": "v"}]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"configMapRef": {"name": "late"}}]}],
            "volumes": [
                {"name": "a", "configMap": {"name": "map"}}, {"name": "b", "secret": {"secretName": "keys"}}, {"name": "e", "emptyDir": {}},
                {"name": "p", "projected": {"sources": [{"configMap": {"name": "map"}}, {"secret": {"name": "other"}},
                    {"serviceAccountToken": {"path": "t"}}, {"downwardAPI": {}}]}}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let names: Vec<String> = of_pod(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "configmap/from",
                "configmap/keyed",
                "configmap/late",
                "configmap/map",
                "secret/hidden",
                "secret/keys",
                "secret/other",
                "secret/pull"
            ]
        );
        assert!(of_pod(&pod).iter().all(|r| r.namespace == "n"));
        let projected: Vec<String> = of_volume("n", &pod.volumes()[3]).iter().map(ToString::to_string).collect();
        assert_eq!(projected, ["configmap/map", "secret/other"]);
    }
}
