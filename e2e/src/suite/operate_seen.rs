//! What `kvmlet ps`, `top`, `inspect` and `logs` show, beside what kubectl has said of the same pods: a test of [`super::operate`].

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    daemon,
    operate::{says, verb, without_daemon},
    workload::{PATIENCE, Place, STAY, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, Host, node, wait_for};

/// Nobody but the pod shall see it.
const SECRET: &str = "nobody-else-reads-this";

pub(super) fn seen(cluster: &Cluster) -> Result<()> {
    let script = format!("for i in 1 2 3; do echo line $i; done; [ -e /v/seen ] || {{ touch /v/seen; exit 1; }}; {STAY}");
    let main = with(
        sh(&script),
        &[
            ("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}])),
            ("/env", json!([{"name": "PASSWORD", "value": SECRET}])),
        ],
    );
    let other = with(
        sh(&format!("echo other out; echo other err >&2; {STAY}")),
        &[("/name", "other".into())],
    );
    let volume = ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]));
    let boots = ("/metadata/annotations", json!({"kvmlet.io/template": "none"}));
    within(cluster, "operate", |place| {
        place.create(&[
            with(pod_of("talks", json!([main, other])), &[volume]),
            with(pod("boots", sh(&format!("echo here; {STAY}"))), &[boots]),
        ])?;
        place.until("talks", "be in its second life", |found| {
            container(found, "main")["restartCount"] == 1
        })?;
        place.until_ready("talks")?;
        place.until_ready("boots")?;
        let expected = Expected::of(place)?;
        expected.compare(place, true).context("beside the daemon")?;
        without_daemon(cluster, || expected.compare(place, false).context("without a daemon"))
    })
}

/// What kubectl has said, while there was a daemon to be asked.
struct Expected {
    talks: Value,
    boots: Value,
    /// Words behind `logs`, and what they show.
    logs: Vec<(Vec<&'static str>, String)>,
}

impl Expected {
    fn of(place: &Place<'_>) -> Result<Self> {
        let mut logs = Vec::new();
        for words in [
            &["boots"][..],
            &["talks", "-c", "main"],
            &["talks"],
            &["talks", "-c", "other"],
            &["talks", "-c", "main", "-p"],
            &["talks", "-c", "main", "--tail", "2"],
            &["talks", "-c", "main", "--tail=0"],
            &["talks", "-c", "other", "--timestamps"],
        ] {
            let text = || place.kubectl(&[&["logs"], words].concat());
            // A container is ready before it has said all.
            let lines = match words {
                ["boots"] => 1,
                [.., "--tail=0"] => 0,
                [_, "-c", "other", ..] | [.., "--tail", "2"] => 2,
                _ => 3,
            };
            let text = wait_for("all lines to be there", PATIENCE, || {
                let text = text()?;
                Ok((text.lines().count() == lines).then_some(text))
            })?;
            logs.push((words.to_vec(), text));
        }
        Ok(Self {
            talks: place.get("talks")?,
            boots: place.get("boots")?,
            logs,
        })
    }

    fn compare(&self, place: &Place<'_>, has_daemon: bool) -> Result<()> {
        let host = place.cluster.host(0)?;
        self.listed(place, host, has_daemon)?;
        self.inspected(place, host)?;
        self.told(place, host)?;
        self.watched(place, host, has_daemon)
    }

    fn listed(&self, place: &Place<'_>, host: &Host, has_daemon: bool) -> Result<()> {
        let listed: Value = serde_json::from_str(&says(host, &["ps", "-o", "json"])?).context("read the list")?;
        ensure!(listed["daemon"]["running"] == has_daemon, "{}", listed["daemon"]);
        for (found, name) in [(&self.talks, "talks"), (&self.boots, "boots")] {
            let mut all = listed["pods"].as_array().into_iter().flatten();
            let own = all.find(|own| own["namespace"] == place.name && own["name"] == name);
            let own = own.with_context(|| format!("{name} is not in {listed}"))?;
            let containers = found["spec"]["containers"].as_array().map_or(0, Vec::len);
            let uid = found["metadata"]["uid"].as_str().context("the pod has no UID")?;
            ensure!(own["uid"] == uid && own["phase"] == "Running" && own["state"] == "Running", "{own}");
            ensure!(
                own["ips"][0] == found["status"]["podIP"],
                "{own} has not the address in {}",
                found["status"]
            );
            ensure!(own["containers"] == json!({"running": containers, "total": containers}), "{own}");
            ensure!(own["pid"].as_u64() == daemon::process(host, uid)?.parse().ok(), "{own}");
            ensure!(
                own["usage"]["memory"]["uniqueBytes"].as_u64() > Some(1 << 20) && own["usage"]["cpuSeconds"].as_f64() > Some(0.0),
                "{own}"
            );
            // It has said ARP at least.
            ensure!(own["usage"]["network"]["sentBytes"].is_u64(), "{own}");
            let phases: Vec<_> = own["start"]["phases"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| one["phase"].clone())
                .collect();
            ensure!(phases == ["surroundings", "disks", "queue", "guest", "setup"], "{own}");
        }
        self.starts(place, &listed)?;
        let output = verb(host, &["ps", "-o", "wide"])?;
        let (text, said) = (output.text(), output.error_text());
        ensure!(output.code == 0 && text.starts_with("POD "), "{text}");
        let line = text.lines().find(|line| line.starts_with(&format!("{}/talks ", place.name)));
        let line = line.with_context(|| format!("talks is not in {text}"))?;
        ensure!(line.contains(" Running ") && line.contains(" 2/2 "), "{line}");
        ensure!(said.contains("the daemon is not running") != has_daemon, "{said:?}");
        Ok(())
    }

