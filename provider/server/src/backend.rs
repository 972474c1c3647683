//! What the kubelet port asks of the provider: [`Backend`] and its plain data.
//!
//! Owns no state and does no I/O. Every refusal is a variant that says which HTTP status the client sees.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use axum::http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// The provider as seen from its port.
///
/// Dropping the future of any call, or what it returned, gives the call up.
pub trait Backend: Send + Sync + 'static {
    /// All pods bound to this node, as `/pods` shows them.
    fn pods(&self) -> impl Future<Output = Vec<Pod>> + Send;

    /// The pods that have a machine, as `/runningpods/` shows them.
    fn running_pods(&self) -> impl Future<Output = Vec<Pod>> + Send;

    /// Figures of the node, its pods and the daemon. The error is for people.
    fn figures(&self, page: FiguresPage) -> impl Future<Output = Result<Figures, String>> + Send;

    /// Where the log of one instance of a container is.
    fn log_source(&self, target: LogTarget) -> impl Future<Output = Result<LogSource, LogError>> + Send;

    /// Whether [`Backend::exec`] may be called: runs before the connection is upgraded, so that what it refuses reaches
    /// the client as an HTTP status. It must have no effect.
    fn check_exec(&self, request: &ExecRequest) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// Starts a command in a container. The client's streams exist by then; an error is told on its error stream.
    fn exec(&self, request: ExecRequest) -> impl Future<Output = Result<ExecSession, StreamError>> + Send;

    /// As [`Backend::check_exec`], for [`Backend::attach`].
    fn check_attach(&self, request: &AttachRequest) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// Joins a client to the streams of a container's own process. The session's exit is ready when the container has ended, or
    /// when there is nothing more to be had of it for this client; the code is 0 either way, as the container's own is in its status.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<ExecSession, StreamError>> + Send;

    /// As [`Backend::check_exec`], for [`Backend::port_forward`].
    fn check_port_forward(&self, request: &PortForwardRequest) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// A request has come; nobody has looked yet whose it is.
    fn asked(&self, _asked: &Asked) {}

    /// Its answer is complete, after so long.
    fn served(&self, _asked: &Asked, _took: Duration) {}

    /// Connects to a TCP port of a pod, once for each connection that a client forwards. An error is told on its error stream.
    fn port_forward(&self, request: &PortForwardRequest, port: u16) -> impl Future<Output = Result<PortConnection, StreamError>> + Send;
}

/// What is counted of a request, in a few words each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its method, or `other`.
    pub method: &'static str,
    /// The first part of its path, or `other`.
    pub path: &'static str,
    /// Whether it stays for long.
    pub long_running: bool,
}

/// A page of figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FiguresPage {
    /// `/metrics`: the daemon's own.
    Metrics,
    /// `/metrics/resource`: processor time and memory of pods and node.
    Resource,
    /// `/metrics/cadvisor`: more of the pods, under cAdvisor's names.
    Cadvisor,
    /// `/metrics/probes`: how probes ended.
    Probes,
    /// `/stats/summary`.
    Summary {
        /// Leave out all else.
        only_cpu_and_memory: bool,
    },
    /// `/configz`.
    Configz,
}

/// What a page says.
#[derive(Debug, Clone, PartialEq)]
pub enum Figures {
    /// Prometheus' text format, version 0.0.4.
    Text(String),
    /// JSON.
    Json(serde_json::Value),
}

/// Which log is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTarget {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The container's name; init and ephemeral containers too.
    pub container: String,
    /// The terminated instance before the present one.
    pub previous: bool,
}

/// The log of one instance of a container, in the CRI format.
#[derive(Debug, Clone)]
pub struct LogSource {
    /// `/var/log/pods/<namespace>_<pod>_<uid>/<container>`.
    pub directory: PathBuf,
    /// The instance: its log is `<restart_count>.log`, rotated parts are `<restart_count>.log.<timestamp>`.
    pub restart_count: u32,
    /// True while this very instance may still write to its log. A dropped sender means false.
    pub running: watch::Receiver<bool>,
}

