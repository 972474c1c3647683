//! Memory that a pod frees is its host's again.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::Identity,
    workload::{STAY, pod, sh, with, within},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "memory that a pod frees goes back to its host, and what it keeps stays whole",
    hosts: 1,
    kvmlet: true,
    run: returned,
}];

const MIB: u64 = 1 << 20;
/// A guest reports free pages every two seconds, once there are enough.
const REPORTED: Duration = Duration::from_secs(60);

/// What a machine's process has of the host's memory, bytes.
pub(super) fn resident(host: &Host, process: &str) -> Result<u64> {
    let kibibytes = host.sh(&format!("sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/{process}/status"))?;
    Ok(kibibytes.trim().parse::<u64>()? << 10)
}

fn returned(cluster: &Cluster) -> Result<()> {
    within(cluster, "memory-returned", |place| {
        let main = with(
            sh(STAY),
            &[
                ("/resources", json!({"limits": {"memory": "512Mi"}})),
                ("/volumeMounts", json!([{"name": "memory", "mountPath": "/memory"}])),
            ],
        );
        let volumes = json!([{"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "400Mi"}}]);
        place.create(&[with(pod("main", main), &[("/spec/volumes", volumes)])])?;
        place.until_ready("main")?;
        let (host, process) = (cluster.host(0)?, Identity::of(place, "main")?.process);
        place.exec(
            "main",
            "head -c 41943040 /dev/urandom >/memory/kept && md5sum /memory/kept >/memory/sum",
        )?;
        for round in 1..=2 {
            place.exec("main", "dd if=/dev/zero of=/memory/freed bs=1M count=240 2>/dev/null")?;
            let full = resident(host, &process)?;
            ensure!(
                full > 280 * MIB,
                "round {round}: 280 MiB are in use, and the process has {full} bytes"
            );
            place.exec("main", "rm /memory/freed")?;
            wait_for("the host to have its memory back", REPORTED, || {
                let left = resident(host, &process)?;
                // Only whole blocks of 2 MiB go back: one page in use keeps its block. 205 of 240 MiB were seen, and more.
                ensure!(
                    left + 160 * MIB < full,
                    "round {round}: the process had {full} bytes and has {left}"
                );
                Ok(Some(()))
            })?;
        }
        place.exec("main", "md5sum -c /memory/sum")?;
        Ok(())
    })
}
