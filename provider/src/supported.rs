//! Which fields of a pod work here. Whatever a pod sets beyond this table is refused with the field's path, never ignored; values
//! that the API server fills in by default are in the table.

use serde_json::Value;

/// A field of the pod that is not built yet, or cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// As `spec.containers[0].livenessProbe`.
    pub path: String,
    /// Why, when there is more to say than that it is not built yet.
    pub why: Option<&'static str>,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)?;
        self.why.map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// What is accepted at a path (indices left out).
enum Rule {
    /// Anything in it.
    Any,
    /// Only this word.
    Only(&'static str),
    /// Nothing, with a reason.
    Refused(&'static str),
    /// Only one of these words, for a reason.
    OneOf(&'static [&'static str], &'static str),
}

use Rule::{Any, OneOf, Only, Refused};

const NO_APPARMOR: &str = "the pod's own kernel has no AppArmor; only Unconfined can be had";
const NO_PROPAGATION: &str = "a pod's mounts are its own kernel's, and no other sees them; only None can be had";
const UNKNOWN: &str = "this node does not know it";
const NO_BUNDLES: &str = "as under a kubelet whose gate ClusterTrustBundleProjection is off, its default";
const NO_HOST: &str = "the pod has a kernel of its own, there is no host to share";

const NO_RUNTIME: &str = "each pod here is a machine; the classes kvmlet and kvmlet-no-overhead say so";

/// Paths below `spec`, most of them prefixes of what follows them.
const POD: &[(&str, Rule)] = &[
    ("activeDeadlineSeconds", Any),
    ("affinity", Any),
    ("automountServiceAccountToken", Any),
    ("dnsConfig", Any),
    ("dnsPolicy", Any),
    ("enableServiceLinks", Any),
    ("hostAliases", Any),
    ("hostIPC", Refused(NO_HOST)),
    ("hostNetwork", Refused(NO_HOST)),
    ("hostPID", Refused(NO_HOST)),
    // Users of the pod are its own kernel's, and never the host's, whichever is asked for.
    ("hostUsers", Any),
    ("hostname", Any),
    ("hostnameOverride", Any),
    ("imagePullSecrets", Any),
    ("nodeName", Any),
    ("nodeSelector", Any),
    ("os.name", Any),
    ("overhead", Any),
    ("preemptionPolicy", Any),
    ("priority", Any),
    ("priorityClassName", Any),
    ("readinessGates", Any),
    ("resources.limits.cpu", Any),
    ("resources.limits.memory", Any),
    ("resources.requests.cpu", Any),
    ("resources.requests.memory", Any),
    ("restartPolicy", Any),
    ("runtimeClassName", OneOf(&["kvmlet", "kvmlet-no-overhead"], NO_RUNTIME)),
    ("schedulerName", Any),
    // A pod that has come to a node has none left; one that is created with some goes where others go.
    ("schedulingGates", Any),
    ("securityContext.appArmorProfile.type", OneOf(&["Unconfined"], NO_APPARMOR)),
    ("securityContext.fsGroup", Any),
    ("securityContext.fsGroupChangePolicy", Any),
    ("securityContext.runAsGroup", Any),
    ("securityContext.runAsNonRoot", Any),
    ("securityContext.runAsUser", Any),
    ("securityContext.seccompProfile", Any),
    // Without SELinux in a kernel its options say nothing, as on any other node.
    ("securityContext.seLinuxOptions", Any),
    ("securityContext.supplementalGroups", Any),
    ("securityContext.supplementalGroupsPolicy", Any),
    ("securityContext.sysctls", Any),
    ("serviceAccount", Any),
    ("serviceAccountName", Any),
    ("setHostnameAsFQDN", Any),
    ("shareProcessNamespace", Any),
    ("subdomain", Any),
    ("terminationGracePeriodSeconds", Any),
    ("tolerations", Any),
    ("topologySpreadConstraints", Any),
    ("volumes.configMap", Any),
    ("volumes.downwardAPI", Any),
    ("volumes.emptyDir.medium", Only("Memory")),
    ("volumes.emptyDir.sizeLimit", Any),
    ("volumes.hostPath.path", Any),
    ("volumes.hostPath.type", Any),
    ("volumes.image.pullPolicy", Any),
    ("volumes.image.reference", Any),
    ("volumes.name", Any),
    ("volumes.projected.defaultMode", Any),
    ("volumes.projected.sources.clusterTrustBundle", Refused(NO_BUNDLES)),
    ("volumes.projected.sources.configMap", Any),
    ("volumes.projected.sources.downwardAPI", Any),
    ("volumes.projected.sources.secret", Any),
    ("volumes.projected.sources.serviceAccountToken", Any),
    ("volumes.secret", Any),
];

/// Paths below a container.
const CONTAINER: &[(&str, Rule)] = &[
    ("args", Any),
    ("command", Any),
    ("env.name", Any),
    ("env.value", Any),
    ("env.valueFrom.configMapKeyRef", Any),
    ("env.valueFrom.fieldRef", Any),
    ("env.valueFrom.fileKeyRef", Any),
    ("env.valueFrom.resourceFieldRef", Any),
    ("env.valueFrom.secretKeyRef", Any),
    ("envFrom", Any),
    ("image", Any),
    ("imagePullPolicy", Any),
    ("lifecycle", Any),
    ("livenessProbe", Any),
    ("name", Any),
    ("ports", Any),
    ("readinessProbe", Any),
    ("resizePolicy", Any),
    ("resources.limits.cpu", Any),
    ("resources.limits.ephemeral-storage", Any),
    ("resources.limits.memory", Any),
    ("resources.requests.cpu", Any),
    ("resources.requests.ephemeral-storage", Any),
    ("resources.requests.memory", Any),
    ("restartPolicy", Any),
    ("restartPolicyRules.action", OneOf(&["Restart", "RestartAllContainers"], UNKNOWN)),
    ("restartPolicyRules.exitCodes", Any),
    ("securityContext.allowPrivilegeEscalation", Any),
    ("securityContext.appArmorProfile.type", OneOf(&["Unconfined"], NO_APPARMOR)),
    ("securityContext.capabilities", Any),
    ("securityContext.privileged", Any),
    ("securityContext.procMount", Any),
    ("securityContext.readOnlyRootFilesystem", Any),
    ("securityContext.runAsGroup", Any),
    ("securityContext.runAsNonRoot", Any),
    ("securityContext.runAsUser", Any),
    ("securityContext.seccompProfile", Any),
    ("securityContext.seLinuxOptions", Any),
    ("startupProbe", Any),
    ("stdin", Any),
    ("stdinOnce", Any),
    ("terminationMessagePath", Any),
    ("terminationMessagePolicy", Any),
    ("tty", Any),
    ("volumeMounts.mountPath", Any),
    ("volumeMounts.mountPropagation", OneOf(&["None"], NO_PROPAGATION)),
    ("volumeMounts.name", Any),
    ("volumeMounts.readOnly", Any),
    ("volumeMounts.recursiveReadOnly", Any),
    ("volumeMounts.subPath", Any),
    ("volumeMounts.subPathExpr", Any),
    ("workingDir", Any),
];

/// The fields of `spec` (as JSON) that do not work here, in the order of their paths; empty when the pod can run.
pub fn unsupported(spec: &Value) -> Vec<Unsupported> {
    let mut found = Vec::new();
    let Value::Object(fields) = spec else { return found };
    for (key, value) in fields {
        let path = format!("spec.{key}");
        match key.as_str() {
            "containers" | "initContainers" => {
                for (i, container) in value.as_array().into_iter().flatten().enumerate() {
                    walk(container, "", &format!("{path}[{i}]"), CONTAINER, &mut found);
                }
            }
            // They come by a subresource after admission: each is looked at by itself, and the pod goes on without it.
            "ephemeralContainers" => {}
            "volumes" => {
                walk(value, key, &path, POD, &mut found);
                let volumes = value.as_array().into_iter().flatten().enumerate();
                found.extend(volumes.filter_map(not_a_file));
            }
            _ => walk(value, key, &path, POD, &mut found),
        }
    }
    found
}

/// The fields of one container (as JSON) that do not work here; `path` is where it is.
pub fn container(container: &Value, path: &str) -> Vec<Unsupported> {
    let mut found = Vec::new();
    walk(container, "", path, CONTAINER, &mut found);
    found
}

/// What is the host's kernel's own, and no file of another's.
fn not_a_file((i, volume): (usize, &Value)) -> Option<Unsupported> {
    let kind = volume["hostPath"]["type"].as_str()?;
    (!matches!(kind, "" | "DirectoryOrCreate" | "Directory" | "FileOrCreate" | "File")).then(|| Unsupported {
        path: format!("spec.volumes[{i}].hostPath.type"),
        why: Some("only directories and files of the host can be shared with a pod that has a kernel of its own"),
    })
}

/// Looks at one value: `key` is its path in the table, `path` the one for people.
fn walk(value: &Value, key: &str, path: &str, table: &[(&str, Rule)], found: &mut Vec<Unsupported>) {
    if is_unset(value) {
        return;
    }
    match table.iter().find(|(name, _)| *name == key) {
        Some((_, Any)) => return,
        Some((_, Only(word))) if value == word => return,
        Some((_, OneOf(words, _))) if words.iter().any(|word| value == word) => return,
        Some((_, Only(_))) => {
            return found.push(Unsupported {
                path: path.into(),
                why: None,
            });
        }
        Some((_, Refused(why) | OneOf(_, why))) => {
            return found.push(Unsupported {
                path: path.into(),
                why: Some(why),
            });
        }
        None => {}
    }
    let inner = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let leads_on = key.is_empty()
        || table
            .iter()
            .any(|(name, _)| name.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
    match value {
        Value::Object(fields) if leads_on => {
            for (name, value) in fields {
                walk(value, &inner(name), &format!("{path}.{name}"), table, found);
            }
        }
        Value::Array(items) if leads_on => {
            for (i, item) in items.iter().enumerate() {
                walk(item, key, &format!("{path}[{i}]"), table, found);
            }
        }
        _ => found.push(Unsupported {
            path: path.into(),
            why: None,
        }),
    }
}

/// Null, false for a switch, an empty list or object: nothing asked for.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn paths(spec: &Value) -> Vec<String> {
        unsupported(spec).into_iter().map(|u| u.path).collect()
    }

    #[test]
    fn a_pod_with_only_defaults_is_accepted() {
        let spec = json!({
            "containers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "resources": {}, "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "volumeMounts": [{"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "t", "readOnly": true}]}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "nodeName": "n", "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
            "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "default",
            "serviceAccountName": "default", "terminationGracePeriodSeconds": 30, "tolerations": [{"operator": "Exists"}],
            "volumes": [{"name": "t", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}}, {"downwardAPI": {"items": []}}]}}, {"name": "e", "emptyDir": {}}]
        });
        assert_eq!(paths(&spec), Vec::<String>::new());
    }

    #[test]
    fn what_holds_a_pod_back_from_the_scheduler_does_not_keep_it_from_here() {
        assert_eq!(
            paths(&json!({"schedulingGates": [{"name": "example.com/queue"}]})),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_unsupported_field_is_named_by_its_path() {
        for (spec, path) in [
            (
                json!({"containers": [{"restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers"}, {"action": "Other"}]}]}),
                "spec.containers[0].restartPolicyRules[1].action",
            ),
            (
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/", "type": "File"}}, {"name": "w", "hostPath": {"path": "/", "type": "Socket"}}]}),
                "spec.volumes[1].hostPath.type",
            ),
            (
                json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}),
                "spec.volumes[0].persistentVolumeClaim",
            ),
            (
                json!({"volumes": [{"projected": {"sources": [{"clusterTrustBundle": {"path": "p"}}]}}]}),
                "spec.volumes[0].projected.sources[0].clusterTrustBundle",
            ),
            (
                json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}, {"name": "m", "emptyDir": {"medium": "Memory"}}]}),
                "spec.volumes[0].emptyDir.medium",
            ),
            (
                json!({"containers": [{"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "None"},
                    {"name": "w", "mountPath": "/w", "mountPropagation": "Bidirectional"}]}]}),
                "spec.containers[0].volumeMounts[1].mountPropagation",
            ),
            (json!({"hostNetwork": true}), "spec.hostNetwork"),
            (
                json!({"containers": [{"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}]}),
                "spec.containers[0].securityContext.appArmorProfile.type",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}),
                "spec.containers[0].resources.limits.nvidia.com/gpu",
            ),
            (
                json!({"resources": {"limits": {"cpu": "1", "hugepages-2Mi": "2Mi"}}}),
                "spec.resources.limits.hugepages-2Mi",
            ),
            (json!({"runtimeClassName": "gvisor"}), "spec.runtimeClassName"),
            (json!({"somethingNew": {"a": 1}}), "spec.somethingNew"),
        ] {
            assert_eq!(paths(&spec), vec![path.to_owned()], "{spec}");
        }
    }

    #[test]
    fn switches_that_are_off_ask_for_nothing() {
        let spec = json!({"hostNetwork": false, "hostPID": false, "containers": [{"tty": false, "stdin": false}]});
        assert_eq!(paths(&spec), Vec::<String>::new());
    }
}
