//! Volumes that follow their source while the pod runs, tokens that are renewed, and what a volume may hold.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{Identity, restart},
    workload::{Place, STAY, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, wait_for};

/// Longest until a change has reached a container on an emulated host that has other work to do; the kubelet takes up to two minutes.
const SOON: Duration = Duration::from_secs(30);

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a config map that changes is seen by its containers within seconds, and never half",
        hosts: 1,
        kvmlet: true,
        run: whole,
    },
    Test {
        name: "volumes follow secrets that come and go and the pod's own labels, and subPath does not follow",
        hosts: 1,
        kvmlet: true,
        run: sources,
    },
    Test {
        name: "what changed while the daemon was away is delivered when it is back, and nothing else",
        hosts: 1,
        kvmlet: true,
        run: away,
    },
    Test {
        name: "a token past four fifths of its life is renewed and good for the API server",
        hosts: 1,
        kvmlet: true,
        run: token,
    },
    Test {
        name: "a pod is evicted when an emptyDir holds more than its sizeLimit, or its containers wrote more than they may",
        hosts: 1,
        kvmlet: true,
        run: evicted,
    },
    Test {
        name: "subPathExpr is expanded from the container's environment, and refused in the kubelet's words where it leaves the volume",
        hosts: 1,
        kvmlet: true,
        run: expression,
    },
];

/// Waits until a script in a running container writes this.
pub(super) fn until_exec(place: &Place<'_>, pod: &str, script: &str, expected: &str) -> Result<()> {
    wait_for(&format!("{script:?} in {pod} to write {expected:?}"), SOON, || {
        let said = place.exec(pod, script)?;
        ensure!(said.trim() == expected, "it has written {said:?}");
        Ok(Some(()))
    })
}

pub(super) fn set(place: &Place<'_>, kind: &str, name: &str, data: &Value) -> Result<()> {
    let patch = json!({"data": data}).to_string();
    place.kubectl(&["patch", kind, name, "--type=merge", "-p", &patch]).map(drop)
}

pub(super) fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn mounted(script: &str, mounts: Value) -> Value {
    with(sh(script), &[("/volumeMounts", mounts)])
}

