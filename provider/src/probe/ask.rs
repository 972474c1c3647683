//! One asking: the handler done once within its time, and what came of it in the kubelet's words.

use std::time::Duration;

use super::{exec, grpc, http, spec::Handler, tcp};
use crate::act::Act;

/// What is read of an answer at most, bytes (the kubelet's limit for commands and HTTP bodies).
pub(super) const MOST: usize = 10 << 10;

/// Who is asked.
pub struct Target<'a> {
    /// The pod's task.
    pub act: &'a Act,
    /// The container's instance.
    pub container: &'a str,
    /// The pod's addresses.
    pub ips: &'a [String],
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Good.
    Success,
    /// Good, but: a redirect to elsewhere.
    Warning(String),
    /// Bad.
    Failure(String),
    /// It could not be asked; counts as nothing.
    Errored(String),
}

impl Outcome {
    /// What it is counted as (the kubelet's `prober_probe_total`).
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Success | Self::Warning(_) => "successful",
            Self::Failure(_) => "failed",
            Self::Errored(_) => "unknown",
        }
    }

    /// Whether it speaks for the container; nothing when it says nothing.
    pub(super) fn healthy(&self) -> Option<bool> {
        match self {
            Self::Success | Self::Warning(_) => Some(true),
            Self::Failure(_) => Some(false),
            Self::Errored(_) => None,
        }
    }
}

/// Asks once. Never takes longer than `limit`.
pub async fn ask(target: &Target<'_>, handler: &Handler, limit: Duration) -> Outcome {
    let address = || target.ips.first().map(String::as_str).unwrap_or_default();
    match handler {
        Handler::Exec(command) => match target.act.socket() {
            Ok(socket) => exec::run(&socket, target.container, command, limit).await,
            Err(why) => Outcome::Errored(why),
        },
        Handler::Http(get) => http::get(&target.act.context.http, get, address(), limit).await,
        Handler::Tcp { host, port } => tcp::connect(host.as_deref().unwrap_or_else(address), *port, limit).await,
        Handler::Grpc { port, service } => grpc::check(address(), *port, service, limit).await,
        Handler::Sleep(seconds) => {
            tokio::time::sleep(Duration::from_secs(*seconds).min(limit)).await;
            Outcome::Success
        }
        Handler::Invalid(why) => Outcome::Errored(why.clone()),
    }
}

/// Tells a container by a hook: an HTTP request has done its part whatever it is answered with. With a warning for the pod's owner, where there is one.
pub async fn tell(target: &Target<'_>, handler: &Handler, limit: Duration) -> Result<Option<String>, String> {
    let outcome = match handler {
        Handler::Http(get) => {
            let address = target.ips.first().map(String::as_str).unwrap_or_default();
            match http::tell(&target.act.context.http, get, address, limit).await {
                Ok(warning) => return Ok(warning),
                Err(outcome) => outcome,
            }
        }
        other => ask(target, other, limit).await,
    };
    match outcome {
        Outcome::Success | Outcome::Warning(_) => Ok(None),
        Outcome::Failure(why) | Outcome::Errored(why) => Err(why),
    }
}
