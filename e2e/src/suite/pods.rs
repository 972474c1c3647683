//! How pods come to a host, run on a kernel of their own, and leave nothing when they go.

use std::slice::from_ref;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    survival::until_released,
    workload::{PATIENCE, STAY, condition, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod comes by the scheduler or by nodeName, and runs on a kernel of its own",
        hosts: 1,
        kvmlet: true,
        run: placement,
    },
    Test {
        name: "init containers run one after another, then all containers share the pod's volumes",
        hosts: 1,
        kvmlet: true,
        run: init_containers,
    },
    Test {
        name: "requests and limits become the machine's size and cgroup values, and more memory is OOMKilled",
        hosts: 1,
        kvmlet: true,
        run: resources,
    },
    Test {
        name: "a deletion asks with TERM, waits no longer than the grace, and leaves nothing",
        hosts: 1,
        kvmlet: true,
        run: deletion,
    },
];

fn placement(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    within(cluster, "pods-placement", |place| {
        let scheduled = pod("scheduled", sh(&format!("uname -r; {STAY}")));
        let direct = with(
            pod("direct", sh(STAY)),
            &[
                ("/spec/nodeName", json!(host.name)),
                ("/spec/nodeSelector", json!({})),
                ("/spec/tolerations", json!([])),
            ],
        );
        let intolerant = with(pod("intolerant", sh(STAY)), &[("/spec/tolerations", json!([]))]);
        place.create(&[scheduled, direct, intolerant])?;

        let found = place.until_ready("scheduled")?;
        for kind in [
            "PodScheduled",
            "PodReadyToStartContainers",
            "Initialized",
            "ContainersReady",
            "Ready",
        ] {
            let one = condition(&found, kind);
            ensure!(one["status"] == "True" && one["lastTransitionTime"].is_string(), "{kind}: {one}");
        }
        let status = &found["status"];
        // Where the scheduler likes it.
        let host = cluster.hosts.iter().find(|host| status["hostIP"] == json!(host.address));
        let host = host.with_context(|| format!("no host has the pod's hostIP: {status}"))?;
        ensure!(status["phase"] == "Running", "{status}");
        ensure!(
            status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.244.")) && status["podIPs"][0]["ip"] == status["podIP"],
            "{status}"
        );
        ensure!(status["startTime"].is_string() && status["qosClass"] == "BestEffort", "{status}");
        ensure!(status["observedGeneration"] == found["metadata"]["generation"], "{status}");
        let main = container(&found, "main");
        ensure!(
            main["ready"] == true && main["started"] == true && main["restartCount"] == 0,
            "{main}"
        );
        ensure!(main["state"]["running"]["startedAt"].is_string(), "{main}");
        ensure!(
            main["containerID"]
                .as_str()
                .is_some_and(|id| id.starts_with("kvmlet://") && id.len() > 40),
            "{main}"
        );
        ensure!(
            main["imageID"].as_str().is_some_and(|id| id.contains("library/busybox@sha256:")),
            "{main}"
        );

        // As the kubelet's events, in this order.
        place.until_event("scheduled", "Started", "")?;
        let events = place.events("scheduled")?;
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.0.as_str(), event.1.as_str(), event.2.as_str()))
            .collect();
        let main = "spec.containers{main}";
        for (kind, reason, field) in [("Pulled", main), ("Created", main), ("Started", main)].map(|(r, f)| ("Normal", r, f)) {
            ensure!(told.contains(&(kind, reason, field)), "{kind} {reason} {field}: {events:?}");
        }
        ensure!(
            told.iter().any(|event| event.1 == "Scheduled") && told.iter().any(|event| event.1 == "Pulling"),
            "{events:?}"
        );

        let theirs = wait_for("its kernel to be written", PATIENCE, || {
            Ok(Some(place.kubectl(&["logs", "scheduled"])?).filter(|logs| !logs.is_empty()))
        })?;
        let ours = host.sh("uname -r")?;
        ensure!(theirs != ours, "the pod's kernel {theirs:?} is the host's {ours:?}");
        ensure!(place.exec("scheduled", "cat /proc/sys/kernel/random/boot_id")? != host.sh("cat /proc/sys/kernel/random/boot_id")?);

        let found = place.until_ready("direct")?;
        ensure!(found["spec"]["nodeName"] == json!(cluster.host(0)?.name));
        ensure!(
            !place.events("direct")?.iter().any(|event| event.1 == "Scheduled"),
            "nodeName went through the scheduler"
        );
        let intolerant = place.get("intolerant")?;
        ensure!(
            condition(&intolerant, "PodScheduled")["reason"] == "Unschedulable",
            "{}",
            intolerant["status"]
        );

        place.kubectl(&["delete", "pod", "scheduled", "direct", "intolerant"])?;
        place.until_event("scheduled", "Killing", "Stopping container main")
    })
}

