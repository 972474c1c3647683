//! What the agent is told of a container.

use k8s_openapi::api::core::v1::Container;
use kvmlet_image::ImageConfig;
use kvmlet_protocol::{ContainerSpec, Extras, Mount, Process, Resources, Rlimit, RootFs};

use super::security::{capabilities, is_privileged, localhost_profile, seccomp, user};
use crate::{
    desired::{Amounts, DesiredContainer, DesiredPod},
    env::Env,
    quantity::Quantity,
    sub_path::sub_path,
};

/// A container's specification; the error is the sentence of a CreateContainerConfigError.
pub fn container(
    pod: &DesiredPod,
    desired: &DesiredContainer,
    id: &str,
    device: String,
    image: &ImageConfig,
    own_env: &Env,
    hostname: &str,
) -> Result<ContainerSpec, String> {
    let spec = pod.spec_of(desired);
    let (args, env) = crate::env::process(pod, desired, image, own_env, hostname);
    if args.is_empty() {
        return Err(format!(
            "no command specified: image {:?} has neither ENTRYPOINT nor CMD, and the container names no command",
            desired.image
        ));
    }
    let security = spec.security_context.clone().unwrap_or_default();
    let user = user(pod, desired, &security, image)?;
    let privileges = security.allow_privilege_escalation.unwrap_or(true);
    Ok(ContainerSpec {
        id: id.into(),
        name: desired.name.clone(),
        root: RootFs {
            device,
            read_only: security.read_only_root_filesystem.unwrap_or(false),
        },
        process: Process {
            args,
            env,
            cwd: spec
                .working_dir
                .clone()
                .filter(|d| !d.is_empty())
                .unwrap_or_else(|| image.working_dir.clone()),
            user,
            capabilities: capabilities(&security),
            no_new_privs: !privileges,
            seccomp: seccomp(pod, &security),
            rlimits: vec![Rlimit {
                name: "RLIMIT_NOFILE".into(),
                soft: 1024 * 1024,
                hard: 1024 * 1024,
            }],
            oom_score_adj: 0,
        },
        mounts: mounts(spec, own_env)?,
        resources: resources(desired),
        termination_message_path: spec
            .termination_message_path
            .clone()
            .unwrap_or_else(|| "/dev/termination-log".into()),
        termination_message_from_log: spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
        stdin: spec.stdin.unwrap_or(false),
    })
}

/// What a container has besides its specification; `target` is the identifier of the one whose processes it shares.
pub fn extras(pod: &DesiredPod, desired: &DesiredContainer, target: Option<String>) -> Extras {
    let spec = pod.spec_of(desired);
    let security = spec.security_context.as_ref();
    let of_pod = pod.pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    Extras {
        stdin_once: spec.stdin.unwrap_or(false) && spec.stdin_once.unwrap_or(false),
        terminal: spec.tty.unwrap_or(false),
        processes_of: target,
        privileged: security.is_some_and(is_privileged),
        unmasked: security.and_then(|s| s.proc_mount.as_deref()) == Some("Unmasked"),
        strict_groups: of_pod.and_then(|s| s.supplemental_groups_policy.as_deref()) == Some("Strict"),
    }
}

/// The profile of the node that its system calls are held to, as the pod names it.
pub fn seccomp_profile(pod: &DesiredPod, desired: &DesiredContainer) -> Option<String> {
    let security = pod.spec_of(desired).security_context.clone().unwrap_or_default();
    localhost_profile(pod, &security)
}

fn mounts(spec: &Container, env: &Env) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in spec.volume_mounts.iter().flatten() {
        mounts.push(Mount {
            volume: mount.name.clone(),
            sub_path: sub_path(mount, env)?,
            destination: mount.mount_path.clone(),
            read_only: mount.read_only.unwrap_or(false),
        });
    }
    // Shorter paths first, so that one volume can lie in another.
    mounts.sort_by_key(|m| m.destination.trim_end_matches('/').matches('/').count());
    Ok(mounts)
}

/// Limits of the group of all containers in their guest, where the pod says so itself (spec.resources).
pub fn pod_limits(pod: &DesiredPod) -> Option<Resources> {
    let limits = pod.pod_limits;
    (limits != Amounts::default()).then(|| Resources {
        memory_max: limits.memory.value(),
        cpu_quota: quota(limits.cpu),
        ..Resources::default()
    })
}

/// Microseconds of processor time each 100 ms, 1 ms at the least; none for no limit.
fn quota(cpu: Quantity) -> u64 {
    if cpu == Quantity::default() {
        0
    } else {
        (cpu.milli_value() * 100).max(1000)
    }
}

