//! What a node's configuration gives to all machines: a watchdog, limits of what they read and write.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::{self, Identity},
    templates,
    workload::{STAY, container, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a guest whose kernel stands still is ended by its watchdog, and its pod starts again",
        hosts: 1,
        kvmlet: true,
        run: stands_still,
    },
    Test {
        name: "machines' control groups have the limits of reads and writes that their node allows",
        hosts: 1,
        kvmlet: true,
        run: limited,
    },
];

/// Of two stages, of about half as much each.
const WATCHDOG: Duration = Duration::from_secs(10);

fn stands_still(cluster: &Cluster) -> Result<()> {
    let config = format!("machines: {{watchdogSeconds: {}}}\n", WATCHDOG.as_secs());
    daemon::with_config(cluster, &config, || {
        within(cluster, "machine-watchdog", |place| {
            // The watchdog is a copy's, too.
            templates::until_a_copy(place, "before")?;
            let all = json!({"privileged": false, "capabilities": {"add": ["ALL"]}});
            place.create(&[
                pod("hangs", with(sh(STAY), &[("/securityContext", all)])),
                pod("neighbour", sh(STAY)),
            ])?;
            for name in ["hangs", "neighbour"] {
                place.until_ready(name)?;
                place.until_event(name, "MachineStarted", "as a copy of the node's template in ")?;
            }
            let neighbour = Identity::of(place, "neighbour")?;
            let begun = Instant::now();
            // A kernel that panics and is not to restart stands still with its interrupts off.
            let _ = place.exec(
                "hangs",
                "mkdir /p && mount -t proc proc /p && echo 0 >/p/sys/kernel/panic && echo 2 >/p/sys/vm/panic_on_oom && tail /dev/zero",
            );
            place.until_event("hangs", "SandboxChanged", "watchdog")?;
            ensure!(begun.elapsed() >= WATCHDOG / 2, "it took {:?}", begun.elapsed());
            let found = place.until("hangs", "have been restarted", |found| {
                let status = container(found, "main");
                status["restartCount"] == 1 && status["ready"] == true
            })?;
            let last = &container(&found, "main")["lastState"]["terminated"];
            ensure!(
                last["exitCode"] == 137 && last["message"].as_str().is_some_and(|text| text.contains("watchdog")),
                "{last}"
            );
            // One that is fed goes on, for longer than its watchdog would have let it.
            ensure!(begun.elapsed() > WATCHDOG, "it took {:?}", begun.elapsed());
            let after = Identity::of(place, "neighbour")?;
            ensure!(after == neighbour, "{neighbour:?} has become {after:?}");
            Ok(())
        })
    })
}

fn limited(cluster: &Cluster) -> Result<()> {
    let config = "machines: {io: {writeBytesPerSecond: 2Mi, readOperationsPerSecond: 5000}}\n";
    daemon::with_config(cluster, config, || {
        within(cluster, "machine-io", |place| {
            place.create(&[pod("limited", sh(STAY))])?;
            place.until_ready("limited")?;
            let uid = Identity::of(place, "limited")?.uid;
            let limits = place
                .cluster
                .host(0)?
                .sh(&format!("cat /sys/fs/cgroup/kvmlet.slice/{uid}/io.max"))?;
            ensure!(limits.contains("rbps=max wbps=2097152 riops=5000 wiops=max"), "{limits:?}");
            Ok(())
        })
    })
}
