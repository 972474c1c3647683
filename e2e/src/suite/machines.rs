//! What a node's configuration gives to all machines: a watchdog, limits of what they read and write.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::{self, Identity},
    workload::{PATIENCE, Place, STAY, container, pod, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a guest whose kernel stands still is ended by its watchdog, and its pod starts again",
        hosts: 2,
        kvmlet: true,
        run: stands_still,
    },
    Test {
        name: "machines are held to the writes a second that their node allows",
        hosts: 2,
        kvmlet: true,
        run: held,
    },
];

/// Of two stages, of about half as much each.
const WATCHDOG: Duration = Duration::from_secs(10);
/// Bytes a second.
const LIMIT: u64 = 2 << 20;
/// In which a rate is measured.
const WHILE: Duration = Duration::from_secs(10);

fn stands_still(cluster: &Cluster) -> Result<()> {
    let config = format!("machines: {{watchdogSeconds: {}}}\n", WATCHDOG.as_secs());
    daemon::with_config(cluster, &config, || {
        within(cluster, "machine-watchdog", |place| {
            let all = json!({"privileged": false, "capabilities": {"add": ["ALL"]}});
            place.create(&[
                pod("hangs", with(sh(STAY), &[("/securityContext", all)])),
                pod("neighbour", sh(STAY)),
            ])?;
            place.until_ready("hangs")?;
            place.until_ready("neighbour")?;
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

fn held(cluster: &Cluster) -> Result<()> {
    let config = format!("machines: {{io: {{writeBytesPerSecond: {LIMIT}, readOperationsPerSecond: 5000}}}}\n");
    let mut limited = 0;
    daemon::with_config(cluster, &config, || {
        within(cluster, "machine-io", |place| {
            limited = rate(place)?;
            Ok(())
        })
    })?;
    let mut free = 0;
    within(cluster, "machine-io-free", |place| {
        free = rate(place)?;
        Ok(())
    })?;
    println!("  writes of a machine: {limited} bytes a second where {LIMIT} are allowed, else {free}");
    ensure!(
        (LIMIT / 4..LIMIT * 5 / 4).contains(&limited),
        "{limited} bytes a second, {LIMIT} are allowed"
    );
    ensure!(free > LIMIT * 3 / 2, "{free} bytes a second without a limit: {LIMIT} is none");
    Ok(())
}

/// Bytes a second that the disk gets of a pod that writes as fast as it can.
fn rate(place: &Place<'_>) -> Result<u64> {
    let write = "while :; do dd if=/dev/zero of=/scratch bs=1M count=2 conv=fsync 2>/dev/null; done";
    place.create(&[pod("writes", sh(write))])?;
    place.until_ready("writes")?;
    let host = place.cluster.host(0)?;
    let group = format!("/sys/fs/cgroup/kvmlet.slice/{}", Identity::of(place, "writes")?.uid);
    let written = || -> Result<u64> {
        let stat = host.sh(&format!("cat {group}/io.stat"))?;
        let numbers = stat
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("wbytes=")?.parse::<u64>().ok());
        Ok(numbers.sum())
    };
    // The kernel first has to see that it is this machine that writes the file.
    wait_for("the machine's writes to be counted as its own", PATIENCE, || {
        Ok((written()? > 4 << 20).then_some(()))
    })?;
    let (begun, before) = (Instant::now(), written()?);
    std::thread::sleep(WHILE);
    let (after, passed) = (written()?, begun.elapsed());
    Ok(((after - before) as f64 / passed.as_secs_f64()) as u64)
}