fn init_containers(cluster: &Cluster) -> Result<()> {
    let mounts = json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]);
    let step = |name: &str, script: &str| {
        with(
            sh(script),
            &[
                ("/name", json!(name)),
                ("/image", json!("busybox")),
                ("/volumeMounts", mounts.clone()),
            ],
        )
    };
    within(cluster, "pods-init", |place| {
        let writes = "echo $(date +%s.%N) second start >> /disk/order";
        let volumes = json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}]);
        let good = with(
            pod_of(
                "good",
                json!([
                    step(
                        "reader",
                        &format!("while ! [ -e /memory/said ]; do sleep 1; done; cat /memory/said; {STAY}")
                    ),
                    step("writer", &format!("echo by writer > /memory/said; {STAY}")),
                ]),
            ),
            &[
                ("/spec/volumes", volumes.clone()),
                (
                    "/spec/initContainers",
                    json!([
                        step("first", "echo first start > /disk/order; sleep 2; echo first end >> /disk/order"),
                        step("second", &format!("{writes}; echo second end >> /disk/order")),
                    ]),
                ),
            ],
        );
        let bad = with(
            pod("bad", sh("echo never")),
            &[
                ("/spec/restartPolicy", json!("Never")),
                ("/spec/volumes", volumes),
                ("/spec/initContainers", json!([step("fails", "exit 7"), step("after", "true")])),
            ],
        );
        place.create(&[good, bad])?;
        let found = place.until_ready("good")?;
        for name in ["first", "second"] {
            let one = container(&found, name);
            ensure!(one["state"]["terminated"]["reason"] == "Completed" && one["ready"] == true, "{one}");
        }
        let times = ["first", "second"].map(|name| container(&found, name)["state"]["terminated"].clone());
        ensure!(
            times[0]["finishedAt"].as_str() <= times[1]["startedAt"].as_str(),
            "the second began before the first's end: {times:?}"
        );
        let order = place.kubectl(&["exec", "good", "-c", "reader", "--", "cat", "/disk/order"])?;
        let order: Vec<_> = order.lines().map(|line| line.rsplit_once(' ').unwrap_or(("", line))).collect();
        ensure!(
            order.iter().map(|(_, last)| *last).collect::<Vec<_>>() == ["start", "end", "start", "end"],
            "{order:?}"
        );
        wait_for("the reader to see what the writer wrote", Duration::from_secs(30), || {
            Ok((place.kubectl(&["logs", "good", "-c", "reader"])? == "by writer").then_some(()))
        })?;
        let kinds = place.kubectl(&[
            "exec",
            "good",
            "-c",
            "writer",
            "--",
            "sh",
            "-c",
            "stat -f -c %T /disk /memory; df -m /memory | tail -1",
        ])?;
        ensure!(
            kinds.lines().nth(1) == Some("tmpfs") && kinds.lines().next() != Some("tmpfs"),
            "{kinds}"
        );
        ensure!(
            kinds.lines().nth(2).is_some_and(|df| df.split_whitespace().nth(1) == Some("16")),
            "no size limit: {kinds}"
        );

        let bad = place.until_phase("bad", "Failed")?;
        ensure!(
            container(&bad, "fails")["state"]["terminated"]["exitCode"] == 7,
            "{}",
            bad["status"]
        );
        ensure!(condition(&bad, "Initialized")["status"] == "False", "{}", bad["status"]);
        for name in ["after", "main"] {
            ensure!(
                container(&bad, name)["state"]["waiting"]["reason"] == "PodInitializing",
                "{name}: {}",
                bad["status"]
            );
        }
        Ok(())
    })
}