fn whole(cluster: &Cluster) -> Result<()> {
    // Reads both files by one look at ..data, over and over; they are of the same generation, or something was half.
    let script = "trap 'exit 0' TERM; n=0; while :; do d=/v/$(readlink /v/..data); a=$(cat $d/a 2>/dev/null); b=$(cat $d/b 2>/dev/null);
        if [ -n \"$a\" ] && [ -n \"$b\" ] && [ \"$a\" != \"$b\" ]; then echo half=$a,$b; fi; n=$((n+1)); echo $n > /tmp/next; mv /tmp/next /tmp/n; done";
    within(cluster, "follow-whole", |place| {
        let volumes = ("/spec/volumes", json!([{"name": "v", "configMap": {"name": "pair"}}]));
        place.create(&[map("pair", json!({"a": "0", "b": "0"}))])?;
        let main = mounted(script, json!([{"name": "v", "mountPath": "/v"}]));
        place.create(&[with(pod("reads", main), &[volumes])])?;
        place.until_ready("reads")?;
        for generation in 1..=10 {
            let value = generation.to_string();
            set(place, "configmap", "pair", &json!({"a": value, "b": value}))?;
            until_exec(place, "reads", "cat /v/a /v/b", &format!("{value}{value}"))?;
        }
        ensure!(
            place.exec("reads", "ls -A /v | tr '\\n' ' '")?.split_whitespace().count() == 4,
            "something old is left"
        );
        let rounds: u64 = place
            .exec("reads", "cat /tmp/n")?
            .trim()
            .parse()
            .context("how often it has looked")?;
        ensure!(rounds >= 10, "it has looked {rounds} times only");
        let said = place.kubectl(&["logs", "reads"])?;
        ensure!(said.is_empty(), "{said}");
        Ok(())
    })
}

fn sources(cluster: &Cluster) -> Result<()> {
    within(cluster, "follow-sources", |place| {
        let volumes = json!([
            {"name": "map", "configMap": {"name": "settings"}},
            {"name": "late", "secret": {"secretName": "late", "optional": true}},
            {"name": "fixed", "configMap": {"name": "fixed"}},
            {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}},
            {"name": "all", "projected": {"sources": [{"configMap": {"name": "settings", "items": [{"key": "colour", "path": "deep/colour"}]}},
                {"secret": {"name": "late", "optional": true}}]}}
        ]);
        let mounts = ["map", "late", "fixed", "down", "all"].map(|name| json!({"name": name, "mountPath": format!("/v/{name}")}));
        let sub = json!({"name": "map", "mountPath": "/etc/colour", "subPath": "colour"});
        let mounts: Vec<_> = mounts.into_iter().chain([sub]).collect();
        let fields = [
            ("/spec/volumes", volumes),
            ("/metadata/labels", json!({"app": "one"})),
            ("/metadata/annotations", json!({"note": "first"})),
        ];
        place.create(&[
            map("settings", json!({"colour": "green", "shape": "round"})),
            with(map("fixed", json!({"k": "v"})), &[("/immutable", json!(true))]),
        ])?;
        place.create(&[with(pod("follows", mounted(STAY, json!(mounts))), &fields)])?;
        place.until_ready("follows")?;
        let before = Identity::of(place, "follows")?;
        ensure!(place.exec("follows", "ls /v/late; cat /v/fixed/k")? == "v");

        set(
            place,
            "configmap",
            "settings",
            &json!({"colour": "red", "shape": null, "size": "small"}),
        )?;
        until_exec(
            place,
            "follows",
            "cat /v/map/colour /v/all/deep/colour; ls /v/map | tr '\\n' ' '",
            "redredcolour size",
        )?;
        ensure!(place.exec("follows", "cat /etc/colour")? == "green", "a subPath has followed");

        place.kubectl(&["create", "secret", "generic", "late", "--from-literal=word=hello"])?;
        until_exec(place, "follows", "cat /v/late/word /v/all/word", "hellohello")?;
        place.kubectl(&["delete", "secret", "late"])?;
        until_exec(place, "follows", "ls /v/late; ls /v/all", "deep")?;

        place.kubectl(&["label", "pod", "follows", "app=two", "tier=web", "--overwrite"])?;
        place.kubectl(&["annotate", "pod", "follows", "note=second", "--overwrite"])?;
        until_exec(
            place,
            "follows",
            "cat /v/down/labels; echo; cat /v/down/note",
            "app=\"two\"\ntier=\"web\"\nsecond",
        )?;

        // What is needed and goes leaves its content, and that is told.
        place.kubectl(&["delete", "configmap", "settings"])?;
        place.until_event("follows", "FailedMount", "configmap \"settings\" not found")?;
        ensure!(place.exec("follows", "cat /v/map/colour")? == "red");
        place.create(&[map("settings", json!({"colour": "blue"}))])?;
        until_exec(place, "follows", "cat /v/map/colour", "blue")?;
        ensure!(Identity::of(place, "follows")? == before, "the pod was disturbed");
        Ok(())
    })
}

fn away(cluster: &Cluster) -> Result<()> {
    within(cluster, "follow-away", |place| {
        let host = cluster.host(0)?;
        let volumes = json!([{"name": "v", "configMap": {"name": "changes"}}, {"name": "w", "configMap": {"name": "stays"}}]);
        let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}]);
        place.create(&[map("changes", json!({"k": "before"})), map("stays", json!({"k": "same"}))])?;
        place.create(&[with(pod("waits", mounted(STAY, mounts)), &[("/spec/volumes", volumes)])])?;
        place.until_ready("waits")?;
        let token = "cat /var/run/secrets/kubernetes.io/serviceaccount/token";
        let first = place.exec("waits", token)?;
        let links = "readlink /w/..data; readlink /var/run/secrets/kubernetes.io/serviceaccount/..data";
        let before = (Identity::of(place, "waits")?, place.exec("waits", links)?);
        host.kill_daemon()?;
        set(place, "configmap", "changes", &json!({"k": "after"}))?;
        restart(cluster)?;
        until_exec(place, "waits", "cat /v/k", "after")?;
        let after = (Identity::of(place, "waits")?, place.exec("waits", links)?);
        ensure!(after == before, "{before:?} has become {after:?}");
        ensure!(place.exec("waits", token)? == first, "a token was renewed before its time");
        Ok(())
    })
}

