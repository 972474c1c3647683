//! Brings into force what a pod was allocated: its control group on the host, its machine's memory, its guest's processors, its containers'
//! limits; what grows first, what shrinks last. Done again from the start after any failure.

use std::{sync::Arc, time::Duration};

use kvmlet_protocol::{LIMIT_POD_VERSION, RESIZE_VERSION, Request};
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::{
    act::{Act, chain},
    agent::Agent,
    cgroup,
    desired::DesiredPod,
    lower,
    machine::Running,
    prepare,
    size::Room,
    state::{Allocation, PodState, Slot},
    streams,
};

/// How long a guest may take to plug the memory that it is given.
const GROWTH: Duration = Duration::from_secs(60);
/// How often it is asked whether it has.
const GLANCE: Duration = Duration::from_millis(50);

/// A resize that was allocated.
pub struct Order {
    /// What is in force when it is done.
    allocated: Vec<Allocation>,
    /// The pod's images, in the order of their devices.
    images: Vec<String>,
    /// Containers that run and go on: positions and identifiers.
    running: Vec<(usize, String)>,
    room: Option<Room>,
}

impl Order {
    /// As the pod stands now.
    pub fn new(state: &PodState) -> Self {
        let running = state.containers.iter().enumerate().filter_map(|(index, c)| match &c.slot {
            Slot::Running { id, .. } if c.stop.is_none() => Some((index, id.clone())),
            _ => None,
        });
        Self {
            allocated: state.allocated.clone(),
            images: state.device_images(),
            running: running.collect(),
            room: state.room,
        }
    }
}

/// Does it; the answer is what is in force.
pub async fn resize(act: &Act, desired: &Arc<DesiredPod>, order: Order) -> Result<Vec<Allocation>, String> {
    let running = act.running().ok_or("the machine is not there")?;
    let room = order
        .room
        .ok_or("the pod's machine was made by a release that did not resize; a new pod can be resized")?;
    let mut agent = Agent::connect(&running.vsock).await.map_err(|e| chain(&e))?;
    let limits = lower::pod_limits(desired);
    let needed = if limits.is_some() { LIMIT_POD_VERSION } else { RESIZE_VERSION };
    let version = agent.welcome().version;
    if version < needed {
        return Err(streams::too_old(version, needed));
    }
    let size = prepare::size_with(&act.context, desired, &order.images)?;
    let before = running.with_control(|c| c.memory(None).map_err(|e| chain(&e))).await?;
    // What it began with stays.
    let memory = size.memory.max(before.least);
    let allow = |memory: u64| {
        if let Err(error) = cgroup::allow(&desired.uid, memory, size.cpus, room) {
            warn!(%error, "limit the machine's control group anew");
        }
    };
    allow(memory.max(before.wanted).max(before.present));
    if memory > before.wanted {
        running.with_control(move |c| c.memory(Some(memory)).map_err(|e| chain(&e))).await?;
        grown(&running, memory).await?;
    }
    let containers = order
        .running
        .iter()
        .map(|(index, id)| (id.clone(), lower::resources(&desired.containers[*index])));
    let request = Request::Resize {
        cpus: size.cpus,
        containers: containers.collect(),
    };
    agent.command(&request).await.map_err(|e| chain(&e))?;
    if let Some(limits) = limits {
        agent.command(&Request::LimitPod(limits)).await.map_err(|e| chain(&e))?;
    }
    if memory < before.wanted {
        running.with_control(move |c| c.memory(Some(memory)).map_err(|e| chain(&e))).await?;
        // What the guest cannot free yet it keeps, and may: it goes as it can.
        let left = running.with_control(|c| c.memory(None).map_err(|e| chain(&e))).await?;
        allow(memory.max(left.present));
    }
    Ok(order.allocated)
}

async fn grown(running: &Running, memory: u64) -> Result<(), String> {
    let deadline = Instant::now() + GROWTH;
    loop {
        let now = running.with_control(|c| c.memory(None).map_err(|e| chain(&e))).await?;
        if now.present >= memory {
            return Ok(());
        }
        if Instant::now() > deadline {
            let seconds = GROWTH.as_secs();
            return Err(format!(
                "the guest has taken {} of {memory} bytes of memory after {seconds} s",
                now.present
            ));
        }
        sleep(GLANCE).await;
    }
}
