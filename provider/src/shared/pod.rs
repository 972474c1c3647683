//! The reservation pod: what it is made of. Pure.

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::{
    config::{Config, SharedHost},
    desired::Amounts,
};

/// The annotation that says whose reservation a pod is.
const RESERVED_FOR: &str = "kvmlet.io/reserved-for";
/// The class of its priority, which `manifests/shared` has.
const CLASS: &str = "kvmlet-reservation";
/// Its one container.
pub(super) const CONTAINER: &str = "reservation";
/// Taints of these keys are states of a Node that pass: while they are there nothing is to be placed.
const PASSING: [&str; 2] = ["node.kubernetes.io/", "node.cloudprovider.kubernetes.io/"];

/// Whether a pod of that name is the reservation of this node.
pub(super) fn is_ours(pod: &Pod, config: &Config) -> bool {
    pod.annotations().get(RESERVED_FOR) == Some(&config.node_name)
}

/// The reservation pod of our Node, whose UID is `owner`, on the kubelet's Node. It is in nobody's way: no other pod goes for it, it asks for no token
/// and no right, and uses next to nothing of what it requests. Requests are limits, so that a kubelet that is short of memory ends it last.
pub(super) fn pod(config: &Config, shared: &SharedHost, owner: &str, other: &Node) -> Pod {
    let amounts = shared.reservation.amounts().to_api();
    // What kubectl drain gives it, and for so long machines may leave.
    let patience = config.drain_timeout().as_secs();
    let taints = other.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    // A kubelet that is away ends no machine.
    let mut tolerations = vec![json!({"operator": "Exists", "effect": "NoExecute"})];
    tolerations.extend(taints.iter().filter(|taint| !passes(taint)).map(toleration));
    let pod = json!({
        "metadata": {
            "name": config.reservation_name(),
            "namespace": shared.namespace,
            // No policy of ours sends it to a virtual node.
            "labels": {"app.kubernetes.io/name": "kvmlet-reservation", "kvmlet.io/inject": "false"},
            "annotations": {
                RESERVED_FOR: config.node_name,
                // An autoscaler that finds nothing else there shall not take the host away from machines.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            },
            // With a controller kubectl drain takes it as one that comes again.
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": config.node_name, "uid": owner, "controller": true}],
        },
        "spec": {
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [shared.node_name]}]}]}}},
            "tolerations": tolerations,
            "priorityClassName": CLASS,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": patience,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65535, "runAsGroup": 65535, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": CONTAINER,
                "image": shared.image,
                "imagePullPolicy": "IfNotPresent",
                "resources": {"requests": amounts, "limits": amounts},
                "lifecycle": {"preStop": {"sleep": {"seconds": patience}}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    });
    serde_json::from_value(pod).expect("this is a pod")
}

fn passes(taint: &Taint) -> bool {
    PASSING.iter().any(|prefix| taint.key.starts_with(prefix)) || taint.effect == "NoExecute"
}

fn toleration(taint: &Taint) -> Value {
    json!({"key": taint.key, "operator": "Equal", "value": taint.value.clone().unwrap_or_default(), "effect": taint.effect})
}

/// The patch that resizes the reservation pod in place (KEP-1287); its part of the disk cannot be resized.
pub(super) fn resize(wanted: Amounts) -> Value {
    let amounts = Amounts {
        storage: crate::quantity::Quantity::default(),
        ..wanted
    }
    .to_api();
    json!({"spec": {"containers": [{"name": CONTAINER, "resources": {"requests": amounts, "limits": amounts}}]}})
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config() -> Config {
        let text = "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletConfiguration\nnodeName: v\nnodeIP: 10.0.0.1\nkubeconfig: /k\nport: 10260\n\
            logDir: /l\ntls: {certFile: /c, keyFile: /y, clientCAFile: /a}\ndrainTimeoutSeconds: 90\nshared:\n  nodeName: worker\n  \
            kubeconfig: /s\n  reservation: {cpu: 1500m, memory: 4Gi, ephemeralStorage: 20Gi}\n";
        Config::parse(Path::new("c"), text).unwrap()
    }

    #[test]
    fn it_requests_what_the_node_offers_on_the_kubelets_node_and_ends_slowly() {
        let config = config();
        let shared = config.shared.clone().unwrap();
        let other = json!({"spec": {"taints": [
            {"key": "team", "value": "a", "effect": "NoSchedule"}, {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}, {"key": "x", "effect": "NoExecute"}]}});
        let made = pod(&config, &shared, "u", &serde_json::from_value(other).unwrap());
        assert!(is_ours(&made, &config));
        let value = serde_json::to_value(&made).unwrap();
        let amounts = json!({"cpu": "1500m", "memory": "4Gi", "ephemeral-storage": "20Gi"});
        let container = &value["spec"]["containers"][0];
        assert_eq!(container["resources"], json!({"requests": amounts, "limits": amounts}));
        assert_eq!(
            (
                &container["lifecycle"]["preStop"]["sleep"]["seconds"],
                &value["spec"]["terminationGracePeriodSeconds"]
            ),
            (&json!(90), &json!(90))
        );
        let keys: Vec<_> = value["spec"]["tolerations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["key"])
            .collect();
        assert_eq!(
            keys,
            [&Value::Null, &json!("team"), &json!("node-role.kubernetes.io/control-plane")]
        );
        assert_eq!(value["metadata"]["ownerReferences"][0]["uid"], "u");
        assert!(!is_ours(&Pod::default(), &config));
    }

    #[test]
    fn it_is_resized_without_its_part_of_the_disk() {
        let patch = resize(config().shared.unwrap().reservation.amounts());
        let amounts = json!({"cpu": "1500m", "memory": "4Gi"});
        assert_eq!(
            patch["spec"]["containers"][0]["resources"],
            json!({"requests": amounts, "limits": amounts})
        );
    }
}
