//! hostPath volumes: directories and files of the host in pods that have kernels of their own.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon, templates,
    workload::{PATIENCE, Place, STAY, line, pod, pod_of, sh, with, within},
};
use crate::{
    Cluster,
    host_config::{FIXED, SHARED},
    wait_for,
};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "pods read and write what an allowed hostPath holds, with its owners and modes, and see what the others write",
        hosts: 1,
        kvmlet: true,
        run: shared,
    },
    Test {
        name: "a hostPath that is not allowed is refused by the key that would allow it",
        hosts: 1,
        kvmlet: true,
        run: refused,
    },
    Test {
        name: "a link in a hostPath leads a pod nowhere on the host, nor another pod's volume out of its prefix",
        hosts: 1,
        kvmlet: true,
        run: links,
    },
    Test {
        name: "a hostPath outlives the daemon, and the death of its process is an error of the pod's files only",
        hosts: 1,
        kvmlet: true,
        run: survives,
    },
];

fn volume(name: &str, path: &str, kind: &str) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": kind}})
}

fn mount(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path})
}

/// A pod that has all of `volumes`, mounted in its one container.
fn with_volumes(name: &str, script: &str, volumes: &[Value], mounts: &[Value]) -> Value {
    let container = with(sh(script), &[("/volumeMounts", json!(mounts))]);
    with(pod(name, container), &[("/spec/volumes", json!(volumes))])
}

/// Does `body` with an empty folder of this name in what pods may mount, and takes it away.
fn folder(place: &Place<'_>, name: &str, body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let host = place.cluster.host(0)?;
    let path = format!("{SHARED}/{name}");
    host.sh(&format!("rm -rf {path}; mkdir -p {path}"))?;
    let done = body(&path);
    if done.is_ok() {
        host.sh(&format!("rm -r {path}"))?;
    }
    done
}

fn shared(cluster: &Cluster) -> Result<()> {
    templates::template(cluster.host(0)?)?;
    within(cluster, "host-path", |place| {
        folder(place, "work", |path| {
            let host = cluster.host(0)?;
            host.sh(&format!(
                "cd {path}; chmod 1777 .; echo from-host > given; chown 1234:5678 given; chmod 640 given; mkdir deep; echo below > deep/file; mkdir -p {FIXED}; \
                 echo fixed > {FIXED}/file; head -c 3000000 /dev/urandom > large"
            ))?;
            let sum = host.sh(&format!("md5sum < {path}/large | cut -d ' ' -f 1"))?;
            let script = "cd /data; echo given=$(stat -c %u:%g:%a given):$(cat given); echo large=$(md5sum < large | cut -d ' ' -f 1); cp large copy
                echo from-pod > made; chown 77:88 made; chmod 604 made; mkdir -m 2775 sub; echo x > sub/x; mv sub/x sub/y; ln sub/y sub/z; ln -s y sub/l
                echo links=$(stat -c %h sub/y):$(cat sub/l):$(ls sub | tr '\\n' ' '); mkfifo pipe; mknod null c 1 3 2>&1 || true
                echo one >> log; (cd deep; echo deep=$(cat file)); echo fixed=$(cat /fixed/file); touch /fixed/new 2>&1
                echo single=$(cat /single); echo more >> /single; echo subpath=$(cat /sub/file); echo new=$(stat -c %a:%u /made-by-node)
                truncate -s 100 copy; echo size=$(stat -c %s copy); sync; echo done; ";
            let volumes = [
                volume("data", path, "Directory"),
                volume("fixed", FIXED, "Directory"),
                volume("single", &format!("{path}/given"), "File"),
                volume("new", &format!("{path}/new/er"), "DirectoryOrCreate"),
            ];
            let mounts = [
                mount("data", "/data"),
                json!({"name": "fixed", "mountPath": "/fixed", "readOnly": true}),
                mount("single", "/single"),
                json!({"name": "data", "mountPath": "/sub", "subPath": "deep", "readOnly": true}),
                mount("new", "/made-by-node"),
            ];
            place.create(&[with_volumes("writes", &format!("{script}{STAY}"), &volumes, &mounts)])?;
            place.until_event("writes", "MachineStarted", "as a copy of the node's template in ")?;
            place.until_says("writes", "done")?;
            let said = place.kubectl(&["logs", "writes"])?;
            for (key, value) in [
                ("given", "1234:5678:640:from-host"),
                ("large", sum.trim()),
                ("links", "2:x:l y z"),
                ("deep", "below"),
                ("fixed", "fixed"),
                ("single", "from-host"),
                ("subpath", "below"),
                ("new", "755:0"),
                ("size", "100"),
            ] {
                ensure!(line(&said, key)?.trim() == value, "{key} is not {value:?}: {said}");
            }
            ensure!(
                said.contains("Read-only file system") && said.contains("null: Operation not permitted"),
                "{said}"
            );
            let seen = host.sh(&format!(
                "cd {path}; stat -c '%n=%u:%g:%a' made sub; cat given made; stat -c 'pipe=%F' pipe; ls null 2>&1 || true"
            ))?;
            for words in [
                "made=77:88:604",
                "sub=0:0:2775",
                "from-host\nmore\nfrom-pod",
                "pipe=fifo",
                "No such file",
            ] {
                ensure!(seen.contains(words), "{words:?} is not in {seen}");
            }
            // Another pod, of another user, and two containers of it.
            let user = |script: &str, name: &str| {
                let fields = [
                    ("/securityContext", json!({"runAsUser": 77, "runAsGroup": 88})),
                    ("/volumeMounts", json!([mount("data", "/data")])),
                    ("/name", json!(name)),
                ];
                with(sh(script), &fields)
            };
            let two = [
                user(
                    &format!("cd /data; cat made; echo again > made; cat given; echo mine > mine; {STAY}"),
                    "main",
                ),
                user(
                    &format!("until grep -q again /data/made; do sleep 0.2; done; echo beside; {STAY}"),
                    "side",
                ),
            ];
            let second = with(pod_of("reads", json!(two)), &[("/spec/volumes", json!([volume("data", path, "")]))]);
            place.create(&[second])?;
            place.until_ready("reads")?;
            place.until_says("reads", "Permission denied")?;
            let said = place.kubectl(&["logs", "reads", "-c", "side"]);
            wait_for("the other container to see it", PATIENCE, || {
                ensure!(place.kubectl(&["logs", "reads", "-c", "side"])?.contains("beside"), "{said:?}");
                Ok(Some(()))
            })?;
            ensure!(host.sh(&format!("stat -c %u:%g {path}/mine"))?.trim() == "77:88");
            // Back in the first pod, within what a guest believes.
            wait_for("the first pod to see it", PATIENCE, || {
                ensure!(place.exec("writes", "cat /data/made")?.trim() == "again");
                Ok(Some(()))
            })
        })
    })
}

