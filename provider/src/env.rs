//! A container's environment, command and arguments, resolved once when it is created (the kubelet's makeEnvironmentVariables).

use k8s_openapi::api::core::v1::{FileKeySelector, Service};
use kvmlet_image::ImageConfig;
use tracing::info;

use crate::{
    desired::{DesiredContainer, DesiredPod},
    downward::{self, Facts},
    env_file::{self, Files},
    expand::expand,
    objects::{ObjectError, PodObjects},
};

/// Variables in order; a later one of the same name wins.
pub type Env = Vec<(String, String)>;

/// The pod's own variables (`envFrom`, then `env`, above those of services), or the sentence of a CreateContainerConfigError.
pub async fn variables(
    pod: &DesiredPod,
    container: &DesiredContainer,
    facts: &Facts,
    objects: &PodObjects,
    files: &Files,
) -> Result<Env, String> {
    let spec = pod.spec_of(container);
    let api = pod.pod.spec.as_ref().expect("a pod without a specification is refused");
    let links = api.enable_service_links.unwrap_or(true);
    let mut env = services(&objects.services().await, &pod.namespace, links);
    for source in spec.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let entries = if let Some(from) = &source.config_map_ref {
            optional(objects.config_map_text(&pod.namespace, &from.name).await, from.optional)?
        } else if let Some(from) = &source.secret_ref {
            optional(objects.secret(&pod.namespace, &from.name).await, from.optional)?
        } else {
            None
        };
        for (key, value) in entries.into_iter().flatten() {
            set(&mut env, format!("{prefix}{key}"), text(value));
        }
    }
    // A reference sees what stands before it, and the pod's own values first.
    for variable in spec.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, &|name| get(&env, name))),
            (_, Some(from)) => {
                if let Some(field) = &from.field_ref {
                    Some(downward::field(&pod.pod, facts, &field.field_path)?)
                } else if let Some(selector) = &from.resource_field_ref {
                    Some(downward::resource(pod, container, facts, selector)?)
                } else if let Some(from) = &from.config_map_key_ref {
                    let entries = objects.config_map_text(&pod.namespace, &from.name).await;
                    key_of("ConfigMap", &pod.namespace, &from.name, entries, &from.key, from.optional)?
                } else if let Some(from) = &from.secret_key_ref {
                    let entries = objects.secret(&pod.namespace, &from.name).await;
                    key_of("Secret", &pod.namespace, &from.name, entries, &from.key, from.optional)?
                } else if let Some(from) = &from.file_key_ref {
                    of_file(files, from)?
                } else {
                    return Err(format!("env {:?} has a source that this node does not know", variable.name));
                }
            }
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut env, variable.name.clone(), value);
        }
    }
    Ok(env)
}

/// What the process gets: the image's variables below the pod's, command and arguments by the rules of `command` and `args`, expanded.
pub fn process(pod: &DesiredPod, container: &DesiredContainer, image: &ImageConfig, own: &Env, hostname: &str) -> (Vec<String>, Env) {
    let spec = pod.spec_of(container);
    let lookup = |name: &str| get(own, name);
    let expanded = |list: &[String]| list.iter().map(|a| expand(a, &lookup)).collect::<Vec<_>>();
    let command = spec.command.as_deref().unwrap_or_default();
    let arguments = spec.args.as_deref().unwrap_or_default();
    let args = match (command.is_empty(), arguments.is_empty()) {
        (true, true) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
        (true, false) => image.entrypoint.iter().cloned().chain(expanded(arguments)).collect(),
        (false, _) => expanded(command).into_iter().chain(expanded(arguments)).collect(),
    };
    let mut env = Env::new();
    set(
        &mut env,
        "PATH".into(),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
    );
    set(&mut env, "HOSTNAME".into(), hostname.into());
    for variable in &image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(&mut env, name.into(), value.into());
    }
    for (name, value) in own {
        set(&mut env, name.clone(), value.clone());
    }
    (args, env)
}

