//! A probe or a hook as the pod's specification has it, read into what is to be done. Pure.

use std::{fmt, time::Duration};

use k8s_openapi::{
    api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::expand::expand;

/// What a probe decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Whether the container has started: the others wait for it, and its failure ends the container.
    Startup,
    /// Whether it is alive: its failure ends the container.
    Liveness,
    /// Whether it takes traffic.
    Readiness,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        })
    }
}

/// A container's probes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probes {
    /// startupProbe.
    pub startup: Option<ProbeSpec>,
    /// livenessProbe.
    pub liveness: Option<ProbeSpec>,
    /// readinessProbe.
    pub readiness: Option<ProbeSpec>,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSpec {
    /// What is asked.
    pub handler: Handler,
    /// After the container's start.
    pub initial_delay: Duration,
    /// Between two askings.
    pub period: Duration,
    /// Longest that an answer may take.
    pub timeout: Duration,
    /// Good answers in a row that count.
    pub success_threshold: u32,
    /// Bad answers in a row that count.
    pub failure_threshold: u32,
    /// Seconds that the container has to end when this probe ends it; else the pod's.
    pub grace: Option<u64>,
}

/// A container's hooks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Right after its start.
    pub post_start: Option<Handler>,
    /// Before it is asked to end.
    pub pre_stop: Option<Handler>,
}

/// What is done to ask, or to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// A command in the container.
    Exec(Vec<String>),
    /// An HTTP request.
    Http(HttpGet),
    /// A connection.
    Tcp {
        /// Of this host instead of the pod's address.
        host: Option<String>,
        /// Port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// Port.
        port: u16,
        /// Name of the service asked for.
        service: String,
    },
    /// So many seconds.
    Sleep(u64),
    /// Nothing can be done, for this reason.
    Invalid(String),
}

/// httpGet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpGet {
    /// `https` instead of `http`.
    pub tls: bool,
    /// Of this host instead of the pod's address.
    pub host: Option<String>,
    /// Port.
    pub port: u16,
    /// Path with query, as written.
    pub path: String,
    /// In order, by name and value.
    pub headers: Vec<(String, String)>,
}

impl Probes {
    /// Reads a container's probes.
    pub fn read(container: &Container) -> Self {
        let read = |probe: &Option<Probe>| probe.as_ref().map(|p| ProbeSpec::read(p, container));
        Self {
            startup: read(&container.startup_probe),
            liveness: read(&container.liveness_probe),
            readiness: read(&container.readiness_probe),
        }
    }

    /// The probe of a kind.
    pub fn of(&self, kind: Kind) -> Option<&ProbeSpec> {
        match kind {
            Kind::Startup => self.startup.as_ref(),
            Kind::Liveness => self.liveness.as_ref(),
            Kind::Readiness => self.readiness.as_ref(),
        }
    }
}

impl ProbeSpec {
    fn read(probe: &Probe, container: &Container) -> Self {
        let at_least_one = |n: Option<i32>, default: u32| n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default);
        let seconds = |n: u32| Duration::from_secs(n.into());
        let handler = match (&probe.exec, &probe.http_get, &probe.tcp_socket, &probe.grpc) {
            (Some(exec), ..) => Handler::Exec(static_command(exec, container)),
            (_, Some(get), ..) => http_get(get, container),
            (_, _, Some(socket), _) => tcp_socket(socket, container),
            (.., Some(grpc)) => match u16::try_from(grpc.port) {
                Ok(port) => Handler::Grpc {
                    port,
                    service: grpc.service.clone().unwrap_or_default(),
                },
                Err(_) => Handler::Invalid(format!("invalid port number: {}", grpc.port)),
            },
            (None, None, None, None) => Handler::Invalid(format!("missing probe handler for {}", container.name)),
        };
        Self {
            handler,
            initial_delay: seconds(at_least_one(probe.initial_delay_seconds, 0)),
            period: seconds(at_least_one(probe.period_seconds, 10)),
            timeout: seconds(at_least_one(probe.timeout_seconds, 1)),
            success_threshold: at_least_one(probe.success_threshold, 1),
            failure_threshold: at_least_one(probe.failure_threshold, 3),
            grace: probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()),
        }
    }
}

impl Hooks {
    /// Reads a container's hooks.
    pub fn read(container: &Container) -> Self {
        let lifecycle = container.lifecycle.as_ref();
        Self {
            post_start: lifecycle.and_then(|l| l.post_start.as_ref()).map(|h| hook(h, container)),
            pre_stop: lifecycle.and_then(|l| l.pre_stop.as_ref()).map(|h| hook(h, container)),
        }
    }
}

