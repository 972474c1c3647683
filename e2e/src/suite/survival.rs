//! The daemon dies, at moments good and bad: what runs goes on, what was deleted goes, what is new is new.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{self, Identity, log_file, restart, until_ticks},
    workload::{PATIENCE, Place, STAY, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, Host, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a daemon that is killed and started again finds its pods as they were",
        hosts: 1,
        kvmlet: true,
        run: untouched,
    },
    Test {
        name: "what is deleted or made anew while the daemon is dead is so after its start",
        hosts: 1,
        kvmlet: true,
        run: meanwhile,
    },
    Test {
        name: "a daemon killed at any moment leaves whole pods or none",
        hosts: 1,
        kvmlet: true,
        run: any_moment,
    },
    Test {
        name: "a container whose log is full waits for the dead daemon and loses no line",
        hosts: 1,
        kvmlet: true,
        run: full_log,
    },
];

/// Counts, ten times a second.
pub(super) const TICKS: &str = "n=0; trap 'exit 0' TERM; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";

fn untouched(cluster: &Cluster) -> Result<()> {
    within(cluster, "survival", |place| {
        let host = cluster.host(0)?;
        let containers = json!([
            with(sh(TICKS), &[("/name", "ticks".into())]),
            with(sh(STAY), &[("/name", "quiet".into())])
        ]);
        place.create(&[pod_of("pair", containers)])?;
        place.until_ready("pair")?;
        let before = Identity::of(place, "pair")?;
        let file = log_file(place, "pair", "ticks")?;
        let on_disk = || host.sh(&format!("cat {file}"));
        for kill in [true, false] {
            if kill {
                host.kill_daemon()?;
            } else {
                host.stop_daemon()?;
            }
            let seen = until_ticks(on_disk, 1)?;
            until_ticks(on_disk, seen + 15).context("while the daemon is dead")?;
            restart(cluster)?;
            let seen = until_ticks(on_disk, seen)?;
            until_ticks(|| place.kubectl(&["logs", "pair", "-c", "ticks"]), seen + 15)?;
            ensure!(place.kubectl(&["exec", "pair", "-c", "quiet", "--", "echo", "well"])? == "well");
            let after = Identity::of(place, "pair")?;
            ensure!(after == before, "{before:?} has become {after:?}");
        }
        Ok(())
    })
}

fn meanwhile(cluster: &Cluster) -> Result<()> {
    within(cluster, "survival-meanwhile", |place| {
        let host = cluster.host(0)?;
        let names = ["deleted", "forced", "renewed"];
        place.create(&names.map(|name| pod(name, sh(STAY))))?;
        let mut old = Vec::new();
        for name in names {
            place.until_ready(name)?;
            old.push(Identity::of(place, name)?);
        }
        host.kill_daemon()?;
        place.kubectl(&["delete", "pod", "deleted", "--wait=false"])?;
        place.kubectl(&["delete", "pod", "forced", "renewed", "--force", "--grace-period=0"])?;
        place.create(&[pod("renewed", sh(STAY))])?;
        for identity in &old {
            daemon::process(host, &identity.uid).context("a machine must not end with the daemon")?;
        }
        restart(cluster)?;
        for name in ["deleted", "forced"] {
            until_gone(place, name)?;
        }
        place.until_ready("renewed")?;
        let new = Identity::of(place, "renewed")?;
        ensure!(new.uid != old[2].uid && new.process != old[2].process, "{new:?} is the old pod");
        for identity in &old {
            let left = format!("ls -d /proc/{} /var/lib/kvmlet/pods/{}", identity.process, identity.uid);
            wait_for("the old pods' machines and records to be gone", PATIENCE, || {
                Ok(host.sh(&left).is_err().then_some(()))
            })?;
        }
        Ok(())
    })
}

/// Waits until the object is gone.
pub(super) fn until_gone(place: &Place<'_>, pod: &str) -> Result<()> {
    wait_for(&format!("{pod} to be gone"), PATIENCE, || {
        let left = place.kubectl(&["get", "pod", pod, "--ignore-not-found", "-o", "name"])?;
        ensure!(left.is_empty(), "{}", place.get(pod)?["status"]);
        Ok(Some(()))
    })
}

