//! A host that cannot serve says why at once and touches nothing; a guest that breaks costs its own pod only.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Test,
    daemon::{self, Identity},
    survival::until_gone,
    workload::{Place, STAY, container, pod, sh, with, within},
};
use crate::{Cluster, host_config};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a daemon that cannot serve ends at once and names the key and line, /dev/kvm or the port",
        hosts: 1,
        kvmlet: true,
        run: cannot_serve,
    },
    Test {
        name: "a guest that crashes, or whose process is killed or has no memory left, is made anew, and its neighbour does not notice",
        hosts: 1,
        kvmlet: true,
        run: crashes,
    },
    Test {
        name: "a machine's process that stands still cannot keep its pod from being deleted",
        hosts: 1,
        kvmlet: true,
        run: hangs,
    },
];

fn cannot_serve(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let good = host_config::kvmlet(host);
    // A directory of its own: what is wrong shall be what is meant here.
    let other = format!("{good}stateDir: /tmp/other-state\n");
    let line = good.lines().count() + 1;
    let hide = "mkdir -p /tmp/empty && mount --bind /dev/null /dev/kvm &&";
    let cases = [
        (
            format!("{good}nodeNmae: oops\n"),
            "",
            vec!["nodeNmae".to_owned(), format!("line {line}")],
        ),
        (good.replace("port: 10250", "port: many"), "", vec!["line 6".into()]),
        (
            good.replace("apiVersion: kvmlet.io/v1alpha1", "apiVersion: v9"),
            "",
            vec!["apiVersion".into()],
        ),
        (
            format!("{good}serverTLSBootstrap: true\n"),
            "",
            vec![
                "tls.certFile and serverTLSBootstrap".into(),
                "tls.keyFile and serverTLSBootstrap".into(),
            ],
        ),
        (other.clone(), hide, vec!["/dev/kvm".into()]),
        (
            format!("{other}machines: {{io: {{weight: 50}}}}\n"),
            "mount --bind /dev/null /sys/fs/cgroup/cgroup.controllers &&",
            vec!["machines.io".into(), "no io controller".into()],
        ),
        (other, "", vec!["10250".into(), "in use".into()]),
    ];
    for (config, before, words) in cases {
        let output = daemon::by_hand(host, &config, before)?;
        let said = output.error_text();
        ensure!(output.code == 1, "it exited with {}: {said}", output.code);
        ensure!(words.iter().all(|word| said.contains(word)), "it does not say {words:?}: {said}");
    }
    host.sh("rm -rf /tmp/other-state /tmp/empty")?;
    // The daemon beside them is as well as before.
    cluster.wait_until_nodes_are_ready(Duration::from_secs(60))
}

/// Waits until the container has been started once more.
fn until_restarted(place: &Place<'_>, name: &str) -> Result<()> {
    place.until_event(name, "SandboxChanged", "")?;
    place.until(name, "have been restarted", |found| {
        let status = container(found, "main");
        status["restartCount"] == 1 && status["ready"] == true
    })?;
    ensure!(place.exec(name, "echo well")? == "well");
    Ok(())
}

fn crashes(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-guest", |place| {
        let host = cluster.host(0)?;
        let all = json!({"privileged": false, "capabilities": {"add": ["ALL"]}});
        place.create(&[
            pod("killed", sh(STAY)),
            pod("starved", sh(STAY)),
            pod("neighbour", sh(STAY)),
            with(
                pod("panics", with(sh(STAY), &[("/securityContext", all)])),
                &[("/spec/terminationGracePeriodSeconds", json!(1))],
            ),
            with(pod("once", sh(STAY)), &[("/spec/restartPolicy", json!("Never"))]),
        ])?;
        for name in ["killed", "starved", "neighbour", "panics", "once"] {
            place.until_ready(name)?;
        }
        let neighbour = Identity::of(place, "neighbour")?;
        for name in ["killed", "once"] {
            host.sh(&format!("kill -9 {}", Identity::of(place, name)?.process))?;
        }
        // Less than the guest itself has; what it takes then is more than its host lets it have.
        let group = format!("/sys/fs/cgroup/kvmlet.slice/{}", Identity::of(place, "starved")?.uid);
        host.sh(&format!("cd {group} && echo $(($(cat memory.current) + 8388608)) >memory.max"))?;
        let _ = place.exec("starved", "dd if=/dev/zero of=/much bs=1M count=60");
        // A root of its own kernel can have it panic when memory ends; the exec does not come back.
        let panic = "mkdir /p && mount -t proc proc /p && echo 2 > /p/sys/vm/panic_on_oom && tail /dev/zero";
        let _ = place.exec("panics", panic);
        until_restarted(place, "killed")?;
        until_restarted(place, "starved")?;
        place.until_event("starved", "SandboxChanged", "had no memory left")?;
        let once = place.until_phase("once", "Failed")?;
        ensure!(
            container(&once, "main")["state"]["terminated"]["exitCode"] == 137,
            "{}",
            once["status"]
        );
        until_restarted(place, "panics")?;
        let after = Identity::of(place, "neighbour")?;
        ensure!(after == neighbour, "{neighbour:?} has become {after:?}");
        Ok(())
    })
}

fn hangs(cluster: &Cluster) -> Result<()> {
    within(cluster, "bad-guest-hangs", |place| {
        let host = cluster.host(0)?;
        place.create(&[pod("hangs", sh(STAY)), pod("neighbour", sh(STAY))])?;
        place.until_ready("hangs")?;
        place.until_ready("neighbour")?;
        let process = Identity::of(place, "hangs")?.process;
        host.sh(&format!("kill -STOP {process}"))?;
        place.kubectl(&["delete", "pod", "hangs", "--wait=false"])?;
        ensure!(place.exec("neighbour", "echo well")? == "well");
        until_gone(place, "hangs")?;
        ensure!(host.sh(&format!("ls -d /proc/{process}")).is_err(), "its process is still there");
        Ok(())
    })
}