/// The kubelet runs no hook of kind tcpSocket: it is left in the API for old clients, and always fails.
fn hook(handler: &LifecycleHandler, container: &Container) -> Handler {
    if let Some(exec) = &handler.exec {
        Handler::Exec(exec.command.clone().unwrap_or_default())
    } else if let Some(get) = &handler.http_get {
        http_get(get, container)
    } else if let Some(sleep) = &handler.sleep {
        Handler::Sleep(u64::try_from(sleep.seconds).unwrap_or_default())
    } else {
        Handler::Invalid("invalid handler".into())
    }
}

/// `$(VAR)` of a probe's command knows what stands in the specification, and nothing that is looked up.
fn static_command(exec: &ExecAction, container: &Container) -> Vec<String> {
    let known = |name: &str| {
        let set = container.env.iter().flatten().rev().find(|e| e.name == name)?;
        set.value_from.is_none().then(|| set.value.clone().unwrap_or_default())
    };
    exec.command.iter().flatten().map(|word| expand(word, &known)).collect()
}

fn http_get(get: &HTTPGetAction, container: &Container) -> Handler {
    match resolve(&get.port, container) {
        Ok(port) => Handler::Http(HttpGet {
            tls: get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")),
            host: get.host.clone().filter(|h| !h.is_empty()),
            port,
            path: get.path.clone().unwrap_or_default(),
            headers: get
                .http_headers
                .iter()
                .flatten()
                .map(|h| (h.name.clone(), h.value.clone()))
                .collect(),
        }),
        Err(why) => Handler::Invalid(why),
    }
}

fn tcp_socket(socket: &TCPSocketAction, container: &Container) -> Handler {
    match resolve(&socket.port, container) {
        Ok(port) => Handler::Tcp {
            host: socket.host.clone().filter(|h| !h.is_empty()),
            port,
        },
        Err(why) => Handler::Invalid(why),
    }
}

/// A port by number or by name (the kubelet's ResolveContainerPort).
fn resolve(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(port) => port.container_port,
                // It may have been a number all along.
                None => name
                    .parse()
                    .map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|p| *p > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(fields: Value) -> Container {
        let mut value = json!({"name": "c"});
        value.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn liveness(fields: Value) -> ProbeSpec {
        Probes::read(&container(fields)).liveness.unwrap()
    }

    #[test]
    fn a_probe_has_the_apis_defaults() {
        let probe = liveness(json!({"livenessProbe": {"tcpSocket": {"port": 80}}}));
        assert_eq!(
            probe,
            ProbeSpec {
                handler: Handler::Tcp { host: None, port: 80 },
                initial_delay: Duration::ZERO,
                period: Duration::from_secs(10),
                timeout: Duration::from_secs(1),
                success_threshold: 1,
                failure_threshold: 3,
                grace: None,
            }
        );
    }

    #[test]
    fn ports_are_found_by_name_and_a_name_of_none_is_said() {
        let of = |port: Value| {
            let fields = json!({"ports": [{"name": "web", "containerPort": 8080}], "livenessProbe": {"httpGet": {"port": port}}});
            match liveness(fields).handler {
                Handler::Http(get) => Ok(get.port),
                Handler::Invalid(why) => Err(why),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(json!("web")), Ok(8080));
        assert_eq!(of(json!("81")), Ok(81));
        assert_eq!(of(json!("nope")), Err("strconv.Atoi: parsing \"nope\": invalid syntax".into()));
        assert_eq!(of(json!(70000)), Err("invalid port number: 70000".into()));
    }

    #[test]
    fn a_probes_command_knows_only_the_values_in_the_specification() {
        let probe = liveness(json!({
            "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "livenessProbe": {"exec": {"command": ["x", "$(A)$(B)$(C)"]}}}));
        assert_eq!(probe.handler, Handler::Exec(vec!["x".into(), "1$(B)$(C)".into()]));
    }

    #[test]
    fn a_tcp_hook_is_refused_as_the_kubelet_refuses_it() {
        let hooks = Hooks::read(&container(
            json!({"lifecycle": {"postStart": {"tcpSocket": {"port": 1}}, "preStop": {"sleep": {"seconds": 3}}}}),
        ));
        assert_eq!(hooks.post_start, Some(Handler::Invalid("invalid handler".into())));
        assert_eq!(hooks.pre_stop, Some(Handler::Sleep(3)));
    }
}
