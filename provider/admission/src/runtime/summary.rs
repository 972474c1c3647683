//! What is told of all nodes in the KvmletRuntime's status.

use std::collections::BTreeMap;

use super::{
    FeatureStatus, KvmletRuntime, PreflightCheck, RuntimeStatus, Summary,
    decide::{Mode, Seen},
    newest,
};

/// Nodes that the message names.
const NAMED: usize = 3;

/// What is left on a node that is drained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// Pods that have to leave it.
    pub pods: usize,
    /// A pod of the webhook's own is there, too, which keeps the Node.
    pub is_kept: bool,
}

/// What is known of a node: what it is, its checks, and what is left on it.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// The node.
    pub node: &'a Seen,
    /// Its checks.
    pub checks: Vec<&'a PreflightCheck>,
    /// What is left on it, where it is drained.
    pub left: Left,
    /// What was due on it the API server refused, with these words.
    pub refused: Option<&'a str>,
}

/// What is to be told, of a switch and the nodes there are.
pub fn status(runtime: &KvmletRuntime, all: &[Known<'_>]) -> RuntimeStatus {
    let is_enabled = matches!(Mode::of(Some(runtime)), Mode::Enabled { .. });
    let wrong: Vec<String> = all.iter().filter_map(wrong).collect();
    let passed = all.len() - wrong.len();
    let message = if is_enabled {
        match all.len() {
            0 => "there is no node of kvmlet yet".into(),
            nodes if passed == nodes => format!("all {nodes} nodes have passed"),
            nodes => format!("{passed} of {nodes} nodes have passed. {}", first(&wrong)),
        }
    } else {
        let refused: Vec<_> = all.iter().filter_map(refused).collect();
        let names = |is_kept: bool| -> Vec<_> {
            let those = all.iter().filter(|one| one.left.is_kept == is_kept);
            those.map(|one| one.node.name.clone()).collect()
        };
        match all.iter().map(|one| one.left.pods).sum() {
            _ if !refused.is_empty() => format!("being disabled. {}", first(&refused)),
            0_usize if all.is_empty() => "disabled: no pod is left, and there are no Nodes until kvmlet is enabled".into(),
            0_usize if names(false).is_empty() => format!(
                "disabled: no pod is left but the webhook's own, and while these are there so are their Nodes: {}",
                first(&names(true))
            ),
            0_usize => format!(
                "being disabled: no pod is left, and these Nodes are about to go: {}",
                first(&names(false))
            ),
            leaving => format!("being disabled: {leaving} pods have yet to leave its nodes"),
        }
    };
    RuntimeStatus {
        observed_generation: runtime.metadata.generation.unwrap_or_default(),
        ready: is_enabled && !all.is_empty() && wrong.is_empty(),
        message,
        preflight_check_summary: Summary {
            nodes: all.len() as u32,
            passed: passed as u32,
            feature_statuses: features(all),
        },
    }
}

/// What could not be done to a node, if there is something.
fn refused(one: &Known<'_>) -> Option<String> {
    one.refused.map(|why| format!("{} cannot be changed: {why}", one.node.name))
}

/// Why the node takes no pods, if it does not.
fn wrong(one: &Known<'_>) -> Option<String> {
    if let Some(refused) = refused(one) {
        return Some(refused);
    }
    let name = &one.node.name;
    if one.node.is_skipped {
        return Some(format!("{name} has the label {}", super::SKIP));
    }
    let newest = newest(&one.checks);
    if newest.is_empty() || newest.iter().any(|check| !check.is_answered()) {
        return Some(format!("{name} has not answered yet: is its daemon there?"));
    }
    let check = newest.iter().find(|check| !check.has_passed())?;
    Some(format!("{name}: {}", failures(check)))
}

/// What a check found wrong, one after another.
pub fn failures(check: &PreflightCheck) -> String {
    let failed: Vec<_> = check.failed().map(|one| format!("{}: {}", one.name, one.message)).collect();
    failed.join("; ")
}

fn first(wrong: &[String]) -> String {
    let named = wrong.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(". ");
    match wrong.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named}. And {more} more"),
    }
}

