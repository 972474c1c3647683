//! A backend with one pod `p` in namespace `ns`, whose commands are played by tasks.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kvmlet_server::{
    Asked, AttachRequest, Backend, ExecExit, ExecRequest, ExecSession, Figures, FiguresPage, LogError, LogSource, LogTarget,
    PortConnection, PortForwardRequest, StreamError, TerminalSize,
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot, watch};

/// What tests look at from outside.
#[derive(Debug, Clone)]
pub(crate) struct Fake {
    pub(crate) logs: PathBuf,
    pub(crate) log_running: watch::Sender<bool>,
    /// Sessions that are there now.
    pub(crate) sessions: watch::Sender<usize>,
    /// Bytes that the command `flood` has got rid of, or `sink` has taken.
    pub(crate) flooded: Arc<AtomicU64>,
    /// Requests that were counted.
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    /// How many of them have been answered.
    pub(crate) served: watch::Sender<usize>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            logs: PathBuf::from("/nonexistent"),
            log_running: watch::Sender::new(true),
            sessions: watch::Sender::new(0),
            flooded: Arc::default(),
            asked: Arc::default(),
            served: watch::Sender::new(0),
        }
    }
}

/// Counts a session for as long as it is held.
struct Held(watch::Sender<usize>);

impl Held {
    fn new(sessions: &watch::Sender<usize>) -> Self {
        sessions.send_modify(|count| *count += 1);
        Self(sessions.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Backend for Fake {
    fn asked(&self, asked: &Asked) {
        self.asked.lock().expect("no holder panics").push(*asked);
    }

    fn served(&self, _asked: &Asked, _took: Duration) {
        self.served.send_modify(|count| *count += 1);
    }

    async fn pods(&self) -> Vec<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        vec![pod.clone(), pod]
    }

    async fn running_pods(&self) -> Vec<Pod> {
        Vec::new()
    }

    async fn figures(&self, page: FiguresPage) -> Result<Figures, String> {
        match page {
            FiguresPage::Probes => Err("no probes".into()),
            FiguresPage::Summary { .. } | FiguresPage::Configz => Ok(Figures::Json(json!({"page": format!("{page:?}")}))),
            page => Ok(Figures::Text(format!("{page:?}"))),
        }
    }

    async fn log_source(&self, target: LogTarget) -> Result<LogSource, LogError> {
        let LogTarget {
            pod, container, previous, ..
        } = target;
        match container.as_str() {
            _ if pod != "p" => Err(LogError::UnknownPod { pod }),
            "c" if previous => Err(LogError::NoPrevious { container, pod }),
            "c" => Ok(LogSource {
                directory: self.logs.clone(),
                restart_count: 0,
                running: self.log_running.subscribe(),
            }),
            "waiting" => Err(LogError::Waiting {
                container,
                pod,
                reason: "ContainerCreating".into(),
            }),
            _ => Err(LogError::UnknownContainer { container, pod }),
        }
    }

    async fn check_exec(&self, request: &ExecRequest) -> Result<(), StreamError> {
        let target = &request.target;
        if target.pod != "p" || target.uid.as_deref().is_some_and(|uid| uid != "uid-1") {
            return Err(StreamError::UnknownPod);
        }
        match target.container.as_str() {
            "ended" => Err(StreamError::NotRunning {
                container: "ended".into(),
                pod: "p".into(),
            }),
            "c" | "terminal" => Ok(()),
            _ => Err(StreamError::UnknownContainer {
                container: target.container.clone(),
            }),
        }
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, StreamError> {
        let (stdin, mut input) = duplex(4096);
        let (mut output, stdout) = duplex(4096);
        let (mut errors, stderr) = duplex(4096);
        let (resize, mut sizes) = mpsc::channel::<TerminalSize>(1);
        let (mut exited, exit) = oneshot::channel();
        let argument = request.command.get(1).cloned().unwrap_or_default();
        let flooded = self.flooded.clone();
        if request.command[0] == "missing" {
            return Err(StreamError::Failed("no such file or directory".into()));
        }
        tokio::spawn(async move {
            let code = match request.command[0].as_str() {
                "echo" => output.write_all(argument.as_bytes()).await.map(|()| ExecExit::Code(0)),
                "complain" => errors.write_all(argument.as_bytes()).await.map(|()| ExecExit::Code(1)),
                "exit" => Ok(ExecExit::Code(argument.parse().unwrap_or(99))),
                "signalled" => Ok(ExecExit::Signal(15)),
                "cat" => tokio::io::copy(&mut input, &mut output).await.map(|_| ExecExit::Code(0)),
                "size" => {
                    let size = sizes.recv().await;
                    output.write_all(format!("{size:?}").as_bytes()).await.map(|()| ExecExit::Code(0))
                }
                "flood" => loop {
                    if output.write_all(&[7; 4096]).await.is_err() {
                        break Ok(ExecExit::Code(141));
                    }
                    flooded.fetch_add(4096, Ordering::Relaxed);
                },
                "sink" => {
                    let mut bytes = vec![0; 64 << 10];
                    loop {
                        match input.read(&mut bytes).await {
                            Ok(0) => break Ok(ExecExit::Code(0)),
                            Ok(read) => flooded.fetch_add(read as u64, Ordering::Relaxed),
                            Err(error) => break Err(error),
                        };
                    }
                }
                // Ends when it is given up; reads nothing.
                "hang" => {
                    exited.closed().await;
                    Ok(ExecExit::Code(0))
                }
                unknown => Err(std::io::Error::other(unknown.to_owned())),
            };
            drop((output, errors));
            let _ = exited.send(code);
        });
        let held = Held::new(&self.sessions);
        Ok(ExecSession {
            stdin: request.wanted.stdin.then_some(Box::new(stdin)),
            stdout: request.wanted.stdout.then_some(Box::new(stdout)),
            stderr: request.wanted.stderr.then_some(Box::new(stderr)),
            resize: request.wanted.tty.then_some(resize),
            exit: Box::pin(async move {
                let code = exit.await;
                drop(held);
                match code {
                    Ok(Ok(exit)) => Ok(exit),
                    Ok(Err(error)) => Err(StreamError::Failed(error.to_string())),
                    Err(_) => Err(StreamError::Failed("the command was lost".into())),
                }
            }),
        })
    }

    async fn check_attach(&self, request: &AttachRequest) -> Result<(), StreamError> {
        self.check_exec(&as_cat(request)).await
    }

    /// A container that says all that it hears.
    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, StreamError> {
        self.exec(as_cat(&request)).await
    }

    async fn check_port_forward(&self, request: &PortForwardRequest) -> Result<(), StreamError> {
        match request.pod.as_str() {
            "p" if request.uid.as_deref().is_none_or(|uid| uid == "uid-1") => Ok(()),
            "pending" => Err(StreamError::PodNotRunning { pod: "pending".into() }),
            _ => Err(StreamError::UnknownPod),
        }
    }

    async fn port_forward(&self, _request: &PortForwardRequest, port: u16) -> Result<PortConnection, StreamError> {
        let (near, far) = duplex(4096);
        match port {
            7 => tokio::spawn(echo(far, Held::new(&self.sessions))),
            13 => tokio::spawn(greet(far, Held::new(&self.sessions))),
            19 => tokio::spawn(flood(far, self.flooded.clone(), Held::new(&self.sessions))),
            _ => return Err(StreamError::Failed("connection refused".into())),
        };
        let (reader, writer) = tokio::io::split(near);
        Ok(PortConnection {
            reader: Box::new(reader),
            writer: Box::new(writer),
        })
    }
}

fn as_cat(request: &AttachRequest) -> ExecRequest {
    ExecRequest {
        target: request.target.clone(),
        command: vec!["cat".into()],
        wanted: request.wanted,
    }
}

/// Sends back what comes, until that ends; then ends too.
async fn echo(stream: DuplexStream, held: Held) {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
    drop(held);
}

/// Says hello and ends its direction at once; listens until the other has ended too.
async fn greet(mut stream: DuplexStream, held: Held) {
    let _ = stream.write_all(b"hello").await;
    let _ = stream.shutdown().await;
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    drop(held);
}

/// Sends as long as somebody takes it.
async fn flood(mut stream: DuplexStream, flooded: Arc<AtomicU64>, held: Held) {
    while stream.write_all(&[7; 4096]).await.is_ok() {
        flooded.fetch_add(4096, Ordering::Relaxed);
    }
    drop(held);
}
