//! What becomes of a pod that is created: what is added to it, or why it is left alone. Pure.
//!
//! The pod's own values win: nothing that it says is changed, and where it chose other nodes it is left alone.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    policy::{self, Labels, NODE_LABEL, PASSED_OVER, POLICY, PROFILE, PROVIDER, Policy, TAINT},
    profile::{Chosen, Profiles},
};

/// Says for a pod's `spec` (JSON) why it cannot run on a virtual node, a line each; none when it can.
pub type Unfit = fn(&Value) -> Vec<String>;

/// What is decided of a pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// Operations of a JSON patch (RFC 6902); none leaves the pod as it is.
    pub patch: Vec<Value>,
    /// What its owner is told; kubectl prints them.
    pub warnings: Vec<String>,
}

/// Decides about a pod (JSON) that is created in the namespace `name` with these labels.
pub fn decide(pod: &Value, (name, namespace): (&str, &Labels), profiles: &Profiles, unfit: Unfit) -> Decision {
    let labels = labels(pod);
    let kept = policy::is_kept(&labels, namespace);
    let chosen = if kept { None } else { profiles.choose(name, namespace, &labels) };
    if !set(&pod["spec"]["nodeName"]).is_null() || (chosen.is_none() && !policy::is_asked(&labels, namespace)) {
        return left_alone(pod, None);
    }
    if let Some(why) = cannot_go(pod, unfit) {
        return left_alone(pod, Some(&why));
    }
    let effect = chosen.as_ref().map(|chosen| &chosen.profile.effect);
    let policy = match policy::policy(&labels, namespace, effect.and_then(|effect| effect.policy)) {
        Ok(policy) => policy,
        Err(error) => return left_alone(pod, Some(&error.to_string())),
    };
    if chose_others(&pod["spec"]) {
        return left_alone(pod, None);
    }
    let patch = patch(pod, &labels, policy, chosen.as_ref());
    Decision {
        patch: [patch, stale(pod, chosen.as_ref())].concat(),
        warnings: Vec::new(),
    }
}

/// What an earlier decision left on the pod that this one was made from, and that is not true of this one.
fn stale(pod: &Value, chosen: Option<&Chosen<'_>>) -> Vec<Value> {
    let is_passed_over = chosen.is_some_and(|chosen| !chosen.passed_over.is_empty());
    let marks = [("labels", PROFILE, chosen.is_some()), ("annotations", PASSED_OVER, is_passed_over)];
    let untrue = marks
        .into_iter()
        .filter(|(map, key, stays)| !stays && !pod["metadata"][map][key].is_null());
    untrue
        .map(|(map, key, _)| json!({"op": "remove", "path": format!("/metadata/{map}/{}", escaped(key))}))
        .collect()
}

/// The same as a missing value where it is an empty text.
fn set(value: &Value) -> &Value {
    if value == "" { &Value::Null } else { value }
}

pub(crate) fn labels(object: &Value) -> Labels {
    let fields = object["metadata"]["labels"].as_object().into_iter().flatten();
    fields
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn left_alone(pod: &Value, why: Option<&str>) -> Decision {
    let warning = |why| format!("kvmlet: this pod is left to ordinary nodes: {why}");
    Decision {
        patch: stale(pod, None),
        warnings: why.map(warning).into_iter().collect(),
    }
}

fn cannot_go(pod: &Value, unfit: Unfit) -> Option<String> {
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    if owners
        .into_iter()
        .any(|owner| owner["kind"] == "DaemonSet" && owner["controller"] == true)
    {
        return Some("it is a DaemonSet's, which chooses its node".into());
    }
    let reasons = unfit(&pod["spec"]);
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// What a pod says of the taint itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toleration {
    None,
    /// It may go to kvmlet's nodes.
    Ours,
    /// It chose another provider's.
    Others,
}

/// As the scheduler reads tolerations (`Toleration.ToleratesTaint`).
pub(crate) fn toleration(spec: &Value) -> Toleration {
    let all = spec["tolerations"].as_array().into_iter().flatten();
    let found: Vec<Toleration> = all
        .filter(|one| matches!(one["effect"].as_str().unwrap_or_default(), "" | "NoSchedule"))
        .filter_map(|one| {
            let exists = one["operator"] == "Exists";
            match one["key"].as_str().unwrap_or_default() {
                "" if exists => Some(Toleration::Ours),
                TAINT if exists || one["value"] == PROVIDER => Some(Toleration::Ours),
                TAINT => Some(Toleration::Others),
                _ => None,
            }
        })
        .collect();
    let first = found.first().copied().unwrap_or(Toleration::None);
    if found.contains(&Toleration::Ours) {
        Toleration::Ours
    } else {
        first
    }
}

/// Whether the pod itself says by required affinity which values of the nodes' label it takes.
pub(crate) fn has_own_affinity(spec: &Value) -> bool {
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let expressions = terms
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|term| term["matchExpressions"].as_array());
    expressions.flatten().any(|expression| expression["key"] == NODE_LABEL.0)
}

/// Whether the pod itself says that it goes to other nodes.
fn chose_others(spec: &Value) -> bool {
    let own = &spec["nodeSelector"][NODE_LABEL.0];
    toleration(spec) == Toleration::Others || (!own.is_null() && own != NODE_LABEL.1)
}

