//! What the kubelet port asks, answered from the pods' tasks and their guests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kvmlet_server::{
    Asked, AttachRequest, Backend, ContainerTarget, ExecRequest, ExecSession, Figures, FiguresPage, LogError, LogSource, LogTarget,
    PortConnection, PortForwardRequest, StreamError,
};
use tokio::sync::watch;

use crate::{
    act::log_directory,
    context::Context,
    driver::{Handle, View},
    figures,
    kubelet::Pods,
    logs,
    state::{Machine, Slot},
    streams,
};

/// The provider behind the port.
pub struct Provider {
    /// The pods.
    pub pods: Pods,
    /// What they share.
    pub context: Arc<Context>,
}

impl Provider {
    /// The pod of this name: the one that is not on its way out, if there are two.
    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<(Arc<Handle>, Arc<View>)> {
        let pods = self.pods.lock().expect("no holder panics");
        let mut found: Vec<_> = pods
            .iter()
            .filter(|(id, _)| uid.is_none_or(|uid| uid == id.as_str()))
            .map(|(_, handle)| (handle.clone(), handle.view.borrow().clone()))
            .filter(|(_, view)| view.desired.namespace == namespace && view.desired.name == name)
            .collect();
        found.sort_by_key(|(_, view)| (view.state.deletion.is_some(), std::cmp::Reverse(view.state.accepted)));
        found.into_iter().next()
    }

    fn views(&self) -> Vec<Arc<View>> {
        self.pods
            .lock()
            .expect("no holder panics")
            .values()
            .map(|handle| handle.view.borrow().clone())
            .collect()
    }

    /// The running container that a client means, by its identifier.
    fn container(&self, target: &ContainerTarget) -> Result<(Arc<Handle>, Arc<View>, String), StreamError> {
        let (handle, view) = self
            .find(&target.namespace, &target.pod, target.uid.as_deref())
            .ok_or(StreamError::UnknownPod)?;
        let container = view.state.by_name(&target.container);
        let container = container.ok_or_else(|| StreamError::UnknownContainer {
            container: target.container.clone(),
        })?;
        match &container.slot {
            Slot::Running { id, .. } => {
                let id = id.clone();
                Ok((handle, view, id))
            }
            _ => Err(StreamError::NotRunning {
                container: target.container.clone(),
                pod: target.pod.clone(),
            }),
        }
    }

    /// The socket of the machine whose ports a client wants to reach.
    fn machine_of(&self, request: &PortForwardRequest) -> Result<PathBuf, StreamError> {
        let (handle, view) = self
            .find(&request.namespace, &request.pod, request.uid.as_deref())
            .ok_or(StreamError::UnknownPod)?;
        match view.state.machine {
            Machine::Ready => vsock(&handle),
            _ => Err(StreamError::PodNotRunning { pod: request.pod.clone() }),
        }
    }
}

fn object(view: &View) -> Pod {
    let mut pod = (*view.desired.pod).clone();
    pod.status = Some((*view.status).clone());
    pod
}

impl Backend for Provider {
    async fn pods(&self) -> Vec<Pod> {
        self.views().iter().map(|view| object(view)).collect()
    }

    async fn running_pods(&self) -> Vec<Pod> {
        self.views()
            .iter()
            .filter(|v| v.state.containers.iter().any(|c| matches!(c.slot, Slot::Running { .. })))
            .map(|v| object(v))
            .collect()
    }

    fn asked(&self, asked: &Asked) {
        self.context.meters.kubelet.asked(asked);
    }

    fn served(&self, asked: &Asked, took: Duration) {
        self.context.meters.kubelet.served(asked, took);
    }

    async fn figures(&self, page: FiguresPage) -> Result<Figures, String> {
        figures::page(&self.context, &self.pods, page).await
    }

    async fn log_source(&self, target: LogTarget) -> Result<LogSource, LogError> {
        let (handle, view) = self
            .find(&target.namespace, &target.pod, None)
            .ok_or_else(|| LogError::UnknownPod { pod: target.pod.clone() })?;
        let container = target.container.clone();
        let number = logs::instance(&view.desired, &view.state, &container, target.previous)?;
        let (sender, running) = watch::channel(true);
        let mut views = handle.view.clone();
        tokio::spawn(async move {
            loop {
                let alive = logs::is_written(&views.borrow().state, &container, number);
                sender.send_replace(alive);
                tokio::select! {
                    changed = views.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
                if !alive {
                    return;
                }
            }
        });
        Ok(LogSource {
            directory: log_directory(&self.context, &view.desired, &target.container),
            restart_count: number,
            running,
        })
    }

    async fn check_exec(&self, request: &ExecRequest) -> Result<(), StreamError> {
        self.container(&request.target).map(drop)
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let (handle, _, container) = self.container(&request.target)?;
        streams::exec(&vsock(&handle)?, container, request).await
    }

    async fn check_attach(&self, request: &AttachRequest) -> Result<(), StreamError> {
        self.container(&request.target).map(drop)
    }

    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, StreamError> {
        let (handle, view, container) = self.container(&request.target)?;
        // Whether there is a terminal the container says, not the client.
        let terminal = streams::has_terminal(&view.desired, &request.target.container);
        streams::attach(&vsock(&handle)?, container, request.wanted, terminal).await
    }

    async fn check_port_forward(&self, request: &PortForwardRequest) -> Result<(), StreamError> {
        self.machine_of(request).map(drop)
    }

    async fn port_forward(&self, request: &PortForwardRequest, port: u16) -> Result<PortConnection, StreamError> {
        streams::forward(&self.machine_of(request)?, port).await
    }
}

/// The socket of a pod's machine.
fn vsock(handle: &Handle) -> Result<PathBuf, StreamError> {
    let socket = handle.machine.lock().expect("no holder panics").as_ref().map(|m| m.vsock.clone());
    socket.ok_or_else(|| StreamError::Failed("the pod's machine is not there".into()))
}
