//! Pods that are given other amounts while they run, through the `resize` subresource.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::restart,
    workload::{Place, STAY, condition, container, line, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod that runs gets more and less processors and memory in place, and its guest has them",
        hosts: 1,
        kvmlet: true,
        run: in_place,
    },
    Test {
        name: "what a pod cannot be given is pending with the kubelet's reasons, and what it needs a restart for restarts it",
        hosts: 1,
        kvmlet: true,
        run: refused_and_restarted,
    },
];

/// What the guest says of itself and of its container's group.
const FIGURES: &str = "echo cpus=$(nproc)
    echo total=$(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)
    echo memory=$(cat /sys/fs/cgroup/memory.max)
    echo cpu=$(cat /sys/fs/cgroup/cpu.max)";

fn amounts(cpu: &str, memory: &str) -> Value {
    json!({"cpu": cpu, "memory": memory})
}

pub(super) fn resources(cpu: &str, memory: &str) -> Value {
    json!({"requests": amounts(cpu, memory), "limits": amounts(cpu, memory)})
}

pub(super) fn resize(place: &Place<'_>, name: &str, cpu: &str, memory: &str) -> Result<()> {
    ask(place, name, &resources(cpu, memory))
}

fn ask(place: &Place<'_>, name: &str, resources: &Value) -> Result<()> {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
    place
        .kubectl(&["patch", "pod", name, "--subresource", "resize", "-p", &patch])
        .map(drop)
}

/// Waits until all of it is in force and nothing of it is under way.
pub(super) fn until_resized(place: &Place<'_>, name: &str, cpu: &str, memory: &str) -> Result<Value> {
    place.until(name, &format!("have {cpu} and {memory}"), |found| {
        let main = container(found, "main");
        main["resources"]["limits"] == amounts(cpu, memory)
            && main["allocatedResources"] == amounts(cpu, memory)
            && condition(found, "PodResizeInProgress").is_null()
            && condition(found, "PodResizePending").is_null()
    })
}

fn kilobytes(figures: &str) -> Result<u64> {
    line(figures, "total")?.parse().context("read MemTotal")
}

fn in_place(cluster: &Cluster) -> Result<()> {
    within(cluster, "resize-in-place", |place| {
        let small = with(sh(STAY), &[("/resources", resources("500m", "64Mi"))]);
        // One of them is a copy of the node's template, the other one has booted.
        let boots = [("/metadata/annotations", json!({"kvmlet.io/template": "none"}))];
        place.create(&[pod("copy", small.clone()), with(pod("boots", small), &boots)])?;
        let host = cluster.host(0)?;
        for name in ["copy", "boots"] {
            place.until_ready(name)?;
            let before = place.exec(name, FIGURES)?;
            ensure!(
                line(&before, "cpus")? == "1" && line(&before, "cpu")? == "50000 100000",
                "{name}: {before}"
            );

            resize(place, name, "1200m", "320Mi")?;
            let found = until_resized(place, name, "1200m", "320Mi")?;
            ensure!(container(&found, "main")["restartCount"] == 0, "{name}: {}", found["status"]);
            let after = place.exec(name, FIGURES)?;
            let (memory, cpu) = (line(&after, "memory")?, line(&after, "cpu")?);
            ensure!(line(&after, "cpus")? == "2" && cpu == "120000 100000", "{name}: {after}");
            ensure!(memory == (320u64 << 20).to_string(), "{name}: {after}");
            let more = kilobytes(&after)?.saturating_sub(kilobytes(&before)?);
            ensure!(more > 200 << 10, "{name}: {more} KiB more: {before}, {after}");
            // It can be used: more than there was.
            place.exec(name, "dd if=/dev/zero of=/dev/null bs=200M count=1")?;
            place.until_event(name, "ResizeCompleted", "\"cpu\":\"1200m\"")?;

            // One that a daemon has begun the next one ends.
            resize(place, name, "600m", "96Mi")?;
            host.kill_daemon()?;
            restart(cluster)?;
            until_resized(place, name, "600m", "96Mi")?;
            let less = place.exec(name, FIGURES)?;
            ensure!(
                line(&less, "cpus")? == "1" && line(&less, "cpu")? == "60000 100000",
                "{name}: {less}"
            );
            ensure!(line(&less, "memory")? == (96u64 << 20).to_string(), "{name}: {less}");
        }
        Ok(())
    })
}

fn refused_and_restarted(cluster: &Cluster) -> Result<()> {
    within(cluster, "resize-refused", |place| {
        let small = with(sh(STAY), &[("/resources", resources("100m", "64Mi"))]);
        let restarts = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        let again = with(small.clone(), &[("/resizePolicy", restarts)]);
        let rest = with(sh(STAY), &[("/resources", resources("1200m", "64Mi"))]);
        let requests = json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m"}});
        let burst = with(sh(STAY), &[("/resources", requests.clone())]);
        place.create(&[pod("main", small), pod("restarts", again), pod("burst", burst), pod("rest", rest)])?;
        for name in ["main", "restarts", "burst", "rest"] {
            place.until_ready(name)?;
        }
        let pending = |name: &str, reason: &str| {
            let what = format!("have a resize that is {reason}");
            place.until(name, &what, |found| condition(found, "PodResizePending")["reason"] == reason)
        };
        // Requests above what the node has are refused by the API server already.
        ask(place, "burst", &with(requests.clone(), &[("/limits/cpu", "100".into())]))?;
        let found = pending("burst", "Infeasible")?;
        let message = condition(&found, "PodResizePending")["message"].as_str().unwrap_or_default();
        ensure!(
            message.starts_with("the pod's cpu limit of 100000 is larger than this host"),
            "{message}"
        );
        ensure!(
            container(&found, "main")["resources"]["limits"]["cpu"] == "200m",
            "{}",
            found["status"]
        );
        place.until_event("burst", "ResizeInfeasible", "larger than this host")?;
        ask(place, "burst", &requests)?;
        place.until("burst", "have no resize pending", |found| {
            condition(found, "PodResizePending").is_null()
        })?;

        // What another pod has is free once that is gone.
        resize(place, "main", "1", "64Mi")?;
        pending("main", "Deferred")?;
        place.kubectl(&["delete", "pod", "rest"])?;
        until_resized(place, "main", "1", "64Mi")?;

        // A container's memory is not taken from under it.
        place.exec("main", "head -c 40m /dev/zero > /dev/shm/filler")?;
        resize(place, "main", "1", "24Mi")?;
        place.until("main", "say that it uses more", |found| {
            let message = condition(found, "PodResizeInProgress")["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            condition(found, "PodResizeInProgress")["reason"] == "Error" && message.contains("below its current usage")
        })?;
        place.exec("main", "rm /dev/shm/filler")?;
        let found = until_resized(place, "main", "1", "24Mi")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);

        resize(place, "restarts", "200m", "64Mi")?;
        let found = until_resized(place, "restarts", "200m", "64Mi")?;
        ensure!(
            container(&found, "main")["restartCount"] == 0,
            "processors need none: {}",
            found["status"]
        );
        resize(place, "restarts", "200m", "128Mi")?;
        let found = place.until("restarts", "run with more memory", |found| {
            let main = container(found, "main");
            main["restartCount"] == 1 && main["ready"] == true && main["resources"]["limits"]["memory"] == "128Mi"
        })?;
        ensure!(condition(&found, "PodResizePending").is_null(), "{}", found["status"]);
        let figures = place.exec("restarts", FIGURES)?;
        ensure!(line(&figures, "memory")? == (128u64 << 20).to_string(), "{figures}");
        Ok(())
    })
}