/// Service variables (pkg/kubelet/envvars): the API server's always, the namespace's own when links are on.
fn services(services: &[std::sync::Arc<Service>], namespace: &str, links: bool) -> Env {
    let mut wanted: Vec<_> = services
        .iter()
        .filter(|s| {
            let (name, of) = (s.metadata.name.as_deref(), s.metadata.namespace.as_deref());
            (name == Some("kubernetes") && of == Some("default")) || (links && of == Some(namespace))
        })
        .collect();
    // The namespace's own `kubernetes` service, if there is one, wins over the cluster's.
    wanted.sort_by_key(|s| (s.metadata.namespace.as_deref() == Some(namespace), s.metadata.name.clone()));
    let mut env = Env::new();
    for service in wanted {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
            continue;
        };
        let Some(ports) = spec.ports.as_ref().filter(|p| !p.is_empty()) else {
            continue;
        };
        let upper = |text: &str| text.to_uppercase().replace('-', "_");
        let name = upper(service.metadata.name.as_deref().unwrap_or_default());
        set(&mut env, format!("{name}_SERVICE_HOST"), ip.into());
        set(&mut env, format!("{name}_SERVICE_PORT"), ports[0].port.to_string());
        for port in ports {
            if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
                set(&mut env, format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
            }
        }
        let url = |protocol: &str, port: i32| {
            let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            format!("{}://{host}:{port}", protocol.to_lowercase())
        };
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            if i == 0 {
                set(&mut env, format!("{name}_PORT"), url(protocol, port.port));
            }
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
            set(&mut env, prefix.clone(), url(protocol, port.port));
            set(&mut env, format!("{prefix}_PROTO"), protocol.to_lowercase());
            set(&mut env, format!("{prefix}_PORT"), port.port.to_string());
            set(&mut env, format!("{prefix}_ADDR"), ip.into());
        }
    }
    env
}

fn optional<T>(result: Result<T, ObjectError>, optional: Option<bool>) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ObjectError::NotFound { .. }) if optional == Some(true) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// A variable out of a file, in the kubelet's words where it cannot be had: a file that is not there is an error, optional or not.
fn of_file(files: &Files, from: &FileKeySelector) -> Result<Option<String>, String> {
    let file = files.get(&(from.volume_name.clone(), from.path.clone()));
    let file = file.ok_or_else(|| format!("cannot find the volume {:?} referenced by FileKeyRef", from.volume_name))?;
    let value = file
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|file| env_file::value(file, &from.key));
    match value {
        Ok(None) if from.optional != Some(true) => {
            Err(format!("environment variable key {:?} not found in file {:?}", from.key, from.path))
        }
        Ok(value) => Ok(value),
        Err(why) => {
            info!(
                why,
                volume = from.volume_name,
                path = from.path,
                "a file of variables could not be read"
            );
            Err("couldn't parse env file".into())
        }
    }
}

fn key_of(
    kind: &'static str,
    namespace: &str,
    name: &str,
    entries: Result<crate::objects::Entries, ObjectError>,
    key: &str,
    is_optional: Option<bool>,
) -> Result<Option<String>, String> {
    let Some(mut entries) = optional(entries, is_optional)? else {
        return Ok(None);
    };
    match entries.remove(key) {
        Some(value) => Ok(Some(text(value))),
        None if is_optional == Some(true) => Ok(None),
        None => Err(ObjectError::NoKey {
            kind,
            namespace: namespace.into(),
            name: name.into(),
            key: key.into(),
        }
        .to_string()),
    }
}

fn text(value: Vec<u8>) -> String {
    String::from_utf8_lossy(&value).into_owned()
}

fn set(env: &mut Env, name: String, value: String) {
    match env.iter_mut().find(|(n, _)| *n == name) {
        Some((_, old)) => *old = value,
        None => env.push((name, value)),
    }
}

