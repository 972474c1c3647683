//! Keeps DaemonSets that go everywhere off virtual nodes. Pure.
//!
//! A DaemonSet whose pods tolerate every taint would have one on each virtual node, which mostly cannot run there (`hostNetwork`, host paths), fails and is
//! made again. So its template gets an affinity to other nodes, which its controller looks at before it makes a pod. One that names the taint's key in a
//! toleration asks for virtual nodes, and is left alone.

use serde_json::{Value, json};

use crate::{
    decide::{Decision, Toleration, has_own_affinity, toleration},
    policy::{NODE_LABEL, TAINT},
    review::Request,
};

const TEMPLATE: &str = "/spec/template";

/// Decides about a DaemonSet that is created or changed.
pub(crate) fn decide(request: &Request) -> Decision {
    let Request {
        resource,
        operation,
        object,
        old_object,
        ..
    } = request;
    if (resource.group.as_str(), resource.resource.as_str()) != ("apps", "daemonsets") {
        return Decision {
            warnings: vec![format!(
                "kvmlet: its webhook for daemonsets was asked about {operation} of {resource}"
            )],
            ..Decision::default()
        };
    }
    let templates = (object.pointer(TEMPLATE), old_object.pointer(TEMPLATE));
    // A change of something else must not replace all its pods.
    if templates.0 == templates.1 {
        return Decision::default();
    }
    let spec = &object["spec"]["template"]["spec"];
    Decision {
        patch: affinity(spec).into_iter().collect(),
        ..Decision::default()
    }
}

/// Whether a template asks for virtual nodes.
fn asks(spec: &Value) -> bool {
    let mut tolerations = spec["tolerations"].as_array().into_iter().flatten();
    tolerations.any(|one| one["key"] == TAINT)
}

/// The operation that keeps pods of a template (its spec) off virtual nodes, if they would go there without having asked.
fn affinity(spec: &Value) -> Option<Value> {
    let chose = !spec["nodeSelector"][NODE_LABEL.0].is_null() || has_own_affinity(spec);
    if asks(spec) || chose || toleration(spec) != Toleration::Ours {
        return None;
    }
    let mut affinity = or_empty(&spec["affinity"]);
    affinity["nodeAffinity"] = or_empty(&affinity["nodeAffinity"]);
    let required = &mut affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let others = json!({"key": NODE_LABEL.0, "operator": "NotIn", "values": [NODE_LABEL.1]});
    match required["nodeSelectorTerms"].as_array_mut() {
        // One of them is enough, so each has to say it; but one that says nothing selects nothing.
        Some(terms) => {
            let says = |term: &&mut Value| ["matchExpressions", "matchFields"].into_iter().any(|field| has_some(&term[field]));
            for term in terms.iter_mut().filter(says) {
                match term["matchExpressions"].as_array_mut() {
                    Some(expressions) => expressions.push(others.clone()),
                    None => term["matchExpressions"] = json!([others]),
                }
            }
        }
        None => *required = json!({"nodeSelectorTerms": [{"matchExpressions": [others]}]}),
    }
    Some(json!({"op": "add", "path": format!("{TEMPLATE}/spec/affinity"), "value": affinity}))
}

fn has_some(list: &Value) -> bool {
    list.as_array().is_some_and(|list| !list.is_empty())
}