/// Limits of a container's group in its guest.
pub fn resources(desired: &DesiredContainer) -> Resources {
    let weight = |requests: Quantity| {
        // The kubelet's conversion of shares (2 to 262,144) to weights (1 to 10,000).
        let shares = (requests.milli_value() * 1024 / 1000).clamp(2, 262_144);
        1 + (shares - 2) * 9999 / 262_142
    };
    Resources {
        memory_max: desired.limits.memory.value(),
        cpu_quota: quota(desired.limits.cpu),
        cpu_weight: weight(desired.requests.cpu),
        pids_max: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::lower::{image_name, security::ALL_CAPABILITIES};

    fn lowered(container: Value, pod_security: Value, image: &ImageConfig) -> Result<ContainerSpec, String> {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [container], "securityContext": pod_security}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        super::container(&pod, &pod.containers[0], "id", image_name(0), image, &Vec::new(), "p")
    }

    fn image() -> ImageConfig {
        ImageConfig {
            cmd: vec!["sh".into()],
            user: "web".into(),
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn the_image_speaks_where_the_pod_is_silent() {
        let spec = lowered(json!({"name": "c"}), json!({}), &image()).unwrap();
        assert_eq!(
            (spec.process.args, spec.process.cwd.as_str(), spec.process.user.user.as_str()),
            (vec!["sh".to_owned()], "/srv", "web")
        );
        assert!(spec.process.capabilities.contains(&"CAP_CHOWN".to_owned()) && !spec.process.no_new_privs);
        assert_eq!(spec.termination_message_path, "/dev/termination-log");
    }

    #[test]
    fn run_as_non_root_is_refused_with_the_kubelets_words() {
        for (user, words) in [
            (None, "image will run as root"),
            (Some("web"), "non-numeric user (web)"),
            (Some("0"), "image will run as root"),
        ] {
            let image = ImageConfig {
                user: user.unwrap_or_default().into(),
                ..image()
            };
            let error = lowered(json!({"name": "c", "securityContext": {"runAsNonRoot": true}}), json!({}), &image).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(lowered(json!({"name": "c"}), json!({"runAsNonRoot": true, "runAsUser": 7}), &image()).is_ok());
    }

    #[test]
    fn a_privileged_container_has_all_of_its_guest() {
        let c = json!({"name": "c", "securityContext": {"privileged": true, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}}});
        let spec = lowered(c.clone(), json!({}), &image()).unwrap();
        assert_eq!(spec.process.capabilities.len(), ALL_CAPABILITIES.len());
        assert!(!spec.process.seccomp);
        let pod = json!({"spec": {"containers": [c, {"name": "d"}], "securityContext": {"supplementalGroupsPolicy": "Strict"}}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let of = |i: usize| super::extras(&pod, &pod.containers[i], None);
        assert!(of(0).privileged && of(0).strict_groups && !of(1).privileged && !of(1).unmasked);
    }

    #[test]
    fn a_containers_own_profile_of_the_node_wins_over_the_pods_and_none_holds_a_privileged_one() {
        let local = |name: &str| json!({"type": "Localhost", "localhostProfile": name});
        let pod = json!({"spec": {"securityContext": {"seccompProfile": local("pod.json")}, "containers": [
            {"name": "a"}, {"name": "b", "securityContext": {"seccompProfile": local("own.json")}},
            {"name": "c", "securityContext": {"privileged": true}}, {"name": "d", "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}]}});
        let pod = DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0;
        let of: Vec<_> = pod.containers.iter().map(|c| super::seccomp_profile(&pod, c)).collect();
        assert_eq!(of, [Some("pod.json".to_owned()), Some("own.json".to_owned()), None, None]);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: Value, drop: Value| {
            let c = json!({"name": "c", "securityContext": {"capabilities": {"add": add, "drop": drop}}});
            lowered(c, json!({}), &image()).unwrap().process.capabilities
        };
        assert_eq!(of(json!(["NET_ADMIN"]), json!(["ALL"])), ["CAP_NET_ADMIN"]);
        assert_eq!(of(json!(["ALL"]), json!([])).len(), ALL_CAPABILITIES.len());
        assert!(!of(json!([]), json!(["CHOWN"])).contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn limits_become_cgroup_values() {
        let c = json!({"name": "c", "resources": {"limits": {"cpu": "500m", "memory": "32Mi"}, "requests": {"cpu": "1"}}});
        let resources = lowered(c, json!({}), &image()).unwrap().resources;
        assert_eq!(
            (resources.memory_max, resources.cpu_quota, resources.cpu_weight),
            (32 << 20, 50_000, 39)
        );
    }

    #[test]
    fn limits_of_the_pod_hold_all_of_its_containers_together() {
        let of = |resources: Value| {
            let pod = json!({"spec": {"containers": [{"name": "c"}], "resources": resources}});
            pod_limits(&DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0)
        };
        let limits = of(json!({"limits": {"cpu": "500m", "memory": "32Mi"}})).unwrap();
        assert_eq!((limits.memory_max, limits.cpu_quota), (32 << 20, 50_000));
        assert_eq!(of(json!({"limits": {"memory": "1Mi"}})).unwrap().cpu_quota, 0);
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), None);
    }

    #[test]
    fn an_image_without_a_command_is_explained() {
        let error = lowered(json!({"name": "c", "image": "x"}), json!({}), &ImageConfig::default()).unwrap_err();
        assert!(error.contains("no command specified"), "{error}");
    }
}
