//! What becomes of a pod that is created: what is added to it, or why it is left alone. Pure.
//!
//! The pod's own values win: nothing that it says is changed, and where it chose other nodes it is left alone.

use serde_json::{Value, json};

use crate::policy::{self, Labels, NODE_LABEL, POLICY, PROVIDER, Policy, TAINT};

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

/// Decides about a pod (JSON) that is created in a namespace with these labels.
pub fn decide(pod: &Value, namespace: &Labels, unfit: Unfit) -> Decision {
    let labels = labels(pod);
    if !policy::is_asked(&labels, namespace) || !set(&pod["spec"]["nodeName"]).is_null() {
        return Decision::default();
    }
    if let Some(why) = cannot_go(pod, unfit) {
        return left_alone(&why);
    }
    match policy::policy(&labels, namespace) {
        Ok(policy) => Decision {
            patch: patch(pod, &labels, policy),
            warnings: Vec::new(),
        },
        Err(error) => left_alone(&error.to_string()),
    }
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

fn left_alone(why: &str) -> Decision {
    Decision {
        patch: Vec::new(),
        warnings: vec![format!("kvmlet: this pod is left to ordinary nodes: {why}")],
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
fn has_own_affinity(spec: &Value) -> bool {
    let terms = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
    let expressions = terms
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|term| term["matchExpressions"].as_array());
    expressions.flatten().any(|expression| expression["key"] == NODE_LABEL.0)
}

fn patch(pod: &Value, labels: &Labels, policy: Policy) -> Vec<Value> {
    let spec = &pod["spec"];
    let own = &spec["nodeSelector"][NODE_LABEL.0];
    let toleration = toleration(spec);
    if toleration == Toleration::Others || (!own.is_null() && own != NODE_LABEL.1) {
        return Vec::new();
    }
    // A pod that asks for virtual nodes itself need not wait for ordinary ones to be full.
    let policy = if own.is_null() { policy } else { Policy::VirtualNodeOnly };
    let mut patch = Vec::new();
    if toleration == Toleration::None && policy != Policy::NormalNodePrefer {
        patch.push(tolerate(spec));
    }
    if policy == Policy::VirtualNodeOnly {
        if own.is_null() && !has_own_affinity(spec) {
            patch.push(put(&spec["nodeSelector"], "/spec/nodeSelector", NODE_LABEL.0, NODE_LABEL.1.into()));
        }
        return patch;
    }
    if policy == Policy::Fair && spec["topologySpreadConstraints"].as_array().is_none_or(Vec::is_empty) && !labels.is_empty() {
        patch.push(json!({"op": "add", "path": "/spec/topologySpreadConstraints", "value": [spread(labels)]}));
    }
    if !labels.contains_key(POLICY) {
        patch.push(put(
            &pod["metadata"]["labels"],
            "/metadata/labels",
            POLICY,
            policy.to_string().into(),
        ));
    }
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

/// Pods like this one are spread over hosts, as evenly as can be had without any of them waiting. Pods of one ReplicaSet are alike by its hash.
fn spread(labels: &Labels) -> Value {
    let hash = labels.get_key_value("pod-template-hash");
    let alike: Labels = match hash {
        Some((key, value)) => [(key.clone(), value.clone())].into(),
        None => labels.clone(),
    };
    json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": alike}})
}

/// Sets a key of a map that may not be there.
fn put(map: &Value, path: &str, key: &str, value: Value) -> Value {
    if map.is_object() {
        let key = key.replace('~', "~0").replace('/', "~1");
        json!({"op": "add", "path": format!("{path}/{key}"), "value": value})
    } else {
        json!({"op": "add", "path": path, "value": {key: value}})
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