fn or_empty(map: &Value) -> Value {
    if map.is_object() { map.clone() } else { json!({}) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::Resource;

    fn everywhere() -> Value {
        json!([{"operator": "Exists"}])
    }

    fn asked(spec: &Value, old: Option<&Value>) -> Decision {
        let object = |spec: &Value| json!({"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"metadata": {}, "spec": spec}}});
        decide(&Request {
            uid: "u".into(),
            resource: Resource {
                group: "apps".into(),
                version: "v1".into(),
                resource: "daemonsets".into(),
            },
            namespace: "kube-system".into(),
            operation: if old.is_some() { "UPDATE" } else { "CREATE" }.into(),
            object: object(spec),
            old_object: old.map(object).unwrap_or_default(),
        })
    }

    /// The affinity that a template of this spec gets.
    fn given(spec: &Value) -> Value {
        let mut decision = asked(spec, None);
        assert!(decision.warnings.is_empty() && decision.patch.len() < 2);
        decision.patch.pop().map(|one| one["value"].clone()).unwrap_or_default()
    }

    fn terms(terms: &Value) -> Value {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}})
    }

    fn others() -> Value {
        json!({"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]})
    }

    #[test]
    fn a_daemon_set_that_tolerates_everything_is_kept_off_virtual_nodes() {
        for all in [json!({"operator": "Exists"}), json!({"operator": "Exists", "effect": "NoSchedule"})] {
            let decision = asked(&json!({"tolerations": [{"key": "other"}, all]}), None);
            let wanted = terms(&json!([{"matchExpressions": [others()]}]));
            assert_eq!(
                decision.patch,
                [json!({"op": "add", "path": "/spec/template/spec/affinity", "value": wanted})]
            );
        }
    }

    #[test]
    fn one_that_asks_that_chose_its_nodes_or_that_would_not_come_is_left_alone() {
        let named = json!([{"operator": "Exists"}, {"key": TAINT, "operator": "Exists"}]);
        let own = terms(&json!([{"matchExpressions": [{"key": "type", "operator": "In", "values": ["virtual-kubelet"]}]}]));
        for spec in [
            json!({"tolerations": named}),
            json!({"tolerations": [{"key": TAINT, "value": "kvmlet"}]}),
            json!({"tolerations": everywhere(), "nodeSelector": {"type": "virtual-kubelet"}}),
            json!({"tolerations": everywhere(), "affinity": own}),
            json!({"tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}),
            json!({"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}),
            json!({}),
        ] {
            assert_eq!(asked(&spec, None), Decision::default(), "{spec}");
        }
    }

    #[test]
    fn what_it_says_of_nodes_itself_stays_and_counts_besides() {
        let (zone, name) = (
            json!({"key": "zone", "operator": "Exists"}),
            json!({"key": "metadata.name", "operator": "In", "values": ["n"]}),
        );
        let own = terms(&json!([{"matchExpressions": [zone]}, {"matchFields": [name]}, {}]));
        let spread = json!({"podAntiAffinity": {"x": 1}, "nodeAffinity": own["nodeAffinity"]});
        let wanted = terms(&json!([{"matchExpressions": [zone, others()]}, {"matchFields": [name], "matchExpressions": [others()]}, {}]));
        let found = given(&json!({"tolerations": everywhere(), "affinity": spread}));
        assert_eq!(
            (&found["nodeAffinity"], &found["podAntiAffinity"]),
            (&wanted["nodeAffinity"], &json!({"x": 1}))
        );
        let preferred = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [1]}});
        let found = given(&json!({"tolerations": everywhere(), "affinity": preferred}));
        assert_eq!(found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"], json!([1]));
        assert_eq!(
            found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]["matchExpressions"],
            json!([others()])
        );
    }

    #[test]
    fn a_change_of_something_else_leaves_the_template_and_so_its_pods_alone() {
        let before = json!({"tolerations": everywhere(), "containers": []});
        assert_eq!(asked(&before, Some(&before)), Decision::default());
        let after = json!({"tolerations": everywhere(), "containers": [{"image": "b"}]});
        assert_eq!(asked(&after, Some(&before)).patch.len(), 1);
        // What was added once is in what kubectl gets, and is not added again.
        let mut kept = after.clone();
        kept["affinity"] = given(&after);
        assert_eq!(asked(&kept, Some(&after)), Decision::default());
    }

    #[test]
    fn what_is_no_daemon_set_is_left_alone_with_a_warning() {
        let decision = decide(&Request {
            uid: "u".into(),
            resource: Resource::default(),
            namespace: String::new(),
            operation: "CREATE".into(),
            object: json!({"spec": {"template": {"spec": {"tolerations": everywhere()}}}}),
            old_object: Value::Null,
        });
        assert!(decision.patch.is_empty() && decision.warnings.len() == 1, "{decision:?}");
    }
}
