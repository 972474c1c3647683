//! `kvmlet inspect`: all about one pod's machine, as JSON. What is in the pod's variables, arguments, volumes and secrets is not in it: each field is
//! named here.

use std::{path::Path, process::ExitCode, time::Duration};

use kvmlet_machine::{Found, Status};
use kvmlet_network::{Counters, PodInterface};
use kvmlet_provider::{
    act::chain,
    cgroup,
    desired::DesiredContainer,
    logs,
    started::How,
    state::{ContainerState, Ended, Slot},
};
use serde_json::{Value, json};

use super::{
    Host,
    model::{Pod, Process},
};
use crate::{cli::PodArguments, print::print};

/// How long a machine's process may take to answer: one that hangs is told to.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints all about one pod.
pub(crate) fn inspect(arguments: &PodArguments) -> anyhow::Result<ExitCode> {
    let host = Host::open(&arguments.config.path)?;
    let mut pods = [host.find(&arguments.pod)?];
    host.measure(&mut pods);
    let daemon = host.complete(&mut pods)?;
    let [pod] = pods;
    let uid = &pod.desired.uid;
    let directory = host.store.machine_dir(uid);
    let seen = Beside {
        daemon,
        control: control(&directory),
        interface: host.interface(uid),
        group: Some(cgroup::path(uid))
            .filter(|path| path.exists())
            .map(|path| path.display().to_string()),
        pids: cgroup::pids(uid),
    };
    print(format!("{:#}\n", all(&host, &pod, &seen)).as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What was seen besides the pod itself.
#[derive(Default)]
struct Beside {
    daemon: Option<u32>,
    control: Option<Result<Status, String>>,
    interface: Option<PodInterface>,
    group: Option<String>,
    pids: Vec<u32>,
}

/// What the machine's process says of itself.
fn control(directory: &Path) -> Option<Result<Status, String>> {
    match kvmlet_machine::find(directory) {
        Ok(Found::Alive(machine)) => {
            let said = machine.control_within(PATIENCE).and_then(|mut control| control.status());
            Some(said.map_err(|error| chain(&error)))
        }
        _ => None,
    }
}

/// Whether there is a daemon.
pub(super) fn daemon(pid: Option<u32>) -> Value {
    json!({"running": pid.is_some(), "pid": pid})
}

/// A pod in short, as `ps` has it.
pub(super) fn summary(pod: &Pod) -> Value {
    let (running, total) = pod.counts();
    let (usage, how) = (&pod.usage, pod.how());
    json!({
        "namespace": pod.desired.namespace,
        "name": pod.desired.name,
        "uid": pod.desired.uid,
        "state": pod.standing(),
        "phase": pod.phase,
        "accepted": pod.state.accepted,
        "ips": pod.state.ips,
        "containers": {"running": running, "total": total},
        "pid": pod.pid(),
        "start": pod.started.as_ref().map(|started| json!({
            "begun": started.begun,
            "how": how.map(How::word),
            "why": how.map(|how| &how.why).filter(|why| !why.is_empty()),
            "milliseconds": how.map(|how| milliseconds(how.microseconds)),
            "phases": started.phases.iter().map(|took| json!({"phase": took.phase, "milliseconds": milliseconds(took.microseconds)}))
                .collect::<Vec<_>>(),
        })),
        "usage": {
            "cpuSeconds": usage.cpu.map(|cpu| cpu as f64 / 1e9),
            "memory": usage.memory.map(|memory| json!({
                "uniqueBytes": memory.unique, "sharedBytes": memory.shared, "swappedBytes": memory.swapped})),
            "controlGroupBytes": usage.group,
            "network": usage.network.as_ref().map(traffic),
        },
    })
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e3
}

fn traffic(counters: &Counters) -> Value {
    json!({
        "receivedBytes": counters.received, "sentBytes": counters.sent, "receivedPackets": counters.packets_received,
        "sentPackets": counters.packets_sent, "droppedPackets": counters.dropped,
    })
}

fn all(host: &Host, pod: &Pod, seen: &Beside) -> Value {
    let (uid, state) = (&pod.desired.uid, &pod.state);
    let machine = host.store.machine_dir(uid);
    let logs = logs::pod_directory(&host.config.log_dir, &pod.desired);
    let (ended, unknown) = match &pod.process {
        Process::Ended(why) => (Some(why), None),
        Process::Unknown(why) => (None, Some(why)),
        Process::Alive(_) | Process::Never => (None, None),
    };
    let mut value = summary(pod);
    value["daemon"] = daemon(seen.daemon);
    value["verdict"] = json!(state.verdict);
    value["deletion"] = json!(state.deletion.as_ref().map(|deletion| json!({"killAt": deletion.kill_at})));
    value["machine"] = json!({
        "record": state.machine,
        "failures": state.machine_failures,
        "ended": ended,
        "unknown": unknown,
        "shape": pod.started.as_ref().map(|started| &started.shape),
        "room": state.room,
        "controlGroup": seen.group,
        "pids": seen.pids,
        "says": match &seen.control {
            None => Value::Null,
            Some(Ok(status)) => json!({"state": status.state, "logs": status.logs, "link": status.link}),
            Some(Err(error)) => json!({"error": error}),
        },
    });
    value["containers"] = json!({
        "running": value["containers"]["running"],
        "total": value["containers"]["total"],
        "items": state.containers.iter().chain(&state.ephemeral).enumerate()
            .map(|(index, one)| container(pod, (index, one), &logs)).collect::<Vec<_>>(),
    });
    value["network"] = json!(seen.interface);
    value["files"] = json!({
        "record": host.store.dir(uid).join("state.json"),
        "machine": machine,
        "machineLog": machine.join("machine.log"),
        "console": Some(machine.join("console.log")).filter(|path| path.exists()),
        "logs": logs,
    });
    value
}

fn container(pod: &Pod, (index, one): (usize, &ContainerState), logs: &Path) -> Value {
    let wished: Option<&DesiredContainer> = pod
        .desired
        .containers
        .iter()
        .chain(&pod.desired.ephemeral)
        .find(|own| own.name == one.name);
    let kind = match wished {
        Some(own) if own.sidecar => "sidecar",
        Some(own) if own.init => "init",
        Some(own) if own.ephemeral.is_some() => "ephemeral",
        _ => "container",
    };
    json!({
        "name": one.name,
        "kind": kind,
        "image": one.image_name,
        "imageID": one.image.id(),
        "runs": pod.runs(one),
        "record": standing(&one.slot),
        "lastEnd": one.last.as_ref().map(end),
        "restarts": one.restarts,
        "ready": one.health.ready,
        "resources": pod.state.in_force(index).filter(|_| index < pod.state.containers.len()).map(|given| json!({
            "requests": amounts(given.requests), "limits": amounts(given.limits)})),
        "log": logs.join(&one.name).join(format!("{}.log", one.restarts)),
    })
}

/// None of what is zero, which is none.
fn amounts([cpu, memory, storage]: [u64; 3]) -> Value {
    let some = |amount: u64| (amount > 0).then_some(amount);
    json!({"milliCPU": some(cpu), "memoryBytes": some(memory), "ephemeralStorageBytes": some(storage)})
}

fn standing(slot: &Slot) -> Value {
    match slot {
        Slot::Waiting {
            reason,
            message,
            not_before,
        } => json!({"waiting": {"reason": reason, "message": message, "notBefore": not_before}}),
        Slot::Starting { id } => json!({"starting": {"id": id}}),
        Slot::Running { id, started } => json!({"running": {"id": id, "started": started}}),
        Slot::Ended(ended) => json!({"ended": end(ended)}),
    }
}

/// Without its termination message, which is the pod's own.
fn end(ended: &Ended) -> Value {
    json!({"id": ended.id, "code": ended.code, "signal": ended.signal, "reason": ended.reason, "started": ended.started,
        "finished": ended.finished})
}

#[cfg(test)]
mod tests {
    use kvmlet_provider::{config::Config, store::Store};

    use super::*;
    use crate::operate::model::tests::pod;

    fn host(state: &Path) -> Host {
        std::fs::create_dir_all(state.join("pods")).unwrap();
        Host {
            config: Config::assumed(),
            path: "/etc/kvmlet/config.yaml".into(),
            store: Store::look(state).unwrap(),
        }
    }

    #[test]
    fn nothing_of_a_pods_variables_and_arguments_is_told() {
        let state = tempfile::tempdir().unwrap();
        let told = all(&host(state.path()), &pod("hello", |_| {}), &Beside::default());
        let text = told.to_string();
        for secret in ["very-secret", "TOKEN", "hunter2"] {
            assert!(!text.contains(secret), "{secret} is in {told:#}");
        }
        assert!(text.contains("busybox"), "{told:#}");
    }

    #[test]
    fn the_machine_its_containers_and_their_files_are_told() {
        let state = tempfile::tempdir().unwrap();
        let dead = |pod: &mut Pod| pod.process = Process::Ended("its process was killed".into());
        let told = all(&host(state.path()), &pod("hello", dead), &Beside::default());
        assert_eq!(
            (&told["state"], &told["machine"]["ended"]),
            (&json!("Lost"), &json!("its process was killed"))
        );
        let hidden = |pod: &mut Pod| pod.process = Process::Unknown("open a pidfd: no room".into());
        let unknown = all(&host(state.path()), &pod("hello", hidden), &Beside::default());
        assert_eq!(
            (&unknown["state"], &unknown["machine"]["ended"], &unknown["machine"]["unknown"]),
            (&json!("Unknown"), &Value::Null, &json!("open a pidfd: no room"))
        );
        assert_eq!(told["machine"]["shape"]["memory"], 192 << 20);
        assert_eq!(told["start"]["phases"][1], json!({"phase": "guest", "milliseconds": 420.0}));
        let kinds: Vec<_> = told["containers"]["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["kind"].clone())
            .collect();
        assert_eq!(kinds, ["init", "sidecar", "container"]);
        let main = &told["containers"]["items"][2];
        assert_eq!(main["log"], "/var/log/pods/default_hello_hello-0123456789/main/0.log");
        assert_eq!((&main["runs"], &main["record"]["running"]["id"]), (&json!(false), &json!("main-1")));
        assert_eq!(told["files"]["console"], Value::Null);
    }
}
