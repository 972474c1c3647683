//! How fast a container's log is written: one that says nothing else than lines, as fast as it may, until so many bytes of them are with the node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Row, process::Measured};
use crate::{Cluster, HostKind, node};

const NAMESPACE: &str = "bench-logs";
/// What is written, bytes: more than a pipe and all that is under way together.
const AMOUNT: u32 = 64 << 20;
/// Of one line, with its end.
const LINE: usize = 100;
const DEADLINE: Duration = Duration::from_secs(240);

pub(super) fn rows(cluster: &Cluster) -> Result<Vec<Row>> {
    cluster.create_namespace(NAMESPACE)?;
    let measured = measure(cluster);
    cluster.delete_namespace(NAMESPACE)?;
    measured
}

fn measure(cluster: &Cluster) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let bench = super::prepare(host)?;
    let daemon = Measured::find(host, &bench, &format!("{} node ", node::PROGRAM))?;
    let before = daemon.cpu_seconds()?;
    cluster.apply(&writer(&host.name).to_string())?;
    let pod = cluster.wait_for_phase(NAMESPACE, "writer", "Succeeded", DEADLINE)?;
    let cpu = daemon.cpu_seconds()? - before;
    let message = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str();
    let seconds = elapsed(message.context("the writer said nothing")?)?;
    let megabytes = f64::from(AMOUNT) / 1e6;
    let rate = Row::new(host.kind, "log of one container, lines of 100 bytes", "MB/s", megabytes / seconds);
    let rate = match host.kind {
        HostKind::Native => rate.at_least(100.0),
        HostKind::Emulated => rate,
    };
    Ok(vec![
        rate,
        Row::new(host.kind, "the daemon's processor time for 64 MiB of it, with the pod", "s", cpu),
    ])
}

/// Writes lines, and says what its guest's clock said before and after.
fn writer(host: &str) -> serde_json::Value {
    let line = "x".repeat(LINE - 1);
    let script = format!(
        "read begin rest </proc/uptime; yes {line} | head -c {AMOUNT}; read end rest </proc/uptime; echo $begin $end >/dev/termination-log"
    );
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "writer", "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {"kubernetes.io/hostname": host},
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", script], "resources": {"limits": {"memory": "64Mi"}}}]
        }
    })
}

/// Seconds between two times of a guest's clock.
fn elapsed(said: &str) -> Result<f64> {
    let times: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [begin, end] = times[..] else {
        anyhow::bail!("the writer said {said:?}");
    };
    ensure!(end > begin, "the writer said {said:?}");
    Ok(end - begin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_writer_says_is_two_times_one_after_the_other() {
        assert_eq!(elapsed("10.25 12.75\n").unwrap(), 2.5);
        for said in ["", "1.0", "2.0 1.0", "1.0 1.0", "1 2 3"] {
            assert!(elapsed(said).is_err(), "{said:?}");
        }
    }
}