/// Each check over all nodes, in the order of the first node.
fn features(all: &[Known<'_>]) -> Vec<FeatureStatus> {
    let (mut features, mut places) = (Vec::<FeatureStatus>::new(), BTreeMap::new());
    for one in all {
        let newest = newest(&one.checks);
        let Some(status) = newest.iter().find_map(|check| check.status.as_ref()) else {
            continue;
        };
        for check in &status.checks {
            let place = *places.entry(&check.name).or_insert(features.len());
            if place == features.len() {
                features.push(FeatureStatus {
                    name: check.name.clone(),
                    passed: true,
                    ..FeatureStatus::default()
                });
            }
            let feature = &mut features[place];
            if !check.passed {
                if feature.passed {
                    feature.message = format!("{}: {}", one.node.name, check.message);
                }
                feature.passed = false;
                feature.failed_nodes += 1;
            }
        }
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::decide::tests::{check, node, runtime};

    #[test]
    fn it_is_ready_when_every_node_has_passed_and_there_is_one() {
        let (node, passed, open) = (node(), check("a", 1, Some(true)), check("b", 2, None));
        let known = |checks| {
            [Known {
                node: &node,
                checks,
                left: Left::default(),
                refused: None,
            }]
        };
        let on = runtime(true);
        let told = status(&on, &known(vec![&passed]));
        assert!(told.ready && told.message == "all 1 nodes have passed", "{told:?}");
        let told = status(&on, &[]);
        assert!(!told.ready && told.message.contains("no node"), "{told:?}");
        let told = status(&on, &known(vec![&passed, &open]));
        assert!(!told.ready && told.message.contains("kvm-1 has not answered yet"), "{told:?}");
        assert!(!status(&runtime(false), &known(vec![&passed])).ready);
    }

    #[test]
    fn what_is_wrong_is_told_with_the_node_and_what_to_do() {
        let (node, failed) = (node(), check("a", 1, Some(false)));
        let known = Known {
            node: &node,
            checks: vec![&failed],
            left: Left::default(),
            refused: None,
        };
        let told = status(&runtime(true), &[known.clone(), known]);
        assert_eq!(
            told.message,
            "0 of 2 nodes have passed. kvm-1: tun: there is no /dev/net/tun. kvm-1: tun: there is no /dev/net/tun"
        );
        let summary = told.preflight_check_summary;
        assert_eq!((summary.nodes, summary.passed), (2, 0));
        let tun = summary.feature_statuses.iter().find(|one| one.name == "tun").unwrap();
        assert_eq!((tun.passed, tun.failed_nodes), (false, 2));
        assert_eq!(tun.message, "kvm-1: there is no /dev/net/tun");
        let kernel = summary.feature_statuses.iter().find(|one| one.name == "kernel").unwrap();
        assert!(kernel.passed && kernel.message.is_empty());
    }

    #[test]
    fn a_switch_that_is_off_says_how_many_pods_are_left() {
        let node = node();
        let known = |pods, is_kept| {
            [Known {
                node: &node,
                checks: vec![],
                left: Left { pods, is_kept },
                refused: None,
            }]
        };
        assert!(
            status(&runtime(false), &known(2, true))
                .message
                .starts_with("being disabled: 2 pods")
        );
        let kept = status(&runtime(false), &known(0, true)).message;
        assert!(kept.starts_with("disabled:") && kept.ends_with("kvm-1"), "{kept}");
        let going = status(&runtime(false), &known(0, false)).message;
        assert!(going.starts_with("being disabled:") && going.ends_with("kvm-1"), "{going}");
        let gone = status(&runtime(false), &[]).message;
        assert!(gone.starts_with("disabled:") && gone.contains("no Nodes"), "{gone}");
    }
}