/// Waits until the host has nothing of a pod any more: a pod that has ended may leave the API server before its machine is gone.
pub(super) fn until_released(host: &Host, uid: &str) -> Result<()> {
    wait_for("the host to have nothing of the pod", Duration::from_secs(60), || {
        let left = host.run(&["sh", "-c", &format!("ls -d /var/lib/kvmlet/pods/{uid} /var/log/pods/*_{uid}")])?;
        Ok(left.text().is_empty().then_some(()))
    })
}

/// Numbers that are the same each time: a moment that fails can be looked at again.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

fn any_moment(cluster: &Cluster) -> Result<()> {
    within(cluster, "survival-any-moment", |place| {
        let host = cluster.host(0)?;
        for seed in 1..=3 {
            let mut dice = Dice(seed);
            let names: Vec<String> = (0..6).map(|number| format!("round-{seed}-{number}")).collect();
            place.create(&names.iter().map(|name| pod(name, sh(STAY))).collect::<Vec<_>>())?;
            let (leave, stay) = names.split_at(3);
            for name in leave {
                let moment = Duration::from_millis(200 + dice.roll(4000));
                let begun = Instant::now();
                // Not a wait for something: the point is that it is any moment.
                std::thread::sleep(moment / 2);
                place.kubectl(&["delete", "pod", name, "--wait=false"])?;
                std::thread::sleep(moment.saturating_sub(begun.elapsed()));
                host.kill_daemon()?;
                eprintln!("  seed {seed}: killed {} ms after the last start", begun.elapsed().as_millis());
                restart(cluster)?;
            }
            for name in leave {
                until_gone(place, name)?;
            }
            for name in stay {
                let found = place.until_ready(name)?;
                ensure!(
                    container(&found, "main")["restartCount"] == 0,
                    "{name} was restarted: {}",
                    found["status"]
                );
            }
            let wanted: Vec<Value> = stay
                .iter()
                .map(|name| Ok(place.get(name)?["metadata"]["uid"].clone()))
                .collect::<Result<_>>()?;
            let records = host.sh("ls /var/lib/kvmlet/pods")?;
            let extra = records.lines().find(|uid| !wanted.iter().any(|wanted| wanted == uid));
            ensure!(extra.is_none(), "a record of no pod is left: {extra:?}");
            place.kubectl(&["delete", "pod", "--all", "--wait=false"])?;
        }
        Ok(())
    })
}

fn full_log(cluster: &Cluster) -> Result<()> {
    const LINES: usize = 1500;
    daemon::with_config(cluster, "logs: {maxSize: 64Ki}\n", || {
        within(cluster, "survival-full-log", |place| {
            let host = cluster.host(0)?;
            let wide = "x".repeat(100);
            let script = format!(
                "while [ ! -e /go ]; do sleep 1; done; sleep 5; n=0; while [ $n -lt {LINES} ]; do n=$((n+1)); echo {wide} tick $n; done; {STAY}"
            );
            place.create(&[pod("flood", sh(&script))])?;
            place.until_ready("flood")?;
            let file = log_file(place, "flood", "main")?;
            place.exec("flood", "touch /go")?;
            host.kill_daemon()?;
            let size = || -> Result<u64> { host.sh(&format!("stat -c %s {file}"))?.parse().context("read a size") };
            let full = wait_for("the log to be full", PATIENCE, || Ok(Some(size()?).filter(|size| *size > 60 << 10)))?;
            // It could go on within milliseconds: it does not.
            std::thread::sleep(Duration::from_secs(3));
            let then = size()?;
            ensure!(full <= 64 << 10 && then <= 64 << 10, "the log has {full}, then {then} bytes");
            restart(cluster)?;
            let all = format!("cd $(dirname {file}) && cat $(ls 0.log.* | sort) 0.log");
            until_ticks(|| host.sh(&all), LINES)?;
            let parts = host.sh(&format!("ls $(dirname {file}) | wc -l"))?;
            ensure!(
                parts.parse::<usize>().is_ok_and(|parts| parts > 2),
                "it was not rotated: {parts} file"
            );
            Ok(())
        })
    })
}
