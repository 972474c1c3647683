//! Pods that a DaemonSet makes for a node which cannot run them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon,
    workload::{Place, STAY, pod, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a DaemonSet's pod that cannot run here is left Pending where the node says so, with the reason, and goes with it",
    hosts: 1,
    kvmlet: true,
    run: left,
}];

fn agents(place: &Place<'_>) -> Result<Vec<Value>> {
    let found = place.cluster.kubectl_json(&["-n", &place.name, "get", "pods", "-l", "app=agent"])?;
    Ok(found["items"].as_array().context("no list of pods")?.clone())
}

fn left(cluster: &Cluster) -> Result<()> {
    daemon::with_config(cluster, "daemonSets: ignore\n", || {
        within(cluster, "daemon-sets", |place| {
            let template = with(
                pod("agent", sh(STAY)),
                &[
                    ("/metadata", json!({"labels": {"app": "agent"}})),
                    ("/spec/hostNetwork", json!(true)),
                    ("/spec/nodeSelector", json!({"kubernetes.io/hostname": cluster.host(0)?.name})),
                ],
            );
            let template = json!({"metadata": template["metadata"], "spec": template["spec"]});
            place.create(&[
                json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
                    "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template}}),
                pod("neighbour", sh(STAY)),
            ])?;
            let name = wait_for("the DaemonSet's pod", Duration::from_secs(60), || {
                let name = agents(place)?
                    .first()
                    .map(|pod| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
                Ok(name)
            })?;
            place.until_event(&name, "PodFeatureUnsupported", "left alone, as the node's daemonSets says: ")?;
            // Long enough for a node that fails it.
            place.until_ready("neighbour")?;
            let agents_now = agents(place)?;
            ensure!(
                agents_now.len() == 1
                    && agents_now[0]["metadata"]["name"] == name.as_str()
                    && agents_now[0]["status"]["phase"] == "Pending",
                "{agents_now:?}"
            );
            place.kubectl(&["delete", "daemonset", "agent"])?;
            place
                .kubectl(&["wait", "--for=delete", "pod", "-l", "app=agent", "--timeout=60s"])
                .map(drop)
        })
    })
}
