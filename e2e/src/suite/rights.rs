//! Who may see what of the kubelet port.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Test, figures::answered, workload::within};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "the kubelet port refuses each of its pages to a user without its right, in the kubelet's words, and opens no other by it",
    hosts: 1,
    kvmlet: true,
    run: rights,
}];

/// Subresources of a node that have rights of their own, a path that wants it, what is asked for that path, and the answer to who has the right.
const RIGHTS: [(&str, &str, &str, &str); 7] = [
    ("metrics", "/metrics/resource", "metrics", "200"),
    ("stats", "/stats/summary?only_cpu_and_memory=true", "stats", "200"),
    ("log", "/logs/", "log", "200"),
    ("healthz", "/healthz", "healthz proxy", "200"),
    ("configz", "/configz", "configz proxy", "200"),
    ("pods", "/pods", "pods proxy", "200"),
    // Past the guard: there is no such pod.
    ("proxy", "/containerLogs/figures-rights/none/none", "proxy", "404"),
];

fn rights(cluster: &Cluster) -> Result<()> {
    within(cluster, "figures-rights", |place| {
        let name = |right: &str| format!("figures-rights-{right}");
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody", "namespace": place.name}})];
        for (right, ..) in RIGHTS {
            let (rbac, name) = ("rbac.authorization.k8s.io/v1", name(right));
            items.extend([
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": right, "namespace": place.name}}),
                json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [
                    {"apiGroups": [""], "resources": [format!("nodes/{right}")], "verbs": ["get"]}]}),
                json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                    "subjects": [{"kind": "ServiceAccount", "name": right, "namespace": place.name}]}),
            ]);
        }
        cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
        let nobody = place.kubectl(&["create", "token", "nobody"])?;
        for (_, path, wanted, _) in RIGHTS {
            let words = format!(
                "Forbidden (user=system:serviceaccount:figures-rights:nobody, verb=get, resource=nodes, subresource(s)=[{wanted}])"
            );
            let (status, said) = answered(cluster, path, &nobody)?;
            ensure!(status == "403" && said.trim() == words, "{path}: {status} {said:?}");
        }
        for (right, path, _, answer) in RIGHTS {
            let token = place.kubectl(&["create", "token", right])?;
            // A refusal, as of a right that is not known yet, is remembered for 30 seconds.
            wait_for("its right to count", Duration::from_secs(60), || {
                let (status, said) = answered(cluster, path, &token)?;
                ensure!(status == answer, "{path} with nodes/{right}: {status} {said:?}");
                Ok(Some(()))
            })?;
        }
        // The right to all of a node is one to what had none of its own before; nothing else opens anything else.
        for (at, (right, ..)) in RIGHTS.iter().enumerate() {
            let token = place.kubectl(&["create", "token", right])?;
            for (_, path, wanted, _) in [RIGHTS[(at + 1) % RIGHTS.len()], RIGHTS[6], RIGHTS[3]] {
                let allowed = wanted.split(' ').any(|one| one == *right);
                let (status, said) = answered(cluster, path, &token)?;
                ensure!(allowed != (status == "403"), "{path} with nodes/{right}: {status} {said:?}");
            }
        }
        for (right, ..) in RIGHTS {
            place.kubectl(&["delete", "clusterrole,clusterrolebinding", &name(right)])?;
        }
        Ok(())
    })
}
