//! A pod of this host as it was seen at one moment, and what that means in words. Pure.

use std::collections::BTreeSet;

use kvmlet_network::Counters;
use kvmlet_protocol::{ContainerState as InGuest, ContainerStatus};
use kvmlet_provider::{
    desired::{DesiredContainer, DesiredPod},
    started::{How, Started, Took},
    state::{ContainerState, Machine, PodState, Slot},
    store::Record,
};

use super::text;

/// A pod, its machine, and what it uses.
pub(super) struct Pod {
    pub(super) desired: DesiredPod,
    pub(super) state: PodState,
    /// status.phase, as this node has it.
    pub(super) phase: String,
    pub(super) process: Process,
    pub(super) started: Option<Started>,
    pub(super) usage: Usage,
    /// What the guest says of its containers, where it was asked and has answered.
    pub(super) guest: Option<Vec<ContainerStatus>>,
}

/// A machine's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Process {
    /// It runs.
    Alive(u32),
    /// It is gone, in these words.
    Ended(String),
    /// There was none yet, or its traces are gone.
    Never,
    /// It could not be looked at, in these words.
    Unknown(String),
}

/// What a machine uses of the host; what the host does not say is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time, nanoseconds.
    pub(super) cpu: Option<u64>,
    pub(super) memory: Option<Memory>,
    /// What its control group is charged for, the kernel's part too, bytes.
    pub(super) group: Option<u64>,
    pub(super) network: Option<Counters>,
}

/// Memory of a machine's processes, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Theirs alone: it is free once they are gone.
    pub(super) unique: u64,
    /// Pages that others have too: images, the template.
    pub(super) shared: u64,
    /// Swapped out.
    pub(super) swapped: u64,
}

impl Pod {
    pub(super) fn new(record: Record, process: Process, started: Option<Started>) -> Self {
        let status = record.pod.status.as_ref();
        Self {
            phase: status.and_then(|status| status.phase.clone()).unwrap_or_default(),
            desired: DesiredPod::read(record.pod).0,
            state: record.state,
            process,
            started,
            usage: Usage::default(),
            guest: None,
        }
    }

    pub(super) fn full(&self) -> String {
        format!("{}/{}", self.desired.namespace, self.desired.name)
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self.process {
            Process::Alive(pid) => Some(pid),
            Process::Ended(_) | Process::Never | Process::Unknown(_) => None,
        }
    }

    /// Where the pod stands, in one word.
    pub(super) fn standing(&self) -> &str {
        let state = &self.state;
        match (&state.machine, &self.process) {
            _ if state.released => match self.phase.as_str() {
                "" | "Pending" | "Running" => "Ended",
                phase => phase,
            },
            _ if state.deletion.is_some() => "Ending",
            (Machine::Stopping, _) => "Stopping",
            (Machine::Starting, _) => "Starting",
            (Machine::Ready, Process::Alive(_)) => "Running",
            (Machine::Ready, Process::Unknown(_)) => "Unknown",
            (Machine::Ready, Process::Ended(_) | Process::Never) => "Lost",
            (Machine::None { .. }, _) if state.machine_failures > 0 => "Retrying",
            (Machine::None { .. }, _) => "Pending",
        }
    }

    /// Whether a container runs, as far as is known.
    pub(super) fn runs(&self, container: &ContainerState) -> bool {
        let Slot::Running { id, .. } = &container.slot else { return false };
        self.pid().is_some() && self.guest.as_ref().is_none_or(|all| runs_in(all, id))
    }

    /// Containers that run and that there are, as kubectl counts them: sidecars too, other init containers and ephemeral ones not.
    pub(super) fn counts(&self) -> (usize, usize) {
        let stay = |one: &&DesiredContainer| !one.init || one.sidecar;
        let names: BTreeSet<&str> = self.desired.containers.iter().filter(stay).map(|one| one.name.as_str()).collect();
        let own = self.state.containers.iter().filter(|one| names.contains(one.name.as_str()));
        (own.filter(|one| self.runs(one)).count(), names.len())
    }

    /// How its machine came up, once its guest has answered.
    pub(super) fn how(&self) -> Option<&How> {
        self.started.as_ref()?.how.as_ref()
    }

    /// `copy 0.42s`, `boot 3.10s`; of one that has not answered yet nothing.
    pub(super) fn start(&self) -> String {
        text::or_none(self.how().map(|how| format!("{} {}", how.word(), text::span(how.microseconds))))
    }

    pub(super) fn phases(&self) -> &[Took] {
        self.started.as_ref().map_or(&[], |started| &started.phases)
    }
}

/// Whether a guest that has these containers runs the one of this identifier.
pub(super) fn runs_in(all: &[ContainerStatus], id: &str) -> bool {
    let own = all.iter().find(|own| own.id == id);
    own.is_some_and(|own| matches!(own.state, InGuest::Running { .. }))
}

