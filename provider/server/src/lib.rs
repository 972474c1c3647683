//! The kubelet port: what the API server and node agents ask a node over HTTPS.
//!
//! Owns TLS, the guard (x509 and rights), the HTTP paths, container logs from CRI files, and commands, attached
//! containers and forwarded ports over SPDY/3.1 and WebSocket. Refuses to know an API client, machines or agents: the
//! provider implements [`Backend`] for pods, their streams and figures, and [`Reviewer`] for rights.
//!
//! Happy path of a command: `server` takes the connection, `guard` lets it pass, `exec` has the backend check it and
//! upgrades, `streaming` negotiates and copies; of a port, the same with `port_forward`.

#![forbid(unsafe_code)]

mod auth;
mod backend;
mod cache;
mod counted;
mod exec;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod listen;
pub mod logs;
mod node_logs;
mod port_forward;
mod review;
mod routes;
mod server;
pub mod streaming;
mod takeover;
mod tls;
mod token;
mod upgrade;

pub use auth::{Attributes, Authenticator, AuthorizeError, Authorizer, BoxFuture, Decision, Identity};
pub use backend::{
    Asked, AttachRequest, Backend, ContainerTarget, ExecExit, ExecRequest, ExecSession, Figures, FiguresPage, LogError, LogSource,
    LogTarget, PortConnection, PortForwardRequest, StreamError, TerminalSize, Wanted,
};
pub use listen::Listener;
pub use review::{ALLOW_FOR, CachedReviews, DENY_FOR, Reviewer};
pub use server::{BindError, IDLE, Server, ServerConfig};
pub use tls::{ClientAuthority, ServingCertificate, TlsError};
pub use token::{CachedTokens, KNOWN_FOR, TokenReviewer};
