//! Images that cannot be had, or that no careful host would unpack: each fails where its owner reads it, and leaves nothing on the host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon,
    survival::until_released,
    workload::{STAY, container, pod, sh, with, within},
};
use crate::{Cluster, paths::GATEWAY, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "an image that cannot be had or trusted is refused with its reason, and leaves nothing on the host",
        hosts: 1,
        kvmlet: true,
        run: refused,
    },
    Test {
        name: "links of an image that lead out of it stay within it",
        hosts: 1,
        kvmlet: true,
        run: links,
    },
    Test {
        name: "a full disk while pulling is told, leaves nothing half-made, and is tried again",
        hosts: 1,
        kvmlet: true,
        run: full_disk,
    },
    Test {
        name: "images that no pod needs go when the disk is fuller than it may be, and come again",
        hosts: 1,
        kvmlet: true,
        run: collected,
    },
];

/// What an image's pod must be told, in an event.
const REFUSED: &[(&str, &str)] = &[
    ("busybox:never-was", "not found"),
    ("UPPER/Case", "couldn't parse image name"),
    ("10.89.0.1:5999/library/busybox", "registry is unavailable"),
    ("bad/dotdot", "leaves the image"),
    ("bad/dotdot-inside", "leaves the image"),
    ("bad/not-a-tar", "not a tar archive"),
    ("bad/not-gzip", "not a tar archive"),
    ("bad/torn-gzip", "failed to"),
    ("bad/torn-tar", "not a tar archive"),
    ("bad/hardlink-to-nothing", "failed to unpack"),
    ("bad/wrong-digest", "digest mismatch"),
    ("bad/wrong-diffid", "digest mismatch"),
    ("bad/missing-layer", "failed to pull"),
    ("bad/config-garbage", "failed to pull"),
    ("bad/other-architecture", "no match for platform"),
    ("bad/bomb", "too large"),
    ("bad/zstd-bomb", "too large"),
    ("bad/many-files", "too large"),
];

/// Files that no image needs: what is being written, and layers of which only one of the two files is there.
const HALF_MADE: &str = "cd /var/lib/kvmlet/images && ls tmp/* 2>/dev/null; ls layers | sed 's/[.].*//' | sort | uniq -u";

/// Where files of images that are being made lie, and where escapes aim at.
const LEFT: &str = "cd / && ls -d /tmp/kvmlet-escaped /kvmlet-escaped 2>/dev/null; find /var/lib/kvmlet/images -type f | sort";

fn refused(cluster: &Cluster) -> Result<()> {
    ensure!(GATEWAY.to_string() == "10.89.0.1", "the registry that is down has another address");
    let limits = "images: {maxLayerSize: 64Mi, maxLayerFiles: 10000}\n";
    daemon::with_config(cluster, limits, || {
        within(cluster, "bad-image", |place| {
            let host = cluster.host(0)?;
            // The layer that all of them start with may stay.
            place.create(&[with(pod("good", sh("true")), &[("/spec/restartPolicy", json!("Never"))])])?;
            place.until_phase("good", "Succeeded")?;
            let before = host.sh(LEFT)?;
            let names: Vec<String> = (0..REFUSED.len()).map(|number| format!("bad-{number}")).collect();
            let pods = names.iter().zip(REFUSED);
            place.create(
                &pods
                    .map(|(name, (image, _))| pod(name, json!({"image": image})))
                    .collect::<Vec<_>>(),
            )?;
            for (name, (image, words)) in names.iter().zip(REFUSED) {
                place.until_event(name, "Failed", words).with_context(|| format!("image {image}"))?;
                let reasons = ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RegistryUnavailable"];
                let waits = |found: &Value| {
                    reasons
                        .iter()
                        .any(|reason| container(found, "main")["state"]["waiting"]["reason"] == *reason)
                };
                let found = place.until(name, "wait for its image", waits)?;
                ensure!(found["status"]["phase"] == "Pending", "{image}: {}", found["status"]);
            }
            let invalid = place.get("bad-1")?;
            ensure!(
                container(&invalid, "main")["state"]["waiting"]["reason"] == "InvalidImageName",
                "{}",
                invalid["status"]
            );
            place.kubectl(&["delete", "pod", "--all", "--timeout=110s"])?;
            // Unpacking ends a moment after the pod whose pull it was; whole layers that are good on their own may stay as a cache.
            let news = wait_for("what was begun to be gone again", Duration::from_secs(60), || {
                let after = host.sh(LEFT)?;
                let news: Vec<_> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
                let refused = |line: &&str| line.contains("escaped") || line.contains("partial") || line.contains("tmp");
                ensure!(!news.iter().any(refused), "left: {news:?}");
                Ok(Some(news.len()))
            })?;
            let used: u64 = host
                .sh("du -sm /var/lib/kvmlet/images | cut -f1")?
                .parse()
                .context("measure the store")?;
            eprintln!("  the image store has {used} MiB; new files: {news}");
            Ok(())
        })
    })
}