fn patch(pod: &Value, labels: &Labels, policy: Policy, chosen: Option<&Chosen<'_>>) -> Vec<Value> {
    let spec = &pod["spec"];
    let own = &spec["nodeSelector"][NODE_LABEL.0];
    let effect = chosen.map(|chosen| &chosen.profile.effect);
    // Its places are given by the replica that leads, to pods that have no toleration yet; that one counts.
    let is_bounded = effect.is_some_and(|effect| effect.max.is_some());
    let policy = match policy {
        // A pod that asks for virtual nodes itself need not wait for ordinary ones to be full.
        _ if !own.is_null() => Policy::VirtualNodeOnly,
        // Without a toleration it can but prefer ordinary nodes.
        Policy::Fair if is_bounded => Policy::NormalNodePrefer,
        policy => policy,
    };
    let mut patch = Vec::new();
    if toleration(spec) == Toleration::None && policy != Policy::NormalNodePrefer && !is_bounded {
        patch.push(tolerate(spec));
    }
    if policy == Policy::VirtualNodeOnly && own.is_null() && !has_own_affinity(spec) {
        let selector = BTreeMap::from([(NODE_LABEL.0, NODE_LABEL.1)]);
        patch.extend(put(&spec["nodeSelector"], "/spec/nodeSelector", &selector));
    }
    if policy == Policy::Fair
        && spec["topologySpreadConstraints"].as_array().is_none_or(Vec::is_empty)
        && let Some(spread) = spread(labels)
    {
        patch.push(json!({"op": "add", "path": "/spec/topologySpreadConstraints", "value": [spread]}));
    }
    if let Some(class) = effect.and_then(|effect| effect.runtime_class_name.as_ref())
        && set(&spec["runtimeClassName"]).is_null()
    {
        patch.push(json!({"op": "add", "path": "/spec/runtimeClassName", "value": class}));
    }
    let (policy, others) = (policy.to_string(), chosen.map(|chosen| chosen.passed_over.join(",")));
    let (mut new_labels, mut annotations) = (BTreeMap::new(), BTreeMap::new());
    if let Some(effect) = effect {
        new_labels.extend(missing(&effect.labels, &pod["metadata"]["labels"]));
        annotations.extend(missing(&effect.annotations, &pod["metadata"]["annotations"]));
    }
    if (policy != Policy::VirtualNodeOnly.to_string() || chosen.is_some()) && !labels.contains_key(POLICY) {
        new_labels.insert(POLICY, &policy);
    }
    if let Some(chosen) = chosen {
        new_labels.insert(PROFILE, &chosen.profile.name);
    }
    if let Some(others) = others.as_deref().filter(|others| !others.is_empty()) {
        annotations.insert(PASSED_OVER, others);
    }
    patch.extend(put(&pod["metadata"]["labels"], "/metadata/labels", &new_labels));
    patch.extend(put(&pod["metadata"]["annotations"], "/metadata/annotations", &annotations));
    patch
}

/// Adds the toleration; also what is done later to a pod that found no room, as an addition is the one change that the API allows there.
pub(crate) fn tolerate(spec: &Value) -> Value {
    let toleration = json!({"key": TAINT, "operator": "Exists", "effect": "NoSchedule"});
    if spec["tolerations"].is_array() {
        json!({"op": "add", "path": "/spec/tolerations/-", "value": toleration})
    } else {
        json!({"op": "add", "path": "/spec/tolerations", "value": [toleration]})
    }
}

/// Labels that pods of one controller do not share: those that StatefulSets and Indexed Jobs give.
const OWN: [&str; 3] = [
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
];

/// The labels by which others are pods like this one. Pods of one ReplicaSet are alike by its hash.
fn alike(labels: &Labels) -> Labels {
    let all = labels.clone().into_iter();
    match labels.get("pod-template-hash") {
        Some(_) => all.filter(|(key, _)| key == "pod-template-hash").collect(),
        None => all.filter(|(key, _)| !OWN.contains(&key.as_str())).collect(),
    }
}

/// Pods like this one are spread over hosts, as evenly as can be had without any of them waiting; nothing if it has no label that others have.
fn spread(labels: &Labels) -> Option<Value> {
    let alike = alike(labels);
    let constraint = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": alike}});
    (!alike.is_empty()).then_some(constraint)
}

/// Those of `wanted` that a map (JSON) does not have.
fn missing<'a>(wanted: &'a Labels, map: &'a Value) -> impl Iterator<Item = (&'a str, &'a str)> {
    let all = wanted.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    all.filter(|(key, _)| map[*key].is_null())
}

/// Sets keys of a map that may not be there.
fn put(map: &Value, path: &str, wanted: &BTreeMap<&str, &str>) -> Vec<Value> {
    if wanted.is_empty() {
        return Vec::new();
    }
    if !map.is_object() {
        return vec![json!({"op": "add", "path": path, "value": wanted})];
    }
    let one = |(key, value): (&&str, &&str)| json!({"op": "add", "path": format!("{path}/{}", escaped(key)), "value": value});
    wanted.iter().map(one).collect()
}

/// A key as part of a JSON pointer (RFC 6901).
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
