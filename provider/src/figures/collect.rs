//! One reading: the host, and all guests side by side.

use std::{path::PathBuf, sync::Arc};

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use kvmlet_protocol::{ContainerFigures, FIGURES_VERSION, GroupFigures, GuestFigures, Request, Response};
use tokio::time::timeout;
use tracing::debug;

use super::{
    PATIENCE, host,
    model::{ContainerSample, GuestSample, PodFigures, Snapshot},
};
use crate::{
    act::{chain, log_directory},
    agent::{Agent, AgentError},
    cgroup,
    context::Context,
    driver::View,
    kubelet::Pods,
    state::{Machine, Slot},
};

/// Guests that are asked at once.
pub(super) const AT_ONCE: usize = 32;

/// The pods that have a machine, and where that is reached.
pub(super) fn machines(pods: &Pods) -> Vec<(Arc<View>, PathBuf)> {
    let pods = pods.lock().expect("no holder panics");
    let machines = pods.values().filter_map(|handle| {
        let view = handle.view.borrow().clone();
        let vsock = handle.machine.lock().expect("no holder panics").as_ref()?.vsock.clone();
        matches!(view.state.machine, Machine::Ready).then_some((view, vsock))
    });
    machines.collect()
}

pub(super) async fn collect(context: &Arc<Context>, pods: &Pods) -> Snapshot {
    let pods = stream::iter(machines(pods))
        .map(|asked| pod(context, asked))
        .buffer_unordered(AT_ONCE);
    let mut pods: Vec<PodFigures> = pods.collect().await;
    pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    let host = context.clone();
    let node = blocking(move || host::read(&host.config.node_name, &host.config.state_dir, host.images.bytes())).await;
    Snapshot {
        node,
        pods,
        at: Timestamp::now(),
    }
}

async fn pod(context: &Arc<Context>, (view, vsock): (Arc<View>, PathBuf)) -> PodFigures {
    let desired = &view.desired;
    let guest = match timeout(PATIENCE, ask(&vsock)).await {
        Ok(Ok(figures)) => {
            let (context, view) = (context.clone(), view.clone());
            Some(blocking(move || sample(&context, &view, figures)).await)
        }
        Ok(Err(error)) => {
            debug!(
                error = chain(&error),
                pod = desired.name,
                namespace = desired.namespace,
                "a guest's figures"
            );
            None
        }
        Err(_) => None,
    };
    PodFigures {
        namespace: desired.namespace.clone(),
        name: desired.name.clone(),
        uid: desired.uid.clone(),
        started: view.state.accepted,
        machine: cgroup::usage(&desired.uid),
        guest,
    }
}

/// Reads files where that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// What a guest says of itself.
pub(crate) async fn ask(vsock: &std::path::Path) -> Result<GuestFigures, AgentError> {
    let mut agent = Agent::connect(vsock).await?;
    if agent.welcome().version >= FIGURES_VERSION {
        return match agent.ask(&Request::Figures).await? {
            Response::Figures(figures) => Ok(*figures),
            _ => Err(AgentError::Unexpected("figures")),
        };
    }
    match agent.ask(&Request::Stats).await? {
        Response::Stats(stats) => Ok(of_old(stats)),
        _ => Err(AgentError::Unexpected("stats")),
    }
}

/// What guests of older nodes say: of each container only processor time and memory.
fn of_old(stats: kvmlet_protocol::GuestStats) -> GuestFigures {
    let mut pod = GroupFigures::default();
    let containers = stats.containers.into_iter().map(|(id, memory, working_set, cpu)| {
        pod.cpu = pod.cpu.saturating_add(cpu);
        pod.memory = pod.memory.saturating_add(memory);
        pod.working_set = pod.working_set.saturating_add(working_set);
        let group = GroupFigures {
            cpu,
            memory,
            working_set,
            ..GroupFigures::default()
        };
        ContainerFigures { id, group }
    });
    let containers = containers.collect();
    GuestFigures {
        memory_total: stats.memory_total,
        memory_available: stats.memory_available,
        pod,
        containers,
        disk: None,
        network: None,
    }
}

/// The guest's figures with the names that the node knows; of what the node does not know to run, nothing. Reads the sizes of logs.
fn sample(context: &Context, view: &View, figures: GuestFigures) -> GuestSample {
    let all = (0..).zip(view.state.containers.iter().chain(&view.state.ephemeral));
    let running = all.filter_map(|(index, container)| {
        let Slot::Running { id, started } = &container.slot else {
            return None;
        };
        let seen = figures.containers.iter().find(|seen| seen.id == *id)?;
        let desired = view.desired.at(index);
        Some(ContainerSample {
            name: container.name.clone(),
            id: id.clone(),
            image: container.image_name.clone(),
            started: *started,
            group: seen.group,
            limits: [desired.limits.cpu.milli_value(), desired.limits.memory.value()],
            logs: host::size_of_files(&log_directory(context, &view.desired, &container.name)),
        })
    });
    GuestSample {
        at: Timestamp::now(),
        pod: figures.pod,
        disk: figures.disk,
        network: figures.network,
        containers: running.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_an_older_node_has_its_containers_added_up() {
        let figures = of_old(kvmlet_protocol::GuestStats {
            memory_total: 9,
            memory_available: 5,
            containers: vec![("a".into(), 3, 2, 100), ("b".into(), 4, 1, u64::MAX)],
        });
        assert_eq!((figures.pod.memory, figures.pod.working_set, figures.pod.cpu), (7, 3, u64::MAX));
        assert_eq!(figures.containers[1].group.memory, 4);
    }
}