fn resources(cluster: &Cluster) -> Result<()> {
    let files = "cd /sys/fs/cgroup; echo memory=$(cat memory.max); echo cpu=$(cat cpu.max); echo weight=$(cat cpu.weight); \
        echo processors=$(grep -c ^processor /proc/cpuinfo); echo total=$(awk '/^MemTotal/ {print $2}' /proc/meminfo)";
    let sized = |script: &str, limits: serde_json::Value, requests: serde_json::Value| {
        with(sh(script), &[("/resources", json!({"limits": limits, "requests": requests}))])
    };
    within(cluster, "pods-resources", |place| {
        let limited = sized(
            files,
            json!({"cpu": "1500m", "memory": "96Mi"}),
            json!({"cpu": "1", "memory": "32Mi"}),
        );
        let never = ("/spec/restartPolicy", json!("Never"));
        let hog = "echo one; tail /dev/zero; echo survived";
        place.create(&[
            with(pod("limited", limited), from_ref(&never)),
            with(pod("free", sh(files)), from_ref(&never)),
            with(
                pod("hog", sized(&format!("{hog}; exit 0"), json!({"memory": "32Mi"}), json!({}))),
                from_ref(&never),
            ),
            with(
                pod(
                    "hog-main",
                    json!({"command": ["tail", "/dev/zero"], "resources": {"limits": {"memory": "32Mi"}}}),
                ),
                &[never],
            ),
        ])?;
        let limited = place.output("limited")?;
        let free = place.output("free")?;
        let number = |text: &str, key: &str| -> Result<u64> {
            super::workload::line(text, key)?
                .parse()
                .with_context(|| format!("{key} in {text}"))
        };
        ensure!(number(&limited, "memory")? == 96 << 20, "{limited}");
        ensure!(
            super::workload::line(&limited, "cpu")? == "150000 100000" && number(&limited, "weight")? == 39,
            "{limited}"
        );
        // The rule of docs/architecture.md: as many processors as the CPU limits, rounded up; memory limits plus the guest's share.
        ensure!(
            number(&limited, "processors")? == 2 && number(&free, "processors")? == 1,
            "{limited}\n{free}"
        );
        ensure!(super::workload::line(&free, "memory")? == "max", "{free}");
        let (small, large) = (number(&limited, "total")? >> 10, number(&free, "total")? >> 10);
        ensure!(
            (96..=96 + 64 + 8).contains(&small) && (256..=256 + 64 + 8).contains(&large),
            "{small} MiB and {large} MiB"
        );

        // The shell dies with its child, as the kubelet's containers do: one OOM kill ends the whole group.
        for name in ["hog", "hog-main"] {
            let found = place.until_phase(name, "Failed")?;
            let ended = &container(&found, "main")["state"]["terminated"];
            ensure!(ended["reason"] == "OOMKilled" && ended["exitCode"] == 137, "{name}: {ended}");
        }
        Ok(())
    })
}

fn deletion(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let patient =
        |name: &str, script: &str, grace: u32| with(pod(name, sh(script)), &[("/spec/terminationGracePeriodSeconds", json!(grace))]);
    within(cluster, "pods-deletion", |place| {
        place.create(&[
            patient(
                "polite",
                "trap 'sleep 2; echo goodbye; exit 0' TERM; echo up; while :; do sleep 1 & wait $!; done",
                100,
            ),
            patient("deaf", "trap '' TERM; echo up; while :; do sleep 1; done", 4),
            patient("forced", "trap '' TERM; echo up; while :; do sleep 1; done", 600),
        ])?;
        for name in ["polite", "deaf", "forced"] {
            place.until_ready(name)?;
        }
        let uid = place.uid("forced")?;

        // What the handler writes can still be read by who listens.
        let mut logs = cluster.kubectl_command();
        let listener = logs
            .args(["-n", &place.name, "logs", "-f", "polite"])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("run kubectl logs -f")?;
        wait_for("the listener to be served", Duration::from_secs(20), || {
            Ok(place.kubectl(&["logs", "polite"])?.contains("up").then_some(()))
        })?;
        let begun = Instant::now();
        place.kubectl(&["delete", "pod", "polite", "--timeout=90s"])?;
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "an early exit did not end the grace of 100 s"
        );
        let heard = listener.wait_with_output().context("wait for kubectl logs -f")?;
        let heard = crate::command::text(&heard.stdout);
        ensure!(heard == "up\ngoodbye", "the TERM handler was not heard: {heard:?}");

        let begun = Instant::now();
        place.kubectl(&["delete", "pod", "deaf", "--timeout=90s"])?;
        ensure!(
            begun.elapsed() >= Duration::from_secs(3),
            "killed before its grace was over: {:?}",
            begun.elapsed()
        );

        let begun = Instant::now();
        place.kubectl(&["delete", "pod", "forced", "--grace-period=0", "--force", "--timeout=90s"])?;
        ensure!(place.kubectl_fails(&["get", "pod", "forced"])?.contains("not found"));
        until_released(host, &uid)?;
        ensure!(begun.elapsed() < PATIENCE);
        Ok(())
    })
}
