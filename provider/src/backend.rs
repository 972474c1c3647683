//! What the kubelet port asks, answered from the pods' tasks and their guests.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kvmlet_protocol::{ExecInput, ExecOutput, ExecSpec, MAX_CHUNK, Request, Response};
use kvmlet_server::{Backend, ExecExit, ExecRequest, ExecSession, LogError, LogSource, LogTarget, StreamError, TerminalSize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use crate::{
    act::log_directory,
    agent::{self, Agent},
    context::Context,
    driver::{Handle, View},
    kubelet::Pods,
    state::{ContainerState, ImageState, Slot},
};

/// Bytes between the guest and a client that are on their way.
const PIPE: usize = 64 << 10;

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

    /// The running container that a command is for.
    fn container(&self, request: &ExecRequest) -> Result<(Arc<Handle>, String), StreamError> {
        let (handle, view) = self
            .find(&request.namespace, &request.pod, request.uid.as_deref())
            .ok_or(StreamError::UnknownPod)?;
        let container = view.state.containers.iter().find(|c| c.name == request.container);
        let container = container.ok_or_else(|| StreamError::UnknownContainer {
            container: request.container.clone(),
        })?;
        match &container.slot {
            Slot::Running { id, .. } => Ok((handle, id.clone())),
            _ => Err(StreamError::NotRunning {
                container: request.container.clone(),
                pod: request.pod.clone(),
            }),
        }
    }
}

fn object(view: &View) -> Pod {
    let mut pod = (*view.desired.pod).clone();
    pod.status = Some((*view.status).clone());
    pod
}

/// Number of the instance whose log is meant by the present one; `None` before the first.
fn instance(c: &ContainerState) -> Option<u32> {
    match &c.slot {
        Slot::Running { .. } | Slot::Ended(_) | Slot::Starting { .. } => Some(c.restarts),
        Slot::Waiting { .. } => c.last.as_ref().and(c.restarts.checked_sub(1)),
    }
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

    async fn log_source(&self, target: LogTarget) -> Result<LogSource, LogError> {
        let (handle, view) = self
            .find(&target.namespace, &target.pod, None)
            .ok_or_else(|| LogError::UnknownPod { pod: target.pod.clone() })?;
        let (container, pod) = (target.container.clone(), target.pod.clone());
        let c = view
            .state
            .containers
            .iter()
            .find(|c| c.name == container)
            .ok_or_else(|| LogError::UnknownContainer {
                container: container.clone(),
                pod: pod.clone(),
            })?;
        let number = if target.previous {
            instance(c).and_then(|n| n.checked_sub(1)).ok_or(LogError::NoPrevious {
                container: container.clone(),
                pod,
            })?
        } else {
            let waiting = || {
                let reason = match (&c.slot, &c.image) {
                    (Slot::Waiting { reason: Some(reason), .. }, _) | (_, ImageState::Failed { reason, .. }) => reason.clone(),
                    _ => "ContainerCreating".into(),
                };
                LogError::Waiting {
                    container: container.clone(),
                    pod: pod.clone(),
                    reason,
                }
            };
            instance(c).ok_or_else(waiting)?
        };
        let (sender, running) = watch::channel(true);
        let mut views = handle.view.clone();
        tokio::spawn(async move {
            loop {
                let alive = views
                    .borrow()
                    .state
                    .containers
                    .iter()
                    .any(|c| c.name == container && c.restarts == number && c.slot.is_alive());
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
        self.container(request).map(|_| ())
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let (handle, container) = self.container(&request)?;
        let socket = handle.machine.lock().expect("no holder panics").as_ref().map(|m| m.vsock.clone());
        let socket = socket.ok_or_else(|| StreamError::Failed("the pod's machine is not there".into()))?;
        let internal = |e: agent::AgentError| StreamError::Failed(e.to_string());
        let mut agent = Agent::connect(&socket).await.map_err(internal)?;
        let spec = ExecSpec {
            container,
            args: request.command,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.tty,
        };
        match agent.ask(&Request::Exec(spec)).await {
            Ok(Response::Started { .. }) => {}
            Ok(_) => return Err(StreamError::Failed("the agent answered with something else".into())),
            Err(error) => return Err(internal(error)),
        }
        Ok(session(agent, request.stdin, request.tty))
    }
}

/// Joins the agent's frames to streams. Each direction holds at most a pipe's worth; dropping the session closes the connection, which ends
/// the command.
fn session(agent: Agent, wants_input: bool, terminal: bool) -> ExecSession {
    let (mut from_guest, mut to_guest) = agent.into_stream().into_split();
    let (stdin, mut input) = tokio::io::duplex(PIPE);
    let (mut out_in, stdout) = tokio::io::duplex(PIPE);
    let (mut err_in, stderr) = tokio::io::duplex(PIPE);
    let (exit_in, exit) = tokio::sync::oneshot::channel();
    let reader = tokio::spawn(async move {
        let result = loop {
            match agent::receive::<ExecOutput>(&mut from_guest).await {
                // A client that does not read an output any more still gets the exit.
                Ok(ExecOutput::Stdout(bytes)) => drop(out_in.write_all(&bytes).await),
                Ok(ExecOutput::Stderr(bytes)) => drop(err_in.write_all(&bytes).await),
                Ok(ExecOutput::Exited { code }) => break Ok(ExecExit::Code(code)),
                Ok(ExecOutput::Failed { message, .. }) => break Err(StreamError::Failed(message)),
                Err(error) => break Err(StreamError::Failed(format!("the session with the guest was cut: {error}"))),
            }
        };
        let _ = exit_in.send(result);
    });
    let (resize, mut sizes) = tokio::sync::mpsc::channel::<TerminalSize>(4);
    let writer = tokio::spawn(async move {
        let mut buffer = vec![0; MAX_CHUNK];
        let (mut open, mut sized) = (wants_input, terminal);
        if !open {
            let _ = agent::send(&mut to_guest, &ExecInput::StdinClosed).await;
        }
        // Goes on after the input's end: closing the connection would end the command.
        loop {
            let frame = tokio::select! {
                read = input.read(&mut buffer), if open => match read {
                    Ok(n) if n > 0 => ExecInput::Stdin(buffer[..n].to_vec()),
                    _ => {
                        open = false;
                        ExecInput::StdinClosed
                    }
                },
                size = sizes.recv(), if sized => match size {
                    Some(size) => ExecInput::Resize { width: size.width, height: size.height },
                    None => {
                        sized = false;
                        continue;
                    }
                },
                else => std::future::pending().await,
            };
            if agent::send(&mut to_guest, &frame).await.is_err() {
                return;
            }
        }
    });
    let guard = (Abort(reader.abort_handle()), Abort(writer.abort_handle()));
    ExecSession {
        stdin: wants_input.then(|| Box::new(stdin) as _),
        stdout: Some(Box::new(stdout)),
        stderr: Some(Box::new(stderr)),
        resize: terminal.then_some(resize),
        exit: Box::pin(async move {
            let result = exit
                .await
                .unwrap_or_else(|_| Err(StreamError::Failed("the session was cut".into())));
            drop(guard);
            result
        }),
    }
}

/// Ends a task when the session is dropped.
struct Abort(tokio::task::AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