/// Why there is no log to read. The text is what `kubectl logs` prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// No such pod on this node.
    #[error("pod {pod:?} does not exist")]
    UnknownPod {
        /// Its name.
        pod: String,
    },
    /// The pod has no such container.
    #[error("container {container:?} not found in pod {pod:?}")]
    UnknownContainer {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The container has not started yet.
    #[error("container {container:?} in pod {pod:?} is waiting to start: {}", waiting_words(.reason))]
    Waiting {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
        /// The waiting reason as in the container's status.
        reason: String,
    },
    /// There is no terminated instance before the present one.
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    NoPrevious {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The container ended without ever having run.
    #[error("container {container:?} in pod {pod:?} is terminated")]
    NeverRan {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The pod's status is not known yet.
    #[error("container {container:?} in pod {pod:?} is not available")]
    NotAvailable {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
    },
}

/// The words users know for two reasons; others are shown as they are.
fn waiting_words(reason: &str) -> &str {
    match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    }
}

impl LogError {
    /// The HTTP status of this refusal.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPod { .. } | Self::UnknownContainer { .. } => StatusCode::NOT_FOUND,
            Self::Waiting { .. } | Self::NoPrevious { .. } | Self::NeverRan { .. } | Self::NotAvailable { .. } => StatusCode::BAD_REQUEST,
        }
    }
}

/// A container that a client means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerTarget {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, if the client named it: another pod of the same name is not meant.
    pub uid: Option<String>,
    /// The container's name.
    pub container: String,
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Where.
    pub target: ContainerTarget,
    /// The command and its arguments, never empty.
    pub command: Vec<String>,
    /// Its streams.
    pub wanted: Wanted,
}

/// A container whose streams a client wants to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Where.
    pub target: ContainerTarget,
    /// Which of its streams.
    pub wanted: Wanted,
}

/// Streams that a client has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The client sends input.
    pub stdin: bool,
    /// The client reads output.
    pub stdout: bool,
    /// The client reads error output; never with `tty`.
    pub stderr: bool,
    /// There is a terminal at both ends.
    pub tty: bool,
}

/// A pod whose ports a client wants to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID, if the client named it: another pod of the same name is not meant.
    pub uid: Option<String>,
}

/// A connection to a port of a pod. Dropping it resets the connection.
pub struct PortConnection {
    /// What the pod sends; its end is the pod's end of that direction, an error its reset.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What the client sends; shut down when the client has ended that direction.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl std::fmt::Debug for PortConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortConnection").finish_non_exhaustive()
    }
}

/// A command that has been started. A stream that was not asked for may be `None`; one that is there without having been
/// asked for is read to its end and forgotten. Dropping the session means that the client has gone.
pub struct ExecSession {
    /// Takes the command's input; shut down when the client ended its input.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The command's output; its end is awaited after the exit.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The command's error output; its end is awaited after the exit.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Takes the sizes of the client's terminal.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// Ready when the command has ended.
    pub exit: Pin<Box<dyn Future<Output = Result<ExecExit, StreamError>> + Send>>,
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSession").finish_non_exhaustive()
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecExit {
    /// It returned this code.
    Code(i32),
    /// It was ended by this signal; clients see 128 and the number.
    Signal(i32),
}

/// The size of a client's terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Why a remote command is refused or failed. The text is what `kubectl exec` prints.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No such pod on this node, or another one by this name.
    #[error("pod does not exist")]
    UnknownPod,
    /// The pod has no such container.
    #[error("container not found ({container:?})")]
    UnknownContainer {
        /// The container's name.
        container: String,
    },
    /// The container is there and does not run.
    #[error("container {container:?} in pod {pod:?} is not running")]
    NotRunning {
        /// The container's name.
        container: String,
        /// The pod's name.
        pod: String,
    },
    /// The pod has no machine (yet, or any more).
    #[error("pod {pod:?} is not running")]
    PodNotRunning {
        /// The pod's name.
        pod: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The command could not be started or its end is not known.
    #[error("{0}")]
    Failed(String),
}

impl StreamError {
    /// The HTTP status of this refusal.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPod | Self::UnknownContainer { .. } => StatusCode::NOT_FOUND,
            Self::NotRunning { .. } | Self::PodNotRunning { .. } | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_logs_use_the_words_users_know() {
        let waiting = |reason: &str| {
            let error = LogError::Waiting {
                container: "c".into(),
                pod: "p".into(),
                reason: reason.into(),
            };
            (error.status(), error.to_string())
        };
        let prefix = r#"container "c" in pod "p" is waiting to start: "#;
        for (reason, words) in [
            ("ContainerCreating", "ContainerCreating"),
            ("ImagePullBackOff", "trying and failing to pull image"),
            ("ErrImagePull", "image can't be pulled"),
        ] {
            assert_eq!(waiting(reason), (StatusCode::BAD_REQUEST, format!("{prefix}{words}")));
        }
        let previous = LogError::NoPrevious {
            container: "c".into(),
            pod: "p".into(),
        };
        assert_eq!(previous.to_string(), r#"previous terminated container "c" in pod "p" not found"#);
        assert_eq!(LogError::UnknownPod { pod: "p".into() }.status(), StatusCode::NOT_FOUND);
    }
}
