//! Resources of a pod as a whole (spec.resources).

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    workload::{PATIENCE, STAY, container, line, pod_of, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "resources of a pod as a whole are its machine's size, hold all of its containers together, and are their limits by default",
    hosts: 1,
    kvmlet: true,
    run: whole,
}];

/// Takes 110 MiB, which the guest has and the pod may not have.
const TAKE: &str = "dd if=/dev/zero of=/dev/null bs=115343360 count=1";
const LOOK: &str = "echo cpus=$(nproc); echo limit=$LIMIT
    echo total=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)";

fn whole(cluster: &Cluster) -> Result<()> {
    within(cluster, "pod-resources", |place| {
        let own = json!({"cpu": "1", "memory": "96Mi"});
        let limit = json!([{"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}]);
        let looks = with(sh(&format!("{LOOK}; {STAY}")), &[("/name", json!("looks")), ("/env", limit)]);
        let takes = with(sh(TAKE), &[("/name", json!("takes"))]);
        let pod = with(
            pod_of("whole", json!([looks, takes])),
            &[
                ("/spec/restartPolicy", json!("Never")),
                ("/spec/resources", json!({"limits": own, "requests": own})),
            ],
        );
        place.create(&[pod])?;
        let found = place.until("whole", "have a container that was ended for its memory", |found| {
            container(found, "takes")["state"]["terminated"]["reason"] == "OOMKilled"
        })?;
        let status = &found["status"];
        ensure!(status["qosClass"] == "Guaranteed", "{status}");
        ensure!(
            status["resources"]["limits"] == own && status["allocatedResources"] == own,
            "{status}"
        );
        ensure!(
            !container(&found, "looks")["state"]["running"].is_null(),
            "the other container ended too: {status}"
        );
        let said = wait_for("the container to have looked", PATIENCE, || {
            let logs = place.kubectl(&["logs", "whole", "-c", "looks"])?;
            Ok(logs.contains("total=").then_some(logs))
        })?;
        ensure!(
            line(&said, "cpus")? == "1" && line(&said, "limit")? == (96u64 << 20).to_string(),
            "{said}"
        );
        // 96 MiB for the containers, the rest for the guest and the images that it reads in place.
        let total: u64 = line(&said, "total")?.trim().parse()?;
        ensure!((96 << 10..224 << 10).contains(&total), "{said}");
        let more = json!({"cpu": "2", "memory": "160Mi"});
        let patch = json!({"spec": {"resources": {"limits": more, "requests": more}}}).to_string();
        place.kubectl(&["patch", "pod", "whole", "--subresource", "resize", "--patch", &patch])?;
        let found = place.until("whole", "have more", |found| found["status"]["resources"]["limits"] == more)?;
        ensure!(found["status"]["allocatedResources"] == more, "{}", found["status"]);
        let shell = "nproc; sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
        let said = place.kubectl(&["exec", "whole", "-c", "looks", "--", "sh", "-c", shell])?;
        let mut lines = said.lines();
        ensure!(lines.next() == Some("2"), "{said}");
        let grown: u64 = lines.next().unwrap_or_default().trim().parse()?;
        ensure!(grown >= total + (48 << 10), "{total} kB have become {grown}");
        Ok(())
    })
}
