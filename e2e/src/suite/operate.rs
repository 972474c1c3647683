//! What a host's operator sees of its machines with `kvmlet ps`, `top`, `inspect`, `console` and `logs`: the same as kubectl shows, while there is a
//! daemon and while there is none. The commands run without a network, so that whatever they show they have from the host.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon,
    operate_seen::seen,
    workload::{PATIENCE, STAY, pod, sh, with, within},
};
use crate::{Cluster, Host, agent::CommandOutput, host_config, node, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "a host's operator sees its machines as kubectl does, with the daemon and without it",
        hosts: 1,
        kvmlet: true,
        run: seen,
    },
    Test {
        name: "a container that ends while there is no daemon is seen to have ended, and who follows its log comes to the end",
        hosts: 1,
        kvmlet: true,
        run: meanwhile,
    },
    Test {
        name: "a host's operator reads what a guest's kernel wrote where the node keeps consoles, and else is told how it would",
        hosts: 1,
        kvmlet: true,
        run: consoles,
    },
    Test {
        name: "whoever asks for machines wrongly is told in one line what is wrong",
        hosts: 1,
        kvmlet: true,
        run: refusals,
    },
];

/// A verb on a host, without a network.
pub(super) fn verb(host: &Host, words: &[&str]) -> Result<CommandOutput> {
    host.run(&[&["unshare", "-n", node::PROGRAM][..], words].concat())
}

/// What a verb says that must succeed.
pub(super) fn says(host: &Host, words: &[&str]) -> Result<String> {
    let output = verb(host, words)?;
    ensure!(
        output.code == 0,
        "kvmlet {}: {}: {}",
        words.join(" "),
        output.code,
        output.error_text()
    );
    Ok(output.text())
}

/// Does something while the first host has no daemon.
pub(super) fn without_daemon(cluster: &Cluster, body: impl FnOnce() -> Result<()>) -> Result<()> {
    cluster.host(0)?.stop_daemon()?;
    let done = body();
    daemon::restart(cluster)?;
    done
}

fn meanwhile(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    within(cluster, "operate-meanwhile", |place| {
        let knocked = sh("echo waits; nc -l -p 9000 >/dev/null; echo knocked");
        place.create(&[with(pod("door", knocked), &[("/spec/restartPolicy", json!("Never"))])])?;
        let found = place.until_ready("door")?;
        place.until_logs("door", "waits")?;
        let address = found["status"]["podIP"].as_str().context("no address")?;
        without_daemon(cluster, || {
            let counts = || -> Result<Value> {
                let listed: Value = serde_json::from_str(&says(host, &["ps", "-o", "json"])?)?;
                let mut all = listed["pods"].as_array().into_iter().flatten();
                let own = all.find(|own| own["namespace"] == place.name).context("the pod is not listed")?;
                Ok(own["containers"].clone())
            };
            ensure!(counts()? == json!({"running": 1, "total": 1}), "{}", counts()?);
            // Somebody who hangs up.
            let script = format!(
                "timeout 60 unshare -n {} logs -f {}/door & echo GET / | timeout 5 busybox nc -w 2 {address} 9000; wait $!; echo ended with $?",
                node::PROGRAM,
                place.name
            );
            let followed = host.run_with(&["sh", "-c", &script], b"", Duration::from_secs(100))?.text();
            ensure!(followed == "waits\nknocked\nended with 0", "{followed}");
            wait_for("the container to be seen to have ended", PATIENCE, || {
                let counts = counts()?;
                ensure!(counts == json!({"running": 0, "total": 1}), "{counts}");
                Ok(Some(()))
            })
        })?;
        place.until_phase("door", "Succeeded").map(drop)
    })
}

