//! The kubelet's Node is cordoned, and ours with it; what the mirror did it undoes, and nothing else. Pure.

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::leave;

/// The annotation of our Node that says that it was cordoned with another, and with which.
const CORDONED_WITH: &str = "kvmlet.io/cordoned-with";

/// Whether our Node was cordoned with the kubelet's.
pub(crate) fn is_mirrored(node: &Node) -> bool {
    node.annotations().contains_key(CORDONED_WITH)
}

/// Adds to a patch of our Node that it was not.
pub(crate) fn forget(patch: &mut Value) {
    patch["metadata"]["annotations"][CORDONED_WITH] = Value::Null;
}

/// The patch of our Node, given whether the kubelet's, `other`, is cordoned. An operator who cordons ours alone finds it so afterwards, and who
/// uncordons ours alone does too, until the kubelet's is uncordoned and cordoned again. One that leaves stays as it is.
pub(crate) fn mirror(node: &Node, other: &str, is_cordoned: bool) -> Option<Value> {
    if leave::is_cordoned(node) {
        return None;
    }
    let closed = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let mut patch = json!({});
    match (is_cordoned, is_mirrored(node), closed) {
        (true, false, false) => {
            patch["spec"]["unschedulable"] = json!(true);
            patch["metadata"]["annotations"][CORDONED_WITH] = json!(other);
        }
        (false, true, _) => {
            forget(&mut patch);
            if closed {
                // Nothing in place of false: so kubectl leaves it, too.
                patch["spec"]["unschedulable"] = Value::Null;
            }
        }
        _ => return None,
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(closed: bool, annotations: &[&str]) -> Node {
        let annotations: serde_json::Map<_, _> = annotations.iter().map(|name| ((*name).to_owned(), json!("worker"))).collect();
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": {"unschedulable": closed}})).unwrap()
    }

    #[test]
    fn cordoning_the_kubelets_node_cordons_ours_and_undoing_it_undoes_it() {
        let patch = mirror(&node(false, &[]), "worker", true).unwrap();
        assert_eq!(
            patch,
            json!({"spec": {"unschedulable": true}, "metadata": {"annotations": {CORDONED_WITH: "worker"}}})
        );
        let both = node(true, &[CORDONED_WITH]);
        assert_eq!(mirror(&both, "worker", true), None);
        assert_eq!(
            mirror(&both, "worker", false).unwrap(),
            json!({"spec": {"unschedulable": null}, "metadata": {"annotations": {CORDONED_WITH: null}}})
        );
    }

    #[test]
    fn what_an_operator_does_to_our_node_alone_stays() {
        let closed = node(true, &[]);
        assert_eq!(
            (mirror(&closed, "worker", true), mirror(&closed, "worker", false)),
            (None, None),
            "cordoned before the other was, and after it was uncordoned"
        );
        let opened = node(false, &[CORDONED_WITH]);
        assert_eq!(mirror(&opened, "worker", true), None, "uncordoned by hand");
        let after = mirror(&opened, "worker", false).unwrap();
        assert_eq!(after, json!({"metadata": {"annotations": {CORDONED_WITH: null}}}));
        assert_eq!(mirror(&node(false, &[]), "worker", false), None);
    }

    #[test]
    fn a_node_that_leaves_takes_no_pods_again_because_the_other_does() {
        let leaves = node(true, &[CORDONED_WITH, "kvmlet.io/leaving"]);
        assert_eq!((mirror(&leaves, "worker", false), mirror(&leaves, "worker", true)), (None, None));
    }
}