/// Asks the API server who the bearer of the pod's token is.
const WHO: &str = "import json, os, ssl, urllib.request
url = 'https://%s:%s/apis/authentication.k8s.io/v1/selfsubjectreviews' % (os.environ['KUBERNETES_SERVICE_HOST'], os.environ['KUBERNETES_SERVICE_PORT'])
body = json.dumps({'apiVersion': 'authentication.k8s.io/v1', 'kind': 'SelfSubjectReview'}).encode()
head = {'Authorization': 'Bearer ' + open('/v/token').read(), 'Content-Type': 'application/json'}
trust = ssl.create_default_context(cafile='/v/ca.crt')
answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body, head), context=trust, timeout=60))
print(answer['status']['userInfo']['username'])";

fn token(cluster: &Cluster) -> Result<()> {
    within(cluster, "follow-token", |place| {
        let host = cluster.host(0)?;
        let volumes = json!([{"name": "v", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            {"configMap": {"name": "kube-root-ca.crt"}}]}}]);
        let main = with(
            json!({"image": "large", "command": ["python3", "-c", "import time\nwhile True: time.sleep(1)"]}),
            &[("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))],
        );
        let fields = [("/spec/volumes", volumes), ("/spec/automountServiceAccountToken", json!(false))];
        place.create(&[with(pod("bears", main), &fields)])?;
        let found = place.until_ready("bears")?;
        let read = || place.exec("bears", "cat /v/token");
        let first = read()?;
        // As if the daemon had been away for an hour: its record says when the token was had, and never what it is.
        let uid = found["metadata"]["uid"].as_str().context("no UID")?;
        let path = format!("/var/lib/kvmlet/pods/{uid}/volumes.json");
        host.kill_daemon()?;
        let text = host.sh(&format!("cat {path}"))?;
        let signature = first.rsplit('.').next().unwrap_or_default();
        ensure!(!text.contains(signature), "the record holds the token");
        let mut record: Value = serde_json::from_str(&text).context("read the record")?;
        let old = "2020-01-01T00:00:00Z";
        record["tokens"][0]["issue"]["at"] = old.into();
        record["volumes"]["v"]["tokens"][0] = old.into();
        host.put(&path, 0o600, record.to_string().as_bytes())?;
        restart(cluster)?;
        let second = wait_for("the token to be another", SOON, || {
            let now = read()?;
            ensure!(now != first, "it is the old one");
            Ok(Some(now))
        })?;
        ensure!(second.starts_with("ey"), "it is none");
        let said = place.kubectl(&["exec", "bears", "--", "python3", "-c", WHO])?;
        ensure!(said.trim() == "system:serviceaccount:follow-token:default", "{said}");
        Ok(())
    })
}