fn links(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-image-links", |place| {
        let host = cluster.host(0)?;
        let names = [
            "absolute-symlink",
            "relative-symlink",
            "absolute-hardlink",
            "dotdot-hardlink",
            "symlink-hardlink",
        ];
        let script = sh("cat /stolen 2>/dev/null; ls -d /tmp/kvmlet-escaped; true");
        place.create(&names.map(|name| {
            let container = with(script.clone(), &[("/image", json!(format!("bad/{name}")))]);
            with(pod(name, container), &[("/spec/restartPolicy", json!("Never"))])
        }))?;
        let secret = host.sh("cat /etc/hostname")?;
        for name in names {
            let settled = |found: &Value| {
                let waiting = &container(found, "main")["state"]["waiting"]["reason"];
                found["status"]["phase"] == "Succeeded" || ["ErrImagePull", "ImagePullBackOff"].iter().any(|reason| waiting == reason)
            };
            let found = place.until(name, "have run or be refused", settled)?;
            if found["status"]["phase"] == "Succeeded" {
                let said = place.kubectl(&["logs", name])?;
                ensure!(!said.contains(&secret), "{name} reads the host's name: {said}");
            }
        }
        ensure!(
            host.sh("ls /tmp /kvmlet-escaped 2>/dev/null; true")
                .is_ok_and(|list| !list.contains("escaped"))
        );
        Ok(())
    })
}

fn full_disk(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-disk", |place| {
        let host = cluster.host(0)?;
        // Another test may have pulled it.
        host.stop_daemon()?;
        host.sh("rm -rf /var/lib/kvmlet/images")?;
        daemon::restart(cluster)?;
        let free = "df -m --output=avail /var/lib/kvmlet | tail -n 1";
        let available: u64 = host.sh(free)?.trim().parse().context("measure the disk")?;
        let fill = available.saturating_sub(60);
        host.sh(&format!("fallocate -l {fill}M /var/lib/kvmlet/fill"))?;
        let told = (|| {
            let large = json!({"image": "large:gzip", "command": ["sleep", "1000"]});
            place.create(&[pod("large", large)])?;
            place.until_event("large", "Failed", "no space left")?;
            // Between two attempts; whole layers may stay, as the next attempt need not fetch them again.
            wait_for("what was begun to be gone again", Duration::from_secs(60), || {
                let half = host.sh(HALF_MADE)?;
                ensure!(half.is_empty(), "half-made: {half}");
                Ok(Some(()))
            })
        })();
        host.sh("rm /var/lib/kvmlet/fill")?;
        told?;
        place.until_ready("large").map(drop)
    })
}

fn collected(cluster: &Cluster) -> Result<()> {
    // Any disk is as full as this; an image may go as soon as it is idle.
    let always = "images: {gc: {highThresholdPercent: 1, lowThresholdPercent: 0, minAgeSeconds: 0}}\n";
    let once = || {
        with(
            pod("once", json!({"image": "users:latest", "command": ["sh", "-c", "true"]})),
            &[("/spec/restartPolicy", json!("Never"))],
        )
    };
    within(cluster, "images-collected", |place| {
        place.create(&[once(), pod("stays", sh(STAY))])?;
        place.until_phase("once", "Succeeded")?;
        place.until_ready("stays")?;
        let uid = place.uid("once")?;
        place.kubectl(&["delete", "pod", "once", "--timeout=110s"])?;
        // The daemon that starts below looks once, and then in five minutes: nothing may need the image by then.
        until_released(cluster.host(0)?, &uid)?;
        let node = cluster.host(0)?.name.as_str();
        let images = || -> Result<String> { Ok(cluster.kubectl_json(&["get", "node", node])?["status"]["images"].to_string()) };
        wait_for("the Node to list the image", Duration::from_secs(60), || {
            let here = images()?;
            ensure!(here.contains("users:latest"), "images are {here}");
            Ok(Some(()))
        })?;
        daemon::with_config(cluster, always, || {
            wait_for("the image that no pod needs to be gone", Duration::from_secs(60), || {
                let left = images()?;
                ensure!(!left.contains("users"), "images are {left}");
                Ok(Some(()))
            })?;
            ensure!(images()?.contains("busybox"), "an image in use is gone: {}", images()?);
            ensure!(place.exec("stays", "ls /bin/busybox")? == "/bin/busybox", "the pod's image is gone");
            place.create(&[once()])?;
            place.until_phase("once", "Succeeded").map(drop)
        })
    })
}
