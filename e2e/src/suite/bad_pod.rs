//! Pods that cannot run as they are: each says why in its status or events, and goes on by itself where what was missing comes.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::Identity,
    survival::until_gone,
    workload::{STAY, container, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a pod larger than the host is refused by name of what it lacks",
        hosts: 1,
        kvmlet: true,
        run: too_large,
    },
    Test {
        name: "a command, user or image that is not there is told in the container's status",
        hosts: 1,
        kvmlet: true,
        run: cannot_start,
    },
    Test {
        name: "two pods of the same name in turn are two pods",
        hosts: 1,
        kvmlet: true,
        run: namesakes,
    },
    Test {
        name: "a pod that asks for what is not built fails and names the field",
        hosts: 1,
        kvmlet: true,
        run: unsupported,
    },
];

fn too_large(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-size", |place| {
        let node = json!(cluster.host(0)?.name);
        let cases = [
            ("requests-memory", "requests", "memory", "900Gi", "OutOfmemory"),
            ("limits-memory", "limits", "memory", "900Gi", "OutOfmemory"),
            ("requests-cpu", "requests", "cpu", "500", "OutOfcpu"),
            ("limits-cpu", "limits", "cpu", "500", "OutOfcpu"),
        ];
        place.create(&cases.map(|(name, kind, resource, amount, _)| {
            let mut resources = json!({kind: {resource: amount}});
            // A limit alone would also be the request.
            if kind == "limits" {
                resources["requests"] = json!({resource: "1"});
            }
            let pod = pod(name, with(sh(STAY), &[("/resources", resources)]));
            with(pod, &[("/spec/nodeName", node.clone())])
        }))?;
        for (name, _, _, _, reason) in cases {
            let found = place.until_phase(name, "Failed")?;
            ensure!(found["status"]["reason"] == reason, "{name}: {}", found["status"]);
            ensure!(found["status"]["message"].as_str().is_some_and(|text| !text.is_empty()));
            place.until_event(name, reason, "")?;
        }
        Ok(())
    })
}

fn cannot_start(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-start", |place| {
        let from_secret = json!([{"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "words", "key": "word"}}}]);
        let never = [("/spec/restartPolicy", json!("Never"))];
        place.create(&[
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words"}, "stringData": {"other": "x"}}),
            pod("never-pulled", json!({"image": "large:gzip-absent", "imagePullPolicy": "Never"})),
            pod("no-command", json!({"image": "bad/no-command"})),
            pod("unknown-user", json!({"image": "bad/unknown-user"})),
            pod("unknown-group", json!({"image": "bad/unknown-group"})),
            with(pod("missing-command", json!({"image": "bad/missing-command"})), &never),
            with(pod("not-executable", json!({"image": "bad/not-executable"})), &never),
            pod("missing-key", with(sh("echo $WORD; exec sleep 1000"), &[("/env", from_secret)])),
        ])?;
        let waits = |reasons: &'static [&'static str], words: &'static str| {
            move |found: &Value| {
                let waiting = &container(found, "main")["state"]["waiting"];
                reasons.iter().any(|reason| waiting["reason"] == *reason) && waiting["message"].as_str().is_some_and(|m| m.contains(words))
            }
        };
        place.until("never-pulled", "wait", waits(&["ErrImageNeverPull"], "pull policy of Never"))?;
        let errors = &["CreateContainerError", "CreateContainerConfigError", "RunContainerError"];
        place.until("no-command", "wait", waits(errors, "no command"))?;
        place.until("unknown-user", "wait", waits(errors, "ghost"))?;
        place.until("unknown-group", "wait", waits(errors, "ghosts"))?;
        place.until("missing-key", "wait", waits(&["CreateContainerConfigError"], "word"))?;
        for (name, words) in [("missing-command", "/does/not/exist"), ("not-executable", "/etc/passwd")] {
            let found = place.until_phase(name, "Failed")?;
            let ended = &container(&found, "main")["state"]["terminated"];
            ensure!(ended["reason"] == "StartError" && ended["exitCode"] == 128, "{name}: {ended}");
            ensure!(
                ended["message"].as_str().is_some_and(|text| text.contains(words)),
                "{name}: {ended}"
            );
        }
        place.create(&[json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words"}, "stringData": {"word": "mended"}})])?;
        let found = place.until_ready("missing-key")?;
        ensure!(container(&found, "main")["restartCount"] == 0, "{}", found["status"]);
        place.until_logs("missing-key", "mended")
    })
}

fn namesakes(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-namesakes", |place| {
        let say = |word: &str| pod("same", sh(&format!("echo {word}; {STAY}")));
        place.create(&[say("first")])?;
        place.until_ready("same")?;
        let first = Identity::of(place, "same")?;
        // Gracefully first, then with the first one still on its way out.
        place.kubectl(&["delete", "pod", "same", "--wait=false"])?;
        until_gone(place, "same")?;
        place.create(&[say("second")])?;
        place.until_ready("same")?;
        let second = Identity::of(place, "same")?;
        place.kubectl(&["delete", "pod", "same", "--force", "--grace-period=0"])?;
        place.create(&[say("third")])?;
        place.until_ready("same")?;
        let third = Identity::of(place, "same")?;
        ensure!(first.process != second.process && second.process != third.process);
        place.until_logs("same", "third")
    })
}

fn unsupported(cluster: &Cluster) -> Result<()> {
    let fields = [
        (
            "propagation",
            "/spec/containers/0/volumeMounts",
            json!([{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer"}]),
            "spec.containers[0].volumeMounts[0].mountPropagation (a pod's mounts are its own kernel's",
        ),
        (
            "claim",
            "/spec/volumes",
            json!([{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]),
            "spec.volumes[0].persistentVolumeClaim",
        ),
        ("hostnetwork", "/spec/hostNetwork", json!(true), "spec.hostNetwork"),
        ("hostpid", "/spec/hostPID", json!(true), "spec.hostPID"),
        ("hostipc", "/spec/hostIPC", json!(true), "spec.hostIPC"),
        (
            "profile",
            "/spec/securityContext",
            json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
            "spec.securityContext.appArmorProfile.type",
        ),
    ];
    let host = cluster.host(0)?;
    within(cluster, "pods-unsupported", |place| {
        // By nodeName: a claim that does not exist would never get past the scheduler.
        let node = ("/spec/nodeName", json!(host.name));
        let pods: Vec<_> = fields
            .iter()
            .map(|(name, path, value, _)| {
                // What is mounted has to be there.
                let volume = ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]));
                with(pod(name, sh(STAY)), &[volume, (path, value.clone()), node.clone()])
            })
            .collect();
        place.create(&pods)?;
        for (name, _, _, path) in &fields {
            let found = place.until_phase(name, "Failed")?;
            let status = &found["status"];
            ensure!(status["reason"] == "PodFeatureUnsupported", "{name}: {status}");
            ensure!(
                status["message"].as_str().is_some_and(|message| message.contains(path)),
                "{name}: {status}"
            );
        }
        Ok(())
    })
}