fn consoles(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    within(cluster, "operate-console", |place| {
        let name = |pod: &str| format!("{}/{pod}", place.name);
        place.create(&[pod("silent", sh(STAY))])?;
        place.until_ready("silent")?;
        let off = verb(host, &["console", &name("silent")])?;
        let said = off.error_text();
        ensure!(
            off.code == 1 && off.stdout.is_empty() && said.lines().count() == 1,
            "{}: {said}",
            off.code
        );
        ensure!(said.contains("guest.serial is false in /etc/kvmlet/config.yaml"), "{said}");
        let with_port = host_config::kvmlet(host).replace("guest:\n", "guest:\n  serial: true\n");
        daemon::with_text(cluster, &with_port, || {
            let earlier = verb(host, &["console", &name("silent")])?.error_text();
            ensure!(earlier.contains("before guest.serial was switched on"), "{earlier}");
            place.create(&[pod("speaks", sh(STAY))])?;
            place.until_ready("speaks")?;
            let reads = |text: String| {
                ensure!(
                    text.contains("Linux version") && text.contains("Run /init as init process"),
                    "{text}"
                );
                Ok(())
            };
            reads(says(host, &["console", &name("speaks")])?)?;
            host.stop_daemon()?;
            let away = says(host, &["console", &name("speaks")]);
            // Whoever follows goes on for as long as the machine does.
            let followed = host.run(&["timeout", "5", node::PROGRAM, "console", "-f", &name("speaks")]);
            daemon::restart(cluster)?;
            reads(away?)?;
            let followed = followed?;
            ensure!(followed.code == 124, "{}", followed.code);
            reads(followed.text())
        })
    })
}

fn refusals(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    let fails = |argv: &[&str], words: &[&str]| -> Result<()> {
        let output = host.run(argv)?;
        let said = output.error_text();
        ensure!(
            output.code == 1 && output.stdout.is_empty(),
            "{argv:?}: {}: {}",
            output.code,
            output.text()
        );
        ensure!(said.lines().count() == 1 && said.starts_with("kvmlet: "), "{argv:?}: {said}");
        ensure!(
            words.iter().all(|word| said.contains(word)),
            "{argv:?}: {words:?} are not in {said}"
        );
        Ok(())
    };
    let kvmlet = node::PROGRAM;
    within(cluster, "operate-refusals", |place| {
        place.create(&[pod("stands", sh(STAY)), pod("waits", json!({"image": "no-such-image"}))])?;
        place.until_ready("stands")?;
        let (stands, near) = (format!("{}/stands", place.name), format!("{}/stand", place.name));
        for verb in ["inspect", "console", "logs"] {
            fails(&[kvmlet, verb, &near], &["there is no pod", &near, "near it are", &stands])?;
        }
        fails(
            &[kvmlet, "inspect", "11111111-2222"],
            &["there is no pod whose UID is 11111111-2222"],
        )?;
        // The same words as kubectl's, and what there is besides.
        let theirs = place.kubectl_fails(&["logs", "stands", "-c", "nobody"])?;
        ensure!(theirs.contains("container nobody is not valid for pod stands"), "{theirs}");
        fails(
            &[kvmlet, "logs", &stands, "-c", "nobody"],
            &["container nobody is not valid for pod", "it has main"],
        )?;
        for words in [&["stands", "--previous"][..], &["waits"]] {
            let theirs = place.kubectl_fails(&[&["logs"], words].concat())?;
            let full = format!("{}/{}", place.name, words[0]);
            let ours = [&[kvmlet, "logs", full.as_str()], &words[1..]].concat();
            let said = host.run(&ours)?.error_text();
            let said = said.strip_prefix("kvmlet: ").context("no prefix")?;
            // While an image cannot be had two reasons come by turns.
            let same = theirs.contains(said) || (theirs.contains("is waiting to start") && said.contains("is waiting to start"));
            ensure!(same, "{said}, but kubectl: {theirs}");
            fails(&ours, &[])?;
        }
        for verb in ["ps", "top"] {
            fails(&[kvmlet, verb, "--config", "/nowhere.yaml"], &["/nowhere.yaml", "--config"])?;
            let other_user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", kvmlet, verb];
            fails(&other_user, &["only root"])?;
        }
        let elsewhere = host_config::kvmlet(host) + "stateDir: /nonexistent\n";
        host.put("/tmp/operate.yaml", 0o644, elsewhere.as_bytes())?;
        let done = fails(
            &[kvmlet, "ps", "--config", "/tmp/operate.yaml"],
            &["/nonexistent", "stateDir of /tmp/operate.yaml"],
        );
        host.sh("rm /tmp/operate.yaml")?;
        done
    })
}
