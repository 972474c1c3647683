//! `kvmlet ps`: a line a pod.

use std::{process::ExitCode, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Host,
    inspect::{daemon, summary},
    look::Seen,
    model::Pod,
    text::{self, or_none},
};
use crate::{
    cli::{Listing, PsArguments},
    print::{notice, print, table},
};

/// Characters of a UID that are shown.
const SHORT: usize = 8;

/// Lists this host's pods.
pub(crate) fn ps(arguments: &PsArguments) -> anyhow::Result<ExitCode> {
    let host = Host::open(&arguments.config.path)?;
    let mut seen = host.look()?;
    let daemon = host.complete(&mut seen.pods)?;
    for damaged in &seen.damaged {
        notice(format_args!("kvmlet: a pod is left out: {damaged}"));
    }
    let now = Timestamp::now();
    let text = match arguments.output {
        Some(Listing::Json) => format!("{:#}\n", listed(&seen, daemon)),
        Some(Listing::Wide) => wide(&seen.pods, now),
        None => plain(&seen.pods, now),
    };
    if arguments.output != Some(Listing::Json) {
        if daemon.is_none() {
            notice("kvmlet: the daemon is not running on this host: its machines go on, and pods are as it has written them last");
        }
        if seen.pods.is_empty() {
            notice("kvmlet: there are no pods on this host");
            return Ok(ExitCode::SUCCESS);
        }
    }
    print(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn listed(seen: &Seen, pid: Option<u32>) -> Value {
    json!({
        "daemon": daemon(pid),
        "pods": seen.pods.iter().map(summary).collect::<Vec<_>>(),
        "damaged": seen.damaged,
    })
}

const PLAIN: [&str; 9] = ["POD", "UID", "STATE", "CONTAINERS", "START", "AGE", "PID", "UNIQUE", "CPU"];

fn line(pod: &Pod, now: Timestamp) -> [String; 9] {
    let (running, total) = pod.counts();
    [
        pod.full(),
        pod.desired.uid.chars().take(SHORT).collect(),
        pod.standing().into(),
        format!("{running}/{total}"),
        pod.start(),
        text::age(Duration::try_from(now.duration_since(pod.state.accepted)).unwrap_or_default()),
        or_none(pod.pid().map(|pid| pid.to_string())),
        or_none(pod.usage.memory.map(|memory| text::bytes(memory.unique))),
        or_none(pod.usage.cpu.map(text::processor_time)),
    ]
}

fn plain(pods: &[Pod], now: Timestamp) -> String {
    let rows: Vec<_> = pods.iter().map(|pod| line(pod, now)).collect();
    table(PLAIN, &rows)
}

fn wide(pods: &[Pod], now: Timestamp) -> String {
    let more = |pod: &Pod| {
        let shape = pod.started.as_ref().map(|started| &started.shape);
        [
            or_none(pod.usage.memory.map(|memory| text::bytes(memory.shared))),
            or_none(shape.map(|shape| shape.cpus.to_string())),
            or_none(shape.map(|shape| text::bytes(shape.memory))),
            pod.state.containers.iter().map(|one| one.restarts).sum::<u32>().to_string(),
            or_none(pod.state.ips.first().cloned()),
            or_none(pod.how().map(|how| how.why.clone())),
        ]
    };
    let rows: Vec<[String; 15]> = pods
        .iter()
        .map(|pod| {
            let mut cells = line(pod, now).into_iter().chain(more(pod));
            std::array::from_fn(|_| cells.next().expect("nine and six"))
        })
        .collect();
    let mut head = PLAIN
        .into_iter()
        .chain(["SHARED", "CPUS", "MEMORY", "RESTARTS", "IP", "BOOTED SINCE"]);
    table(std::array::from_fn(|_| head.next().expect("nine and six")), &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::model::{Process, tests::pod};

    fn pods() -> [Pod; 2] {
        let gone = |pod: &mut Pod| {
            pod.process = Process::Ended("its process was killed".into());
            pod.started = None;
            pod.usage = Default::default();
        };
        [pod("hello", |_| {}), pod("lost", gone)]
    }

    fn soon() -> Timestamp {
        Timestamp::from_second(185).unwrap()
    }

    #[test]
    fn each_pod_has_a_line_and_what_is_not_known_a_dash() {
        assert_eq!(
            plain(&pods(), soon()),
            "POD            UID       STATE    CONTAINERS  START       AGE   PID   UNIQUE  CPU\n\
             default/hello  hello-01  Running  2/2         copy 420ms  3m5s  4711  40Mi    2.00s\n\
             default/lost   lost-012  Lost     0/2         -           3m5s  -     -       -\n"
        );
    }

    #[test]
    fn the_wide_list_has_more_columns_behind_the_same() {
        let text = wide(&pods(), soon());
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].contains("CPU    SHARED  CPUS  MEMORY  RESTARTS  IP  BOOTED SINCE"),
            "{text}"
        );
        assert!(lines[1].ends_with("2.00s  90Mi    2     192Mi   0         -   -"), "{text}");
    }

    #[test]
    fn programs_are_told_whether_there_is_a_daemon_and_what_is_left_out() {
        let seen = Seen {
            pods: pods().into(),
            damaged: vec!["read /x: cut off".into()],
        };
        let told = listed(&seen, None);
        assert_eq!(told["daemon"], json!({"running": false, "pid": null}));
        assert_eq!(told["pods"][0]["containers"], json!({"running": 2, "total": 2}));
        assert_eq!(told["damaged"], json!(["read /x: cut off"]));
        let empty = json!({"daemon": {"running": true, "pid": 7}, "pods": [], "damaged": []});
        assert_eq!(listed(&Seen::default(), Some(7)), empty);
    }
}
