//! The API server is away for a minute, or somebody deletes the Node: nothing is killed, all is reconciled after.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::{self, Identity, log_file, until_ticks},
    survival::{TICKS, until_gone},
    workload::{STAY, condition, pod, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "an API server that is away for a minute takes no pod with it",
        hosts: 2,
        kvmlet: true,
        run: away,
    },
    Test {
        name: "a Node that somebody deletes is made again with its pods and addresses",
        hosts: 1,
        kvmlet: true,
        run: node_deleted,
    },
];

fn away(cluster: &Cluster) -> Result<()> {
    within(cluster, "outage", |place| {
        let host = cluster.host(0)?;
        let ends = with(
            pod("ends", sh("while [ ! -e /go ]; do sleep 1; done; sleep 10; exit 3")),
            &[("/spec/restartPolicy", json!("Never"))],
        );
        place.create(&[pod("ticks", sh(TICKS)), pod("stays", sh(STAY)), ends])?;
        for name in ["ticks", "stays", "ends"] {
            place.until_ready(name)?;
        }
        let before = [Identity::of(place, "ticks")?, Identity::of(place, "stays")?];
        let file = log_file(place, "ticks", "main")?;
        place.exec("ends", "touch /go")?;
        cluster.stop_api_server()?;
        let gone = Instant::now();
        let during = || -> Result<()> {
            let seen = until_ticks(|| host.sh(&format!("cat {file}")), 1)?;
            thread::sleep(Duration::from_secs(30).saturating_sub(gone.elapsed()));
            // Also a daemon that starts now kills nothing.
            host.kill_daemon()?;
            host.start_daemon()?;
            thread::sleep(Duration::from_secs(60).saturating_sub(gone.elapsed()));
            for identity in &before {
                ensure!(daemon::process(host, &identity.uid)? == identity.process, "the machine is another");
            }
            until_ticks(|| host.sh(&format!("cat {file}")), seen + 100).map(drop)
        };
        let during = during();
        cluster.start_api_server()?;
        during.context("while the API server was away")?;
        let ended = place.until("ends", "have ended", |pod| pod["status"]["phase"] == "Failed")?;
        let code = &super::workload::container(&ended, "main")["state"]["terminated"]["exitCode"];
        ensure!(*code == 3, "its status is {}", ended["status"]);
        // What is changed from now on is seen.
        place.create(&[pod("late", sh(STAY))])?;
        place.kubectl(&["delete", "pod", "stays", "--wait=false"])?;
        until_gone(place, "stays")?;
        place.until_ready("late")?;
        let after = Identity::of(place, "ticks")?;
        ensure!(after == before[0], "{:?} has become {after:?}", before[0]);
        ensure!(place.exec("ticks", "echo well")? == "well");
        Ok(())
    })
}

fn node_deleted(cluster: &Cluster) -> Result<()> {
    within(cluster, "outage-node", |place| {
        let name = cluster.host(0)?.name.as_str();
        place.create(&[pod("stays", sh(STAY))])?;
        place.until_ready("stays")?;
        let before = Identity::of(place, "stays")?;
        let old = cluster.kubectl_json(&["get", "node", name])?;
        cluster.kubectl(&["delete", "node", name])?;
        let new = wait_for("the Node to be there again and ready", Duration::from_secs(90), || {
            let node = cluster.kubectl_json(&["get", "node", name])?;
            ensure!(condition(&node, "Ready")["status"] == "True", "its status is {}", node["status"]);
            Ok(Some(node))
        })?;
        ensure!(new["metadata"]["uid"] != old["metadata"]["uid"], "it is the old one");
        ensure!(
            new["spec"]["podCIDR"] == old["spec"]["podCIDR"],
            "pods of {} are on a node of {}",
            old["spec"]["podCIDR"],
            new["spec"]["podCIDR"]
        );
        place.create(&[pod("late", sh(STAY))])?;
        place.until_ready("late")?;
        let after = Identity::of(place, "stays")?;
        ensure!(after == before, "{before:?} has become {after:?}");
        Ok(())
    })
}
