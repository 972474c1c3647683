//! A container's user, capabilities and system call filter.

use k8s_openapi::api::core::v1::{SeccompProfile, SecurityContext};
use kvmlet_image::ImageConfig;
use kvmlet_protocol::User;

use crate::desired::{DesiredContainer, DesiredPod};

/// The default capabilities of container runtimes (moby's and containerd's list).
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// All capabilities of the guest's kernel, for `ALL`.
pub(super) const ALL_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_AUDIT_WRITE",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_PERFMON",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
];

pub(super) fn is_privileged(security: &SecurityContext) -> bool {
    security.privileged.unwrap_or(false)
}

pub(super) fn user(pod: &DesiredPod, desired: &DesiredContainer, security: &SecurityContext, image: &ImageConfig) -> Result<User, String> {
    let of_pod = pod.pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let run_as = security.run_as_user.or(of_pod.run_as_user);
    let text = match run_as {
        Some(uid) => uid.to_string(),
        None => image.user.clone(),
    };
    if security.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false) {
        let name = text.split(':').next().unwrap_or_default();
        let describe = format!(
            "(pod: \"{}_{}({})\", container: {})",
            pod.name, pod.namespace, pod.uid, desired.name
        );
        match name.parse::<u32>() {
            Ok(0) if run_as.is_some() => return Err(format!("container's runAsUser breaks non-root policy {describe}")),
            Ok(0) => return Err(format!("container has runAsNonRoot and image will run as root {describe}")),
            Err(_) if name.is_empty() => return Err(format!("container has runAsNonRoot and image will run as root {describe}")),
            Err(_) => {
                return Err(format!(
                    "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {describe}"
                ));
            }
            Ok(_) => {}
        }
    }
    let group = |g: i64| u32::try_from(g).map_err(|_| format!("group {g} is out of range"));
    let mut groups = of_pod
        .supplemental_groups
        .unwrap_or_default()
        .into_iter()
        .map(group)
        .collect::<Result<Vec<_>, _>>()?;
    groups.extend(of_pod.fs_group.map(group).transpose()?);
    Ok(User {
        user: text,
        group: security.run_as_group.or(of_pod.run_as_group).map(group).transpose()?,
        groups,
    })
}

pub(super) fn capabilities(security: &SecurityContext) -> Vec<String> {
    let asked = security.capabilities.clone().unwrap_or_default();
    let name = |c: &str| if c.starts_with("CAP_") { c.to_owned() } else { format!("CAP_{c}") };
    let (add, drop) = (asked.add.unwrap_or_default(), asked.drop.unwrap_or_default());
    let all = |list: &[String]| list.iter().any(|c| c.eq_ignore_ascii_case("ALL"));
    let mut set: Vec<String> = match (all(&add), all(&drop)) {
        // Of a privileged container nothing is taken.
        _ if is_privileged(security) => return ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
        (true, _) => ALL_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
        (false, true) => Vec::new(),
        (false, false) => DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).collect(),
    };
    for c in add.iter().filter(|c| !c.eq_ignore_ascii_case("ALL")).map(|c| name(c)) {
        if !set.contains(&c) {
            set.push(c);
        }
    }
    for c in drop.iter().filter(|c| !c.eq_ignore_ascii_case("ALL")).map(|c| name(c)) {
        set.retain(|s| *s != c);
    }
    set
}

/// Whether the default filter of system calls applies.
pub(super) fn seccomp(pod: &DesiredPod, security: &SecurityContext) -> bool {
    profile(pod, security).is_some_and(|p| p.type_ == "RuntimeDefault")
}

/// The profile of the node that applies in its place, as the pod names it (the kubelet's getSeccompProfile).
pub(super) fn localhost_profile(pod: &DesiredPod, security: &SecurityContext) -> Option<String> {
    let profile = profile(pod, security).filter(|p| p.type_ == "Localhost")?;
    Some(profile.localhost_profile.clone().unwrap_or_default())
}

fn profile<'a>(pod: &'a DesiredPod, security: &'a SecurityContext) -> Option<&'a SeccompProfile> {
    if is_privileged(security) {
        return None;
    }
    let of_pod = pod
        .pod
        .spec
        .as_ref()
        .and_then(|s| s.security_context.as_ref())
        .and_then(|s| s.seccomp_profile.as_ref());
    security.seccomp_profile.as_ref().or(of_pod)
}