fn get(env: &Env, name: &str) -> Option<String> {
    env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn service_variables_are_the_kubelets() {
        let service = |ns: &str, name: &str, ip: &str| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": ns},
                    "spec": {"clusterIP": ip, "ports": [{"port": 443, "name": "https-x", "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}))
                .unwrap(),
            )
        };
        let all = [
            service("default", "kubernetes", "10.0.0.1"),
            service("n", "my-db", "10.0.0.2"),
            service("other", "x", "10.0.0.3"),
            service("n", "headless", "None"),
        ];
        let env = services(&all, "n", true);
        for (name, value) in [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("MY_DB_SERVICE_PORT", "443"),
            ("MY_DB_SERVICE_PORT_HTTPS_X", "443"),
            ("MY_DB_PORT", "tcp://10.0.0.2:443"),
            ("MY_DB_PORT_53_UDP", "udp://10.0.0.2:53"),
            ("MY_DB_PORT_53_UDP_ADDR", "10.0.0.2"),
        ] {
            assert_eq!(get(&env, name).as_deref(), Some(value), "{name}");
        }
        assert!(!env.iter().any(|(n, _)| n.starts_with("X_") || n.starts_with("HEADLESS")));
        assert!(get(&services(&all, "n", false), "MY_DB_SERVICE_HOST").is_none());
    }

    #[test]
    fn a_variable_of_a_file_is_missed_in_the_kubelets_words() {
        let of = |file: Result<&str, &str>, optional: bool| {
            let from = json!({"volumeName": "v", "path": "a/env", "key": "KEY", "optional": optional});
            let file = file.map(|text| text.as_bytes().to_vec()).map_err(str::to_owned);
            let files = Files::from([(("v".to_owned(), "a/env".to_owned()), file)]);
            of_file(&files, &serde_json::from_value(from).unwrap())
        };
        assert_eq!(of(Ok("KEY='value'\n"), false), Ok(Some("value".into())));
        assert_eq!(of(Ok("OTHER='value'\n"), true), Ok(None));
        let missed = "environment variable key \"KEY\" not found in file \"a/env\"";
        assert_eq!(of(Ok("OTHER='value'\n"), false), Err(missed.into()));
        assert_eq!(of(Ok("KEY=''"), false), Err(missed.into()));
        for optional in [false, true] {
            assert_eq!(of(Ok("KEY=value"), optional), Err("couldn't parse env file".into()));
            assert_eq!(of(Err("not there"), optional), Err("couldn't parse env file".into()));
        }
        let elsewhere = serde_json::from_value(json!({"volumeName": "w", "path": "p", "key": "K"})).unwrap();
        let error = of_file(&Files::new(), &elsewhere).unwrap_err();
        assert_eq!(error, "cannot find the volume \"w\" referenced by FileKeyRef");
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_by_the_known_table() {
        let image = ImageConfig {
            entrypoint: vec!["e".into()],
            cmd: vec!["c".into()],
            env: vec!["A=img".into()],
            ..ImageConfig::default()
        };
        let run = |command: serde_json::Value, args: serde_json::Value| {
            let pod: k8s_openapi::api::core::v1::Pod =
                serde_json::from_value(json!({"spec": {"containers": [{"name": "x", "command": command, "args": args}]}})).unwrap();
            let pod = DesiredPod::read(Arc::new(pod)).0;
            process(&pod, &pod.containers[0], &image, &vec![("A".into(), "own".into())], "host")
        };
        assert_eq!(run(json!(null), json!(null)).0, ["e", "c"]);
        assert_eq!(run(json!(null), json!(["$(A)", "$$(A)"])).0, ["e", "own", "$(A)"]);
        assert_eq!(run(json!(["x"]), json!(null)).0, ["x"]);
        assert_eq!(run(json!(["x"]), json!(["y"])).0, ["x", "y"]);
        assert_eq!(get(&run(json!(["x"]), json!(null)).1, "A").as_deref(), Some("own"));
    }
}
