//! What tests do with the daemon of the first host beside killing it: another configuration for a while, a second one by hand, and what a
//! restart must not change of a pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::workload::{PATIENCE, Place};
use crate::{Cluster, Host, agent::CommandOutput, host_config, node, wait::wait_while, wait_for};

/// The daemon's configuration file.
pub(super) const CONFIG: &str = "/etc/kvmlet/config.yaml";

/// Runs `body` while the first host's daemon has `extra` (top-level keys) in its configuration, in place of lines of its own with the same keys.
pub(super) fn with_config(cluster: &Cluster, extra: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let host = cluster.host(0)?;
    let key = |line: &str| line.split_once(':').map(|(key, _)| key.to_owned());
    let own = host_config::kvmlet(host);
    let kept = own.lines().filter(|line| extra.lines().all(|other| key(other) != key(line)));
    let text = kept.map(|line| format!("{line}\n")).collect::<String>() + extra;
    with_text(cluster, &text, body)
}

/// Runs `body` while the first host's daemon has this configuration.
pub(super) fn with_text(cluster: &Cluster, text: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    let host = cluster.host(0)?;
    let configure = |text: &str| -> Result<()> {
        host.stop_daemon()?;
        host.put(CONFIG, 0o644, text.as_bytes())?;
        restart(cluster)
    };
    let done = configure(text).and_then(|()| body());
    configure(&host_config::kvmlet(host))?;
    done
}

/// Starts the daemon and waits until it answers on its port: it has taken its pods over by then.
pub(super) fn restart(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    host.start_daemon()?;
    answers(cluster)
}

/// Waits until the daemon's port answers; not for one that has ended.
pub(super) fn answers(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    wait_while(
        "the daemon to answer",
        Duration::from_secs(60),
        || host.daemon_runs(),
        || asks(host).map(Some),
    )
}

/// Asks the daemon's port something. Without a client's certificate the answer is a refusal, but one by HTTP.
pub(super) fn asks(host: &Host) -> Result<()> {
    let port = format!("$(sed -n 's/^port: //p' {CONFIG})");
    let script = format!("curl -sk -o /dev/null --max-time 5 https://{}:{port}/healthz", host.address);
    host.sh(&script).map(drop)
}

/// `kvmlet node` by hand with this configuration, for at most 30 s; 124 is what `timeout` says then.
pub(super) fn by_hand(host: &Host, config: &str, before: &str) -> Result<CommandOutput> {
    host.put("/tmp/by-hand.yaml", 0o644, config.as_bytes())?;
    let script = format!("{before} exec timeout 30 {} node --config /tmp/by-hand.yaml", node::PROGRAM);
    let output = host.run(&["unshare", "-m", "sh", "-c", &script])?;
    host.sh("rm /tmp/by-hand.yaml")?;
    Ok(output)
}

/// What a restart of the daemon must leave as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Of the object.
    pub(super) uid: String,
    /// The machine's process.
    pub(super) process: String,
    ip: String,
    /// Name, identifier, restarts, start.
    containers: Vec<(String, String, String, String)>,
}

impl Identity {
    /// Of a pod that runs on the first host.
    pub(super) fn of(place: &Place<'_>, pod: &str) -> Result<Self> {
        let found = place.get(pod)?;
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let uid = text(&found["metadata"]["uid"]);
        let statuses = found["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            process: process(place.cluster.host(0)?, &uid)?,
            ip: text(&found["status"]["podIP"]),
            containers: statuses
                .iter()
                .map(|c| {
                    let started = text(&c["state"]["running"]["startedAt"]);
                    (text(&c["name"]), text(&c["containerID"]), text(&c["restartCount"]), started)
                })
                .collect(),
            uid,
        })
    }
}

/// The process of a pod's machine, which runs.
pub(super) fn process(host: &Host, uid: &str) -> Result<String> {
    let record = host.sh(&format!("cat /var/lib/kvmlet/pods/{uid}/machine/machine.json"))?;
    let record: Value = serde_json::from_str(&record).context("read machine.json")?;
    let pid = record["pid"].to_string();
    ensure!(
        host.sh(&format!("cat /proc/{pid}/cmdline | tr '\\0' ' '"))?.contains("vm"),
        "process {pid} is no machine"
    );
    Ok(pid)
}

/// Where a container's present log is on the host.
pub(super) fn log_file(place: &Place<'_>, pod: &str, container: &str) -> Result<String> {
    let found = place.get(pod)?;
    let uid = found["metadata"]["uid"].as_str().context("the pod has no UID")?;
    Ok(format!("/var/log/pods/{}_{pod}_{uid}/{container}/0.log", place.name))
}

/// Waits until the numbers of the lines `tick N` in what `read` gives have reached `most`; each must follow the one before.
pub(super) fn until_ticks(read: impl Fn() -> Result<String>, most: usize) -> Result<usize> {
    wait_for(&format!("line {most}"), PATIENCE, || {
        let text = read()?;
        let numbers: Vec<usize> = text.lines().filter_map(|line| line.rsplit_once("tick ")?.1.parse().ok()).collect();
        ensure!(numbers.len() >= most, "there are {} lines", numbers.len());
        Ok(Some(numbers))
    })
    .and_then(|numbers| {
        let wrong = numbers.iter().enumerate().find(|(index, number)| index + 1 != **number);
        ensure!(wrong.is_none(), "a line is missing or there twice: {wrong:?} (index, number)");
        Ok(numbers.len())
    })
}
