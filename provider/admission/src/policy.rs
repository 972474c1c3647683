//! By which labels a pod asks for a virtual node, and in which way it goes there.

use std::{collections::BTreeMap, str::FromStr};

use serde::Deserialize;

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// The taint of virtual nodes, with the effect `NoSchedule`.
pub const TAINT: &str = "virtual-kubelet.io/provider";
/// The value of that taint on kvmlet's nodes.
pub const PROVIDER: &str = "kvmlet";
/// The label of virtual nodes, and its value.
pub const NODE_LABEL: (&str, &str) = ("type", "virtual-kubelet");
/// A namespace with this label and value sends its pods.
pub const NAMESPACE_LABEL: (&str, &str) = ("virtual-node-affinity-injection", "enabled");
/// On a namespace or a pod, `true` sends pods; on a pod, `false` leaves it alone.
pub const INJECT: &str = "kvmlet.io/inject";
/// The label of a namespace that says in which way its pods go; on pods, the way that was chosen for them.
pub const POLICY: &str = "kvmlet.io/burst-policy";
/// The label of a pod that names the profile that decided about it.
pub const PROFILE: &str = "kvmlet.io/burst-profile";
/// The annotation of a pod that names the profiles that select it, too, but come later; commas between them.
pub const PASSED_OVER: &str = "kvmlet.io/burst-profiles-passed-over";

/// Selects virtual nodes by their label.
pub fn virtual_nodes() -> String {
    format!("{}={}", NODE_LABEL.0, NODE_LABEL.1)
}

/// In which way pods go to virtual nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Policy {
    /// There and nowhere else.
    VirtualNodeOnly,
    /// To ordinary nodes while they have room, then there.
    NormalNodePrefer,
    /// To both, spread.
    Fair,
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the label {POLICY} is {0:?}, which is none of virtualNodeOnly, normalNodePrefer and fair")]
pub struct NoPolicy(pub String);

impl FromStr for Policy {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        match text {
            "virtualNodeOnly" => Ok(Self::VirtualNodeOnly),
            "normalNodePrefer" => Ok(Self::NormalNodePrefer),
            "fair" => Ok(Self::Fair),
            _ => Err(NoPolicy(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::VirtualNodeOnly => "virtualNodeOnly",
            Self::NormalNodePrefer => "normalNodePrefer",
            Self::Fair => "fair",
        })
    }
}

/// Whether a pod is to go to virtual nodes, by its own labels and its namespace's. The pod's own word counts before the namespace's.
pub fn is_asked(pod: &Labels, namespace: &Labels) -> bool {
    match pod.get(INJECT).map(String::as_str) {
        Some("true") => true,
        Some("false") => false,
        _ => is_asked_by_namespace(namespace),
    }
}

/// Whether a namespace sends its pods.
pub fn is_asked_by_namespace(labels: &Labels) -> bool {
    let is = |key: &str, value: &str| labels.get(key).is_some_and(|found| found == value);
    is(NAMESPACE_LABEL.0, NAMESPACE_LABEL.1) || is(INJECT, "true")
}

/// Whether profiles have no say about a pod: it is to be left alone, or its namespace is and it does not ask itself.
pub fn is_kept(pod: &Labels, namespace: &Labels) -> bool {
    let word = pod.get(INJECT).filter(|word| matches!(word.as_str(), "true" | "false"));
    word.or_else(|| namespace.get(INJECT)).is_some_and(|word| word == "false")
}

/// The way a pod goes: its own, its namespace's, its profile's, else there and nowhere else.
pub fn policy(pod: &Labels, namespace: &Labels, profile: Option<Policy>) -> Result<Policy, NoPolicy> {
    match pod.get(POLICY).or_else(|| namespace.get(POLICY)) {
        Some(text) => text.parse(),
        None => Ok(profile.unwrap_or(Policy::VirtualNodeOnly)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn pods_go_by_either_label_of_their_namespace_or_their_own_and_false_keeps_one() {
        let none = labels(&[]);
        let namespaces = [labels(&[NAMESPACE_LABEL]), labels(&[(INJECT, "true")])];
        for namespace in &namespaces {
            assert!(is_asked(&none, namespace));
            assert!(!is_asked(&labels(&[(INJECT, "false")]), namespace));
            assert!(is_asked(&labels(&[(INJECT, "yes")]), namespace), "a word that means nothing");
        }
        assert!(!is_asked(&none, &none));
        assert!(is_asked(&labels(&[(INJECT, "true")]), &none));
        assert!(!is_asked(&none, &labels(&[(NAMESPACE_LABEL.0, "disabled"), (INJECT, "false")])));
    }

    #[test]
    fn profiles_have_no_say_about_a_pod_that_is_left_alone_or_whose_namespace_is() {
        let (none, yes, no) = (labels(&[]), labels(&[(INJECT, "true")]), labels(&[(INJECT, "false")]));
        assert!(!is_kept(&none, &none) && !is_kept(&none, &yes));
        assert!(is_kept(&no, &none) && is_kept(&no, &yes) && is_kept(&none, &no));
        assert!(!is_kept(&yes, &no), "the pod's own word counts first");
    }

    #[test]
    fn a_policy_is_the_pods_then_the_namespaces_then_the_profiles_then_virtual_nodes_only() {
        let fair = labels(&[(POLICY, "fair")]);
        let prefer = labels(&[(POLICY, "normalNodePrefer")]);
        assert_eq!(policy(&labels(&[]), &labels(&[]), None), Ok(Policy::VirtualNodeOnly));
        let profile = Some(Policy::NormalNodePrefer);
        assert_eq!(policy(&labels(&[]), &labels(&[]), profile), Ok(Policy::NormalNodePrefer));
        assert_eq!(policy(&labels(&[]), &fair, profile), Ok(Policy::Fair));
        assert_eq!(policy(&prefer, &fair, None), Ok(Policy::NormalNodePrefer));
        let wrong = policy(&labels(&[]), &labels(&[(POLICY, "Fair")]), None).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            r#"the label kvmlet.io/burst-policy is "Fair", which is none of virtualNodeOnly, normalNodePrefer and fair"#
        );
    }

    #[test]
    fn a_policys_name_is_read_as_it_is_written() {
        for policy in [Policy::VirtualNodeOnly, Policy::NormalNodePrefer, Policy::Fair] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
    }
}
