//! Who may see what of the kubelet port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    workload::{Place, within},
};
use crate::{Cluster, command, paths::write, wait_for};

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

/// The name of the role that gives one of them, and of its binding.
fn role(right: &str) -> String {
    format!("figures-rights-{right}")
}

fn rights(cluster: &Cluster) -> Result<()> {
    let shown = within(cluster, "figures-rights", guarded);
    let roles = RIGHTS.map(|(right, ..)| role(right));
    let mut delete = vec!["delete", "clusterrole,clusterrolebinding", "--ignore-not-found"];
    delete.extend(roles.iter().map(String::as_str));
    cluster.kubectl(&delete)?;
    shown
}

fn guarded(place: &Place<'_>) -> Result<()> {
    let cluster = place.cluster;
    cluster.apply(&objects(&place.name).to_string())?;
    let token = |user: &str| place.kubectl(&["create", "token", user]);
    let (status, said) = answered(cluster, RIGHTS[0].1, "made-up")?;
    ensure!(status == "401", "to a token that is none: {status} {said:?}");
    let nobody = token("nobody")?;
    for (_, path, wanted, _) in RIGHTS {
        let words =
            format!("Forbidden (user=system:serviceaccount:figures-rights:nobody, verb=get, resource=nodes, subresource(s)=[{wanted}])");
        let (status, said) = answered(cluster, path, &nobody)?;
        ensure!(status == "403" && said.trim() == words, "{path}: {status} {said:?}");
    }
    let tokens = RIGHTS.iter().map(|(right, ..)| token(right)).collect::<Result<Vec<_>>>()?;
    for ((right, path, _, answer), token) in RIGHTS.iter().zip(&tokens) {
        // A refusal, as of a right that is not known yet, is remembered for 30 seconds.
        wait_for("its right to count", Duration::from_secs(60), || {
            let (status, said) = answered(cluster, path, token)?;
            ensure!(status == *answer, "{path} with nodes/{right}: {status} {said:?}");
            Ok(Some(()))
        })?;
    }
    // The right to all of a node is one to what had none of its own before; nothing else opens anything else.
    for (at, ((right, ..), token)) in RIGHTS.iter().zip(&tokens).enumerate() {
        for (_, path, wanted, _) in [RIGHTS[(at + 1) % RIGHTS.len()], RIGHTS[6], RIGHTS[3]] {
            let allowed = wanted.split(' ').any(|one| one == *right);
            let (status, said) = answered(cluster, path, token)?;
            ensure!(allowed != (status == "403"), "{path} with nodes/{right}: {status} {said:?}");
        }
    }
    Ok(())
}

/// A service account for each right, which has that alone, and one that has none.
fn objects(namespace: &str) -> Value {
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}});
    let mut items = vec![account("nobody")];
    for (right, ..) in RIGHTS {
        let (rbac, role) = ("rbac.authorization.k8s.io/v1", role(right));
        items.extend([
            account(right),
            json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": role}, "rules": [
                {"apiGroups": [""], "resources": [format!("nodes/{right}")], "verbs": ["get"]}]}),
            json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": {"name": role},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "name": right, "namespace": namespace}]}),
        ]);
    }
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// What the kubelet port of the first host answers: its status, and the beginning of what it says.
fn answered(cluster: &Cluster, path: &str, token: &str) -> Result<(String, String)> {
    let host = cluster.host(0)?;
    let mut curl = cluster.inside("curl");
    curl.args(["-sS", "-w", "\n%{http_code}", "--max-time", "20", "--cacert"]);
    curl.arg(cluster.state.pki().join("ca.crt"));
    // From a file that only the rig reads: arguments can be seen. One for each host, as tests run side by side on them.
    let header = cluster.state.root.join(format!("token-header-{}", host.name));
    write(&header, format!("Authorization: Bearer {token}"))?;
    curl.arg("-H").arg(format!("@{}", header.display()));
    curl.arg(format!("https://{}{path}", host.kubelet()));
    let output = command::run(&mut curl)?;
    let said = command::text(&output.stdout);
    let (body, status) = said.rsplit_once('\n').context("a status")?;
    Ok((status.to_owned(), body.chars().take(300).collect()))
}