/// All names of a pod's containers, as kubectl lists them: `main, debug (ephem), setup (init)`.
pub(super) fn all_names(pod: &DesiredPod) -> String {
    let named = |wanted: bool, kind: &'static str| {
        let own = pod.containers.iter().filter(move |one| one.init == wanted);
        own.map(move |one| format!("{}{kind}", one.name))
    };
    let ephemeral = pod.ephemeral.iter().map(|one| format!("{} (ephem)", one.name));
    named(false, "")
        .chain(ephemeral)
        .chain(named(true, " (init)"))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
pub(super) mod tests {
    use std::{sync::Arc, time::Duration};

    use jiff::Timestamp;
    use kvmlet_provider::{figures::Phase, template::Start};
    use serde_json::json;

    use super::*;

    /// A pod that runs, or as `change` makes it.
    pub(in crate::operate) fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Pod {
        let object = json!({"metadata": {"namespace": "default", "name": name, "uid": format!("{name}-0123456789")},
            "status": {"phase": "Running"}, "spec": {
                "initContainers": [{"name": "setup", "image": "busybox"}, {"name": "proxy", "image": "busybox", "restartPolicy": "Always"}],
                "containers": [{"name": "main", "image": "busybox", "command": ["serve", "--password=hunter2"],
                    "env": [{"name": "TOKEN", "value": "very-secret"}]}]}});
        let object = Arc::new(serde_json::from_value(object).unwrap());
        let (desired, _) = DesiredPod::read(Arc::clone(&object));
        let mut state = PodState::new(&desired, None, Timestamp::UNIX_EPOCH);
        state.machine = Machine::Ready;
        for container in &mut state.containers {
            container.slot = Slot::Running {
                id: format!("{}-1", container.name),
                started: Timestamp::UNIX_EPOCH,
            };
        }
        let spec = serde_json::from_value(
            json!({"version": vmm_lib::spec::SPEC_VERSION, "name": "m", "cpus": 2, "memory": 192 << 20,
            "boot": {"kernel": {"path": "/k"}, "initramfs": null, "commandLine": ""}}),
        );
        let phases = [
            (Phase::Surroundings, Duration::from_millis(120)),
            (Phase::Guest, Duration::from_millis(420)),
        ];
        let how = How::new(&Start::Copy(1), Duration::from_millis(420));
        let started = Started::new(Timestamp::UNIX_EPOCH, &[], &spec.unwrap()).up(how, &phases);
        let mut pod = Pod::new(
            Record {
                pod: object,
                state,
                revision: 1,
            },
            Process::Alive(4711),
            Some(started),
        );
        pod.usage = Usage {
            cpu: Some(2_000_000_000),
            memory: Some(Memory {
                unique: 40 << 20,
                shared: 90 << 20,
                swapped: 0,
            }),
            group: Some(44 << 20),
            network: Some(Counters {
                received: 1000,
                sent: 2000,
                ..Counters::default()
            }),
        };
        change(&mut pod);
        pod
    }

    #[test]
    fn a_pod_stands_where_its_record_and_its_process_say() {
        let standing = |change: fn(&mut Pod)| pod("p", change).standing().to_owned();
        assert_eq!(standing(|_| {}), "Running");
        assert_eq!(standing(|pod| pod.process = Process::Ended("it was killed".into())), "Lost");
        assert_eq!(standing(|pod| pod.process = Process::Unknown("no room".into())), "Unknown");
        assert_eq!(standing(|pod| pod.state.machine = Machine::Starting), "Starting");
        assert_eq!(standing(|pod| pod.state.machine = Machine::None { not_before: None }), "Pending");
        let failed = |pod: &mut Pod| {
            pod.state.machine = Machine::None { not_before: None };
            pod.state.machine_failures = 2;
        };
        assert_eq!(standing(failed), "Retrying");
        let ended = |pod: &mut Pod| {
            pod.state.released = true;
            pod.phase = "Succeeded".into();
        };
        assert_eq!(standing(ended), "Succeeded");
    }

    #[test]
    fn containers_count_as_kubectl_counts_them_and_guests_know_better_than_a_daemon_that_is_away() {
        assert_eq!(
            pod("p", |_| {}).counts(),
            (2, 2),
            "a sidecar counts, another init container does not"
        );
        let exited = |pod: &mut Pod| {
            let running = |id: &str| ContainerStatus {
                id: id.into(),
                state: InGuest::Running { pid: 1, started: 0 },
            };
            pod.guest = Some(vec![running("proxy-1")]);
        };
        assert_eq!(pod("p", exited).counts(), (1, 2));
        assert_eq!(pod("p", |pod| pod.process = Process::Never).counts(), (0, 2));
    }

    #[test]
    fn names_of_containers_are_listed_as_kubectl_lists_them() {
        assert_eq!(all_names(&pod("p", |_| {}).desired), "main, setup (init), proxy (init)");
    }

    #[test]
    fn a_start_is_told_once_the_guest_has_answered() {
        assert_eq!(pod("p", |_| {}).start(), "copy 420ms");
        assert_eq!(pod("p", |pod| pod.started = None).start(), "-");
    }
}
