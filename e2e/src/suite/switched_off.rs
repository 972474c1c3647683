//! What becomes of nodes that are switched off: a part of the test of the switch.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{
    elastic::cordoned,
    runtime::{NAME, SOON, checks, does, refuses, taint, told},
    workload::{PATIENCE, Place, STAY, condition, pod, sh},
};
use crate::{Cluster, wait_for};

/// Switches off, on and off again, and takes the switch away.
pub(super) fn off(place: &Place<'_>, kvmlet: &Path) -> Result<()> {
    let cluster = place.cluster;
    let named = format!("{}/waits", place.name);
    refuses(cluster, kvmlet, &["disable"], &[&named, "--force"])?;
    cluster.kubectl(&["annotate", "kvmletruntime", "kvmlet", "kvmlet.io/force-disable=true"])?;
    refuses(cluster, kvmlet, &["disable", "--force"], &[&named, "[y/N]", "kvmlet stays enabled"])?;
    cluster.kubectl(&["annotate", "kvmletruntime", "kvmlet", "kvmlet.io/force-disable-"])?;
    does(cluster, kvmlet, &["disable", "--force"])?;
    refuses(cluster, kvmlet, &["disable"], &["kvmlet is disabled already"])?;
    told(cluster, "that no pod is left", |status| {
        status["message"].as_str().is_some_and(|text| text.starts_with("disabled:")) && status["ready"] == false
    })?;
    gone(cluster)?;
    ensure!(
        checks(cluster)?.iter().all(|one| one["spec"]["reason"].is_null()),
        "checks of before are left"
    );
    back(place, kvmlet)?;
    cluster.kubectl(&["delete", "kvmletruntime", "kvmlet", "--timeout=60s"])?;
    // Without a switch nodes take pods, and so there are Nodes.
    cluster.wait_until_nodes_are_ready(PATIENCE)?;
    for host in &cluster.hosts {
        ensure!(!cordoned(cluster, host)?, "{} takes no pods without a switch", host.name);
        ensure!(taint(cluster, &host.name)?.is_none(), "{} has kept its taint", host.name);
    }
    let log = fs::read_to_string(cluster.state.logs().join(format!("{NAME}.log"))).context("read the webhook's log")?;
    ensure!(!log.contains("is forbidden"), "the webhook has too few rights: {log}");
    Ok(())
}

/// No host has a Node, and no daemon makes one.
fn gone(cluster: &Cluster) -> Result<()> {
    let there = || cluster.kubectl(&["get", "nodes", "-l", "type=virtual-kubelet", "-o", "name"]);
    let left = there()?;
    ensure!(left.trim().is_empty(), "there are {left:?}");
    for host in &cluster.hosts {
        wait_for(&format!("the daemon of {} to stay away", host.name), SOON, || {
            let said = host.sh(&format!(
                "grep -c 'kvmlet is disabled in this cluster' {}; true",
                crate::node::KVMLET_LOG
            ))?;
            ensure!(said.trim() != "0", "its log has no word of it");
            Ok(Some(()))
        })?;
    }
    let left = there()?;
    ensure!(left.trim().is_empty(), "there are {left:?} again");
    Ok(())
}

/// Who is enabled again makes its Node anew, which gets no pod before its host has passed, and what was said of emulation counts as before.
fn back(place: &Place<'_>, kvmlet: &Path) -> Result<()> {
    let cluster = place.cluster;
    place.create(&[pod("early", sh(STAY))])?;
    place.until("early", "find no node", |found| {
        condition(found, "PodScheduled")["reason"] == "Unschedulable"
    })?;
    does(cluster, kvmlet, &["enable"])?;
    let emulation = cluster.kubectl(&["get", "kvmletruntime", "kvmlet", "-o", "jsonpath={.spec.useEmulation}"])?;
    ensure!(emulation == "true", "useEmulation is {emulation:?}");
    let found = place.until_ready("early")?;
    let bound = &condition(&found, "PodScheduled")["lastTransitionTime"];
    // By the clock of the API server, which a host's need not be.
    let all = cluster.kubectl_json(&["get", "preflightchecks", "--show-managed-fields"])?;
    let answers = all["items"].as_array().into_iter().flatten().filter(|one| {
        let spec = &one["spec"];
        spec["nodeName"] == found["spec"]["nodeName"] && spec["reason"] == "Enabled" && one["status"]["passed"] == true
    });
    let written = answers.flat_map(|one| one["metadata"]["managedFields"].as_array().into_iter().flatten());
    let of_status = written.filter(|fields| fields["subresource"] == "status");
    let passed = of_status
        .filter_map(|fields| fields["time"].as_str())
        .min()
        .context("no check has passed")?;
    let bound = bound.as_str().context("no time")?;
    ensure!(bound >= passed, "the pod was scheduled at {bound}, and its host passed at {passed}");
    refuses(cluster, kvmlet, &["disable"], &["early", "--force"])?;
    does(cluster, kvmlet, &["disable", "--force"])?;
    told(cluster, "that Nodes are gone again", |status| {
        status["message"].as_str().is_some_and(|text| text.starts_with("disabled:"))
    })?;
    gone(cluster)
}
