//! What containers write: `kubectl logs` with each of its flags, the files behind it, and their rotation.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    workload::{Place, STAY, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, command, wait_for};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "kubectl logs obeys each of its flags",
        hosts: 1,
        kvmlet: true,
        run: flags,
    },
    Test {
        name: "logs are CRI files that are rotated by size, and a follower loses no line of them",
        hosts: 1,
        kvmlet: true,
        run: rotation,
    },
];

fn flags(cluster: &Cluster) -> Result<()> {
    let other = with(
        sh(&format!("echo other out; echo other err >&2; {STAY}")),
        &[("/name", json!("other"))],
    );
    let main = sh(
        "for i in 1 2 3; do echo line $i; done; sleep 6; echo late; printf unfinished; [ -e /v/seen ] || { touch /v/seen; exit 1; }; \
        trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
    );
    let main = with(main, &[("/volumeMounts", json!([{"name": "v", "mountPath": "/v"}]))]);
    within(cluster, "logs-flags", |place| {
        let volume = ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]));
        place.create(&[with(pod_of("talks", json!([main, other])), &[volume])])?;
        place.until("talks", "be in its second life", |found| {
            container(found, "main")["restartCount"] == 1
        })?;
        let logs = |flags: &[&str]| place.kubectl(&[&["logs", "talks", "-c", "main"], flags].concat());
        wait_for("the second life's last line", Duration::from_secs(90), || {
            Ok(logs(&[])?.contains("late").then_some(()))
        })?;
        let whole = "line 1\nline 2\nline 3\nlate\nunfinished";
        // An unfinished line is told when its container ends; the first life has ended.
        ensure!(logs(&["--previous"])? == whole, "{:?}", logs(&["--previous"])?);
        let present = logs(&[])?;
        ensure!(whole.starts_with(&present), "{present:?}");
        ensure!(logs(&["--previous", "--tail=2"])? == "late\nunfinished" && logs(&["--previous", "--tail=0"])?.is_empty());
        ensure!(
            logs(&["--previous", "--limit-bytes=9"])? == "line 1\nli",
            "{:?}",
            logs(&["--previous", "--limit-bytes=9"])?
        );

        let stamped = logs(&["--previous", "--timestamps"])?;
        let stamped: Vec<_> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
        ensure!(stamped.len() == 5 && stamped[3].1 == "late", "{stamped:?}");
        ensure!(stamped.windows(2).all(|two| two[0].0 <= two[1].0), "not in order: {stamped:?}");
        ensure!(logs(&["--previous", "--since-time", stamped[3].0])? == "late\nunfinished");
        ensure!(logs(&["--previous", "--since=1h"])? == whole && logs(&["--previous", "--since=1s"])?.is_empty());

        let all = place.kubectl(&["logs", "talks", "--all-containers", "--prefix"])?;
        ensure!(
            all.contains("[pod/talks/main] line 1") && all.contains("[pod/talks/other] other err"),
            "{all}"
        );
        ensure!(
            place
                .kubectl_fails(&["logs", "talks", "-c", "nobody"])?
                .contains("container nobody is not valid for pod talks")
        );
        let none = place.kubectl_fails(&["logs", "talks", "-c", "other", "--previous"])?;
        ensure!(
            none.contains("previous terminated container \"other\" in pod \"talks\" not found"),
            "{none}"
        );
        follow(cluster, place)
    })
}

/// A follower sees what was and what comes, and ends with the container.
fn follow(cluster: &Cluster, place: &Place<'_>) -> Result<()> {
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 1; done";
    place.create(&[with(pod("counts", sh(script)), &[("/spec/restartPolicy", json!("Never"))])])?;
    place.until("counts", "have begun", |found| container(found, "main")["containerID"].is_string())?;
    ensure!(heard(cluster, place, &["counts"])? == "1\n2\n3\n4\n5");
    ensure!(
        heard(cluster, place, &["counts", "--tail=1"])? == "5",
        "a container that has ended can be followed to its end"
    );
    Ok(())
}

fn heard(cluster: &Cluster, place: &Place<'_>, what: &[&str]) -> Result<String> {
    let mut logs = cluster.kubectl_command();
    let logs = logs.args(["-n", &place.name, "logs", "-f"]).args(what).stdin(Stdio::null());
    Ok(command::text(&command::run(logs)?.stdout))
}

fn rotation(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    // The rig's limit is 10 MiB a file (the default), five files.
    let (lines, width) = (160_000, 100);
    let script = format!("seq -f '%0{width}.0f' 1 {lines}; echo err >&2; {STAY}");
    within(cluster, "logs-rotation", |place| {
        let main = json!({"image": "large", "command": ["bash", "-c", script]});
        place.create(&[pod("writes", main)])?;
        let found = place.until_ready("writes")?;
        let uid = found["metadata"]["uid"].as_str().context("no UID")?;
        let folder = format!("/var/log/pods/logs-rotation_writes_{uid}/main");
        wait_for("all lines to be in the files", Duration::from_secs(120), || {
            // Which of two streams is read first is not said: the one line of the other may come before the last ones of this.
            let both = format!("cd {folder}; cat 0.log* | grep -e ' stderr F err$' -e ' stdout F 0*{lines}$' | wc -l");
            Ok((host.sh(&both)? == "2").then_some(()))
        })?;
        let listed = host.sh(&format!("cd {folder}; ls; stat -c %s *"))?;
        let names: Vec<_> = listed.lines().filter(|line| line.starts_with("0.log")).collect();
        ensure!(names.len() >= 2 && names.iter().any(|name| name.starts_with("0.log.2")), "{listed}");
        let sizes: Vec<u64> = listed.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(sizes.iter().all(|size| *size <= 11 << 20), "{listed}");
        // Each line is `time stream F text`; all are there, once and in order.
        let check = format!(
            "cd {folder}; cat $(ls | grep 'log[.]') 0.log | awk '$2 == \"stdout\" {{ n++; if ($3 != \"F\" || NF != 4 || $4 + 0 != n || \
             $1 !~ /^20..-..-..T..:..:...*Z$/) {{ print \"bad: \" $0; exit }} }} END {{ print n }}'"
        );
        ensure!(host.sh(&check)? == lines.to_string(), "{}", host.sh(&check)?);
        let logs = place.kubectl(&["logs", "writes", "--tail=130000"])?;
        let mut count = lines - 130_000 + 1;
        for line in logs.lines().filter(|line| *line != "err") {
            count += 1;
            ensure!(line.parse::<u32>().ok() == Some(count), "{line:?} where {count} belongs");
        }
        ensure!(count == lines, "the last line is {count}");
        Ok(())
    })
}