fn evicted(cluster: &Cluster) -> Result<()> {
    within(cluster, "follow-evicted", |place| {
        let volumes = |limit: &str| ("/spec/volumes", json!([{"name": "cache", "emptyDir": {"sizeLimit": limit}}]));
        let mount = json!([{"name": "cache", "mountPath": "/cache"}]);
        let fill = |to: &str| {
            format!("dd if=/dev/zero of=/cache/f bs=1M count=4 2>/dev/null; dd if=/dev/zero of={to} bs=1M count=40 2>/dev/null; {STAY}")
        };
        place.create(&[
            // What lies elsewhere on the disk does not count.
            with(pod("modest", mounted(&fill("/tmp/g"), mount.clone())), &[volumes("8Mi")]),
            with(pod("greedy", mounted(&fill("/cache/g"), mount)), &[volumes("8Mi")]),
            with(
                pod(
                    "writer",
                    sh(&format!("dd if=/dev/zero of=/g bs=1M count=40 2>/dev/null; sync; {STAY}")),
                ),
                &[("/spec/containers/0/resources", json!({"limits": {"ephemeral-storage": "16Mi"}}))],
            ),
            // Together they may write more than one of them alone.
            pod_of(
                "unequal",
                json!([
                    with(
                        sh(&format!("dd if=/dev/zero of=/g bs=1M count=24 2>/dev/null; sync; {STAY}")),
                        &[
                            ("/name", json!("first")),
                            ("/resources", json!({"limits": {"ephemeral-storage": "8Mi"}}))
                        ],
                    ),
                    with(
                        sh(STAY),
                        &[
                            ("/name", json!("second")),
                            ("/resources", json!({"limits": {"ephemeral-storage": "512Mi"}}))
                        ]
                    ),
                ]),
            ),
        ])?;
        let unequal = place.until_phase("unequal", "Failed")?["status"].take();
        let message = "Container first exceeded its local ephemeral storage limit \"8Mi\". ";
        ensure!(unequal["reason"] == "Evicted" && unequal["message"] == message, "{unequal}");
        let writer = place.until_phase("writer", "Failed")?["status"].take();
        let message = "Pod ephemeral local storage usage exceeds the total limit of containers 16Mi. ";
        ensure!(writer["reason"] == "Evicted" && writer["message"] == message, "{writer}");
        let found = place.until_phase("greedy", "Failed")?;
        let status = &found["status"];
        ensure!(status["reason"] == "Evicted", "{status}");
        let message = "Usage of EmptyDir volume \"cache\" exceeds the limit \"8Mi\". ";
        ensure!(status["message"] == message, "{status}");
        place.until_event("greedy", "Evicted", message.trim())?;
        ensure!(!container(&found, "main")["state"]["terminated"].is_null(), "{status}");
        place.until_ready("modest")?;
        ensure!(place.exec("modest", "echo well")?.trim() == "well");
        Ok(())
    })
}

fn expression(cluster: &Cluster) -> Result<()> {
    within(cluster, "follow-expression", |place| {
        let volumes = ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]));
        let env = |value: &str| json!([{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "PART", "value": value}]);
        let of = |name: &str, value: &str, expression: &str| {
            let main = with(
                sh("echo here > /part/file; ls /whole/logs /whole/logs/*; sleep 1"),
                &[
                    ("/env", env(value)),
                    (
                        "/volumeMounts",
                        json!([{"name": "v", "mountPath": "/part", "subPathExpr": expression}, {"name": "v", "mountPath": "/whole"}]),
                    ),
                ],
            );
            with(pod(name, main), &[volumes.clone(), ("/spec/restartPolicy", json!("Never"))])
        };
        place.create(&[
            of("expanded", "x", "logs/$(POD)-$(PART)"),
            of("absolute", "/etc", "$(PART)"),
            of("upwards", "..", "a/$(PART)/b"),
            of("missing", "", "$(PART)"),
        ])?;
        let said = place.output("expanded")?;
        ensure!(said.contains("expanded-x") && said.contains("file"), "{said}");
        for (name, words) in [
            ("absolute", "error SubPath `/etc` must not be an absolute path"),
            ("upwards", "unable to provision SubPath `a/../b`: must not contain '..'"),
            ("missing", "missing value for PART"),
        ] {
            place.until(name, "say what is wrong with its subPathExpr", |found| {
                let waiting = &container(found, "main")["state"]["waiting"];
                waiting["reason"] == "CreateContainerConfigError" && waiting["message"].as_str().is_some_and(|m| m.contains(words))
            })?;
        }
        Ok(())
    })
}