    /// How the machines started is what the pods' events say.
    fn starts(&self, place: &Place<'_>, listed: &Value) -> Result<()> {
        for own in listed["pods"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|own| own["namespace"] == place.name)
        {
            let name = own["name"].as_str().unwrap_or_default();
            let events = place.events(name)?;
            let told = events.iter().find(|event| event.1 == "MachineStarted").map(|event| event.3.clone());
            let told = told.with_context(|| format!("{name} has no event of its start: {events:?}"))?;
            let (how, words) = match own["start"]["how"].as_str() {
                Some("copy") => ("copy", "as a copy of the node's template in "),
                Some("boot") => ("boot", "Machine booted in "),
                other => anyhow::bail!("{name} has started by {other:?}"),
            };
            let seconds = own["start"]["milliseconds"].as_f64().context("no time")? / 1e3;
            let also = told
                .split_once(words)
                .and_then(|(_, rest)| rest.split_once(" s")?.0.parse::<f64>().ok());
            // It is told to a hundredth.
            ensure!(also.is_some_and(|also| (also - seconds).abs() < 0.011), "{told}, but {own}");
            if name == "boots" {
                ensure!(
                    how == "boot" && own["start"]["why"].as_str().is_some_and(|why| why.contains("kvmlet.io/template")),
                    "{own}"
                );
            }
        }
        Ok(())
    }

    fn inspected(&self, place: &Place<'_>, host: &Host) -> Result<()> {
        let uid = self.talks["metadata"]["uid"].as_str().context("the pod has no UID")?;
        let name = format!("{}/talks", place.name);
        let text = says(host, &["inspect", &name])?;
        ensure!(!text.contains(SECRET), "a variable's value is in {text}");
        for other in [uid, &uid[..8]] {
            let by_uid: Value = serde_json::from_str(&says(host, &["inspect", other])?)?;
            ensure!(by_uid["uid"] == uid, "{other} is taken for {by_uid}");
        }
        let told: Value = serde_json::from_str(&text).context("read what inspect says")?;
        for status in self.talks["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let mut all = told["containers"]["items"].as_array().into_iter().flatten();
            let own = all.find(|own| own["name"] == status["name"]).context("a container is missing")?;
            let id = own["record"]["running"]["id"].as_str().context("it has no identifier")?;
            ensure!(
                status["containerID"].as_str().is_some_and(|full| full.ends_with(id)),
                "{own}, but {status}"
            );
            ensure!(
                own["restarts"] == status["restartCount"] && own["runs"] == true,
                "{own}, but {status}"
            );
            let log = own["log"].as_str().context("no log")?;
            host.sh(&format!("test -s {log}"))?;
        }
        let devices = told["machine"]["shape"]["devices"].as_array().context("no devices")?;
        let kinds: Vec<_> = devices.iter().filter_map(|device| device["kind"].as_str()).collect();
        ensure!(["net", "disk", "vsock"].iter().all(|kind| kinds.contains(kind)), "{told}");
        let group = told["machine"]["controlGroup"].as_str().context("no control group")?;
        let pids = host.sh(&format!("cat {group}/cgroup.procs"))?;
        ensure!(
            pids.lines().any(|pid| pid.parse().ok() == told["pid"].as_u64()),
            "{pids}, but {told}"
        );
        let address = told["network"]["addresses"][0].as_str().context("no address")?;
        ensure!(self.talks["status"]["podIP"].as_str() == address.split('/').next(), "{told}");
        ensure!(told["machine"]["says"]["state"] == "running", "{told}");
        Ok(())
    }

    fn told(&self, place: &Place<'_>, host: &Host) -> Result<()> {
        for (words, expected) in &self.logs {
            let name = format!("{}/{}", place.name, words[0]);
            let told = says(host, &[&["logs", name.as_str()], &words[1..]].concat())?;
            ensure!(told == *expected, "logs {words:?}: {told:?} where kubectl has {expected:?}");
        }
        let both = verb(host, &["logs", &format!("{}/talks", place.name)])?;
        ensure!(
            both.error_text() == "Defaulted container \"main\" out of: main, other",
            "{}",
            both.error_text()
        );
        Ok(())
    }

    /// `top`, once and in a terminal.
    fn watched(&self, place: &Place<'_>, host: &Host, has_daemon: bool) -> Result<()> {
        let text = says(host, &["top", "--once"])?;
        ensure!(text.contains("the daemon is NOT running") != has_daemon, "{text}");
        for name in ["talks", "boots"] {
            let line = text.lines().find(|line| line.starts_with(&format!("{}/{name} ", place.name)));
            let cells: Vec<_> = line
                .with_context(|| format!("{name} is not in {text}"))?
                .split_whitespace()
                .collect();
            ensure!(
                cells.len() == 9 && cells[1] == "Running" && cells[4].parse::<f64>().is_ok(),
                "{cells:?}"
            );
        }
        // `q` once it has shown the pod.
        let script = format!(
            "rm -f /tmp/top; (for i in $(seq 300); do grep -q {}/talks /tmp/top && break; sleep 0.1; done; printf q) | \
             TERM=xterm timeout 60 script -qfec 'stty rows 30 cols 120; {} top' /tmp/top >/dev/null; echo $?; grep -c {}/talks /tmp/top; rm /tmp/top",
            place.name,
            node::PROGRAM,
            place.name
        );
        let shown = host.run_with(&["sh", "-c", &script], b"", Duration::from_secs(100))?.text();
        let (code, lines) = shown.split_once('\n').unwrap_or_default();
        ensure!(code == "0" && lines != "0", "{shown}");
        Ok(())
    }
}
