//! The kubelet port: what the API server and node agents ask a node over HTTPS.
//!
//! Owns TLS, the guard (x509 and rights), the HTTP paths, container logs from CRI files, and remote commands over
//! SPDY/3.1 and WebSocket. Refuses to know an API client, machines or agents: the provider implements [`Backend`] for
//! pods and commands and [`Reviewer`] for rights. What is not built (attach, port-forward, metrics, stats) answers 501
//! with the reason.
//!
//! Happy path of a command: `server` takes the connection, `guard` lets it pass, `exec` has the backend check it and
//! upgrades, `streaming` negotiates and copies.

#![forbid(unsafe_code)]

mod auth;
mod backend;
mod exec;
mod guard;
pub mod logs;
mod review;
mod routes;
mod server;
pub mod streaming;
mod tls;

pub use auth::{Attributes, AuthorizeError, Authorizer, BoxFuture, Decision, Identity};
pub use backend::{Backend, ExecExit, ExecRequest, ExecSession, LogError, LogSource, LogTarget, StreamError, TerminalSize};
pub use review::{CachedReviews, Reviewer};
pub use server::{BindError, Server, ServerConfig};
pub use tls::{ServingCertificate, TlsError};
