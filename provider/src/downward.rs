//! The downward API: what a pod may know of itself, as the kubelet's pkg/fieldpath and pkg/api/v1/resource. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceFieldSelector};

use crate::{
    desired::{Amounts, DesiredContainer, DesiredPod},
    quantity::Quantity,
};

/// What the object itself does not say.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// What the node gives to pods: the limit of a container that has none.
    pub allocatable: Amounts,
}

/// The value of a `fieldRef`, or the sentence that says why there is none.
pub fn field(pod: &Pod, facts: &Facts, path: &str) -> Result<String, String> {
    let meta = &pod.metadata;
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => map(meta.labels.as_ref()),
        "metadata.annotations" => map(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => {
            for (prefix, values) in [("metadata.labels['", &meta.labels), ("metadata.annotations['", &meta.annotations)] {
                if let Some(key) = path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']")) {
                    return Ok(values.as_ref().and_then(|v| v.get(key)).cloned().unwrap_or_default());
                }
            }
            return Err(format!("unsupported fieldPath: {path}"));
        }
    })
}

/// The value of a `resourceFieldRef`; `own` is the container it stands in.
pub fn resource(pod: &DesiredPod, own: &DesiredContainer, facts: &Facts, selector: &ResourceFieldSelector) -> Result<String, String> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => pod
            .containers
            .iter()
            .find(|c| c.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
        None => own,
    };
    let or_all = |limit: Quantity, all: Quantity| if limit == Quantity::default() { all } else { limit };
    let (limits, requests, all) = (container.limits, container.requests, pod.pod_limits.or(facts.allocatable));
    let divisor = selector.divisor.as_ref().map(Quantity::of).filter(|d| *d != Quantity::default());
    let amount = match selector.resource.as_str() {
        "limits.cpu" => or_all(limits.cpu, all.cpu),
        "limits.memory" => or_all(limits.memory, all.memory),
        "limits.ephemeral-storage" => or_all(limits.storage, all.storage),
        "requests.cpu" => requests.cpu,
        "requests.memory" => requests.memory,
        "requests.ephemeral-storage" => requests.storage,
        other => return Err(format!("unsupported container resource : {other}")),
    };
    let divisor = divisor.unwrap_or(Quantity::bytes(1)).milli_value().max(1);
    Ok(amount.milli_value().div_ceil(divisor).to_string())
}

/// As pkg/fieldpath FormatMap: `key="value"` lines, sorted, quoted as Go does.
fn map(values: Option<&BTreeMap<String, String>>) -> String {
    values
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod() -> DesiredPod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": "one \"1\""}, "annotations": {"k": "v"}},
            "spec": {"serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "100m"}}}, {"name": "d"}]}
        }))
        .unwrap();
        DesiredPod::read(Arc::new(pod)).0
    }

    #[test]
    fn fields_of_the_pod_are_found() {
        let desired = pod();
        let facts = Facts {
            node_name: "node".into(),
            host_ips: vec!["1.1.1.1".into()],
            pod_ips: vec!["2.2.2.2".into(), "::2".into()],
            ..Facts::default()
        };
        for (path, value) in [
            ("metadata.name", "p"),
            ("metadata.uid", "u"),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['none']", ""),
            ("metadata.labels", "a=\"one \\\"1\\\"\"\nb=\"2\""),
            ("spec.nodeName", "node"),
            ("status.podIP", "2.2.2.2"),
            ("status.podIPs", "2.2.2.2,::2"),
            ("status.hostIP", "1.1.1.1"),
        ] {
            assert_eq!(field(&desired.pod, &facts, path).as_deref(), Ok(value), "{path}");
        }
        assert!(field(&desired.pod, &facts, "spec.everything").is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let desired = pod();
        let facts = Facts {
            allocatable: Amounts {
                cpu: Quantity::millis(4000),
                ..Amounts::default()
            },
            ..Facts::default()
        };
        let ask = |name: &str, container: Option<&str>, divisor: Option<&str>| {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": name, "containerName": container, "divisor": divisor})).unwrap();
            resource(&desired, &desired.containers[0], &facts, &selector)
        };
        assert_eq!(ask("limits.cpu", None, None).as_deref(), Ok("2"));
        assert_eq!(ask("limits.cpu", None, Some("1m")).as_deref(), Ok("1500"));
        assert_eq!(ask("limits.memory", None, Some("1Mi")).as_deref(), Ok("64"));
        assert_eq!(ask("limits.cpu", Some("d"), None).as_deref(), Ok("4"));
        assert!(ask("limits.cpu", Some("x"), None).is_err());
        // A limit of the whole pod comes before all of the node.
        let mut whole = desired.clone();
        whole.pod_limits.cpu = Quantity::millis(3000);
        let selector: ResourceFieldSelector = serde_json::from_value(json!({"resource": "limits.cpu", "containerName": "d"})).unwrap();
        assert_eq!(resource(&whole, &whole.containers[0], &facts, &selector).as_deref(), Ok("3"));
    }
}
