//! Which specifications cannot apply to a node whose pods have kernels of their own, and why.

use super::Spec;

/// Parts of names, and reasons.
const INAPPLICABLE: &[(&str, &str)] = &[
    (
        "Granular Checks: Pods should function for node-pod communication",
        "asks from a pod with hostNetwork: there is no host to share",
    ),
    (
        "scheduling a read only busybox container should not write to root filesystem",
        "expects an error in the words of busybox's shell; the image's is bash, as Debian's busybox hides variables with odd names",
    ),
    (
        "with hostAliases and hostNetwork",
        "makes a pod with hostNetwork: there is no host to share",
    ),
    (
        "should not launch unsafe, but not explicitly enabled sysctls",
        "a pod's kernel parameters are its own kernel's: none is unsafe for anybody else, and all may be set",
    ),
    (
        "KubeletManagedEtcHosts",
        "looks at the hosts file of a pod with hostNetwork: there is no host to share",
    ),
    ("if pod uses host network", "a pod with hostNetwork: there is no host to share"),
];

/// Why a specification cannot apply, if so.
pub(super) fn reason(spec: &Spec) -> Option<&'static str> {
    INAPPLICABLE
        .iter()
        .find(|(part, _)| spec.0.contains(part))
        .map(|(_, reason)| *reason)
}