fn refused(cluster: &Cluster) -> Result<()> {
    within(cluster, "host-path-refused", |place| {
        let node = json!(cluster.host(0)?.name);
        let refused = |name: &str, path: &str, kind: &str| {
            let pod = with_volumes(name, STAY, &[volume("v", path, kind)], &[mount("v", "/v")]);
            with(pod, &[("/spec/nodeName", node.clone())])
        };
        let cases = [
            ("etc", "/etc", "", "HostPathNotAllowed", "volumes.hostPath.allowed"),
            (
                "beside",
                "/srv/shared-not",
                "Directory",
                "HostPathNotAllowed",
                "volumes.hostPath.allowed",
            ),
            ("written", FIXED, "", "HostPathNotAllowed", "readOnly"),
            ("socket", SHARED, "Socket", "PodFeatureUnsupported", "hostPath.type"),
            ("device", SHARED, "CharDevice", "PodFeatureUnsupported", "hostPath.type"),
        ];
        place.create(&cases.map(|(name, path, kind, ..)| refused(name, path, kind)))?;
        for (name, _, _, reason, words) in cases {
            let found = place.until_phase(name, "Failed")?;
            let status = &found["status"];
            ensure!(status["reason"] == reason, "{name}: {status}");
            ensure!(
                status["message"].as_str().is_some_and(|text| text.contains(words)),
                "{name}: {status}"
            );
            place.until_event(name, reason, words)?;
        }
        Ok(())
    })
}

fn links(cluster: &Cluster) -> Result<()> {
    within(cluster, "host-path-links", |place| {
        folder(place, "links", |path| {
            let host = cluster.host(0)?;
            host.sh(&format!(
                "echo not-for-pods > /srv/secret; cd {path}; ln -s /srv/secret absolute; ln -s ../../secret relative; ln -s / root; ln -s ../.. up"
            ))?;
            let script = "cd /data; for f in absolute relative root/srv/secret up/secret ../srv/secret ../../srv/secret; do \
                if cat $f; then echo reached; fi; done 2>&1; ln -s /srv made; ls root/ | grep -q bin && echo own-root; echo done; ";
            let volumes = [volume("v", path, "Directory")];
            place.create(&[with_volumes("climbs", &format!("{script}{STAY}"), &volumes, &[mount("v", "/data")])])?;
            place.until_says("climbs", "done")?;
            let said = place.kubectl(&["logs", "climbs"])?;
            ensure!(!said.contains("not-for-pods") && !said.contains("reached"), "{said}");
            ensure!(said.contains("own-root"), "a link to the root is the container's: {said}");
            // The link that this pod made is no way for another pod's volume.
            let other = with_volumes("follows", STAY, &[volume("v", &format!("{path}/made"), "")], &[mount("v", "/v")]);
            place.create(&[other])?;
            place.until_event("follows", "FailedMount", "leads out of")?;
            host.sh("rm /srv/secret").map(drop)
        })
    })
}

fn survives(cluster: &Cluster) -> Result<()> {
    within(cluster, "host-path-survives", |place| {
        folder(place, "survives", |path| {
            let host = cluster.host(0)?;
            let script = format!("echo a > /data/a && echo ready; {STAY}");
            let volumes = [volume("v", path, "")];
            place.create(&[with_volumes("stays", &script, &volumes, &[mount("v", "/data")])])?;
            place.until_says("stays", "ready")?;
            let find = "pgrep -f '^[^ ]* fs( |$)'";
            let process = host.sh(find)?.trim().to_owned();
            ensure!(!process.is_empty() && !process.contains('\n'), "one process a directory: {process}");
            let status = host.sh(&format!(
                "cat /proc/{process}/cgroup; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/{process}/status; wc -l < /proc/{process}/mounts"
            ))?;
            for words in ["/kvmlet.slice/", "00000000000000df", "NoNewPrivs:\t1", "Seccomp:\t2"] {
                ensure!(status.contains(words), "{words} is not in {status}");
            }
            host.kill_daemon()?;
            daemon::restart(cluster)?;
            ensure!(host.sh(find)?.trim() == process, "the daemon's death ended it");
            place.exec("stays", "echo b > /data/b; cat /data/a")?;
            ensure!(host.sh(&format!("cat {path}/b"))?.trim() == "b");
            host.sh(&format!("kill -9 {process}"))?;
            let said = place.exec("stays", "cat /data/a 2>&1; ls /data 2>&1; echo alive")?;
            ensure!(
                said.contains("alive") && (said.contains("not connected") || said.contains("I/O error")),
                "{said}"
            );
            place.until_ready("stays").map(drop)
        })
    })
}
