use serde_json::{Value, json};

use super::*;

/// A node that is as it should be.
pub(crate) fn node() -> Seen {
    let status = json!({"nodeInfo": {"containerRuntimeVersion": "kvmlet://0.1.0", "architecture": "", "bootID": "", "kernelVersion": "",
        "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""}});
    Seen::of(&serde_json::from_value(json!({"metadata": {"name": "kvm-1", "uid": "u"}, "status": status})).unwrap()).unwrap()
}

/// A check of it that the webhook asked for in this second, and what was answered.
pub(crate) fn check(name: &str, second: u32, passed: Option<bool>) -> PreflightCheck {
    let made = format!("2026-01-01T00:00:{second:02}Z");
    let spec = json!({"nodeName": "kvm-1", "reason": "Enabled", "useEmulation": false, "imageFormat": "raw", "version": "0.1.0"});
    let status = passed.map(|passed| {
        let checks = json!([{"name": "kernel", "passed": true, "message": "Linux"},
            {"name": "tun", "passed": passed, "message": "there is no /dev/net/tun"}]);
        json!({"passed": passed, "observedTime": made, "version": "0.1.0", "checks": checks})
    });
    serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": made}, "spec": spec, "status": status})).unwrap()
}

/// The switch.
pub(crate) fn runtime(enabled: bool) -> KvmletRuntime {
    serde_json::from_value(json!({"metadata": {"name": "kvmlet"}, "spec": {"enabled": enabled}})).unwrap()
}

pub(crate) const ON: Mode = Mode::Enabled {
    use_emulation: false,
    image_format: ImageFormat::Raw,
};

fn by_hand(mut check: PreflightCheck) -> PreflightCheck {
    check.spec.reason = None;
    check.spec.use_emulation = None;
    check.spec.image_format = None;
    check.spec.version = None;
    check
}

fn asked(due: &Due) -> Option<Reason> {
    due.ask.as_ref().and_then(|spec| spec.reason)
}

#[test]
fn only_nodes_of_kvmlet_are_looked_after() {
    let of = |node: Value| Seen::of(&serde_json::from_value(node).unwrap());
    assert!(of(json!({"metadata": {"name": "a"}, "status": {}})).is_none());
    assert_eq!(node().version, "0.1.0");
}

#[test]
fn what_counts_of_a_node_is_read() {
    let taints =
        json!([{"key": "virtual-kubelet.io/provider", "effect": "NoSchedule"}, {"key": TAINT, "value": "failed", "effect": "NoSchedule"}]);
    let info = json!({"containerRuntimeVersion": "kvmlet://0.2.0", "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": "",
        "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
    let object = json!({"metadata": {"name": "n", "uid": "u", "labels": {SKIP: ""}, "annotations": {CORDONED: "true"}},
        "spec": {"taints": taints, "unschedulable": true}, "status": {"nodeInfo": info}});
    let seen = Seen::of(&serde_json::from_value(object).unwrap()).unwrap();
    let expected = Seen {
        name: "n".into(),
        uid: "u".into(),
        version: "0.2.0".into(),
        is_skipped: true,
        taint: Some("failed".into()),
        is_unschedulable: true,
        is_cordoned: true,
    };
    assert_eq!(seen, expected);
}

#[test]
fn without_a_switch_nodes_are_left_alone_and_what_one_did_is_undone() {
    assert_eq!(Mode::of(None), Mode::Free);
    assert_eq!(due(Mode::Free, &node(), &[]), Due::default());
    let left = Seen {
        taint: Some("failed".into()),
        is_unschedulable: true,
        is_cordoned: true,
        ..node()
    };
    let (ours, theirs) = (check("ours", 1, Some(false)), by_hand(check("theirs", 2, None)));
    let due = due(Mode::Free, &left, &[&ours, &theirs]);
    assert_eq!((due.taint, due.cordon, due.drain), (None, Some(false), false));
    assert_eq!(due.forget, ["ours"]);
    assert!(due.is_change(&left));
}

#[test]
fn a_switch_that_is_being_deleted_counts_as_none() {
    let mut going = runtime(true);
    assert_eq!(Mode::of(Some(&going)), ON);
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    assert_eq!(Mode::of(Some(&going)), Mode::Free);
    assert_eq!(Mode::of(Some(&runtime(false))), Mode::Disabled);
}

#[test]
fn who_is_enabled_has_each_node_checked_and_gets_no_pods_before() {
    let due = due(ON, &node(), &[]);
    let spec = CheckSpec {
        node_name: "kvm-1".into(),
        use_emulation: Some(false),
        image_format: Some(ImageFormat::Raw),
        reason: Some(Reason::Enabled),
        version: Some("0.1.0".into()),
    };
    assert_eq!((due.ask.clone(), due.taint), (Some(spec), Some(Why::Checking)));
    assert!(due.is_change(&node()));
}

#[test]
fn the_newest_check_decides_whoever_asked_for_it() {
    let checks = [check("a", 1, Some(true)), by_hand(check("b", 2, Some(false)))];
    let taint = |checks: &[&PreflightCheck]| due(ON, &node(), checks).taint;
    assert_eq!(taint(&[&checks[0]]), None);
    assert_eq!(taint(&[&checks[0], &checks[1]]), Some(Why::Failed));
    assert_eq!(taint(&[&checks[1], &checks[0]]), Some(Why::Failed));
    let (open, mended) = (by_hand(check("c", 3, None)), by_hand(check("d", 4, Some(true))));
    assert_eq!(taint(&[&checks[0], &checks[1], &open]), Some(Why::Checking));
    assert_eq!(taint(&[&checks[0], &checks[1], &open, &mended]), None);
    assert_eq!(asked(&due(ON, &node(), &[&checks[0], &checks[1]])), None);
}

#[test]
fn of_two_checks_of_one_second_both_have_to_pass() {
    let (good, bad) = (check("a", 1, Some(true)), by_hand(check("b", 1, Some(false))));
    assert_eq!(due(ON, &node(), &[&good, &bad]).taint, Some(Why::Failed));
    assert_eq!(due(ON, &node(), &[&bad, &good]).taint, Some(Why::Failed));
}

#[test]
fn another_version_and_other_features_are_checked_anew() {
    let passed = check("a", 1, Some(true));
    let upgraded = Seen {
        version: "0.2.0".into(),
        ..node()
    };
    let due_then = due(ON, &upgraded, &[&passed]);
    assert_eq!((asked(&due_then), due_then.taint), (Some(Reason::Upgraded), Some(Why::Checking)));
    let features = |use_emulation, image_format| Mode::Enabled {
        use_emulation,
        image_format,
    };
    for others in [features(true, ImageFormat::Raw), features(false, ImageFormat::Qcow2)] {
        let due = due(others, &node(), &[&passed]);
        assert_eq!((asked(&due), due.taint), (Some(Reason::FeaturesChanged), Some(Why::Checking)));
    }
    let mut of_an_older_one = check("b", 2, Some(true));
    of_an_older_one.spec.image_format = None;
    assert_eq!(asked(&due(ON, &node(), &[&of_an_older_one])), Some(Reason::FeaturesChanged));
    // What others asked for says nothing of what we did.
    assert_eq!(
        asked(&due(ON, &node(), &[&by_hand(check("b", 2, Some(true)))])),
        Some(Reason::Enabled)
    );
}

#[test]
fn a_node_that_is_skipped_gets_no_pods_and_is_checked_when_it_is_not_any_more() {
    let passed = check("a", 1, Some(true));
    let skipped = Seen {
        is_skipped: true,
        ..node()
    };
    let then = due(ON, &skipped, &[&passed]);
    assert_eq!((then.ask, then.taint), (None, Some(Why::Skipped)));
    let back = Seen {
        taint: Some("skip-schedule".into()),
        ..node()
    };
    let then = due(ON, &back, &[&passed]);
    assert_eq!((asked(&then), then.taint), (Some(Reason::Unskipped), Some(Why::Checking)));
    // Asked for already: a second one would follow, and a third.
    let open = check("b", 2, None);
    let then = due(ON, &back, &[&passed, &open]);
    assert_eq!((asked(&then), then.taint), (None, Some(Why::Checking)));
}

#[test]
fn a_switch_that_is_off_cordons_drains_and_forgets_what_was_asked() {
    let passed = check("a", 1, Some(true));
    let then = due(Mode::Disabled, &node(), &[&passed]);
    assert_eq!((then.taint, then.cordon, then.drain), (None, Some(true), true));
    assert_eq!(then.forget, ["a"]);
    let cordoned = Seen {
        is_unschedulable: true,
        is_cordoned: true,
        ..node()
    };
    assert!(!due(Mode::Disabled, &cordoned, &[]).is_change(&cordoned));
    assert_eq!(due(ON, &cordoned, &[&passed]).cordon, Some(false));
    let by_others = Seen {
        is_unschedulable: true,
        ..node()
    };
    assert_eq!(due(ON, &by_others, &[&passed]).cordon, None, "somebody else cordoned it");
    assert_eq!(due(Mode::Disabled, &by_others, &[]).cordon, None);
}

#[test]
fn a_check_of_a_node_that_there_is_not_goes_after_an_hour() {
    let (made, now) = (check("a", 0, None), |text: &str| text.parse().unwrap());
    assert!(!is_orphaned(&made, now("2026-01-01T00:59:59Z")));
    assert!(is_orphaned(&made, now("2026-01-01T01:00:00Z")));
    assert!(!is_orphaned(&made, now("2025-12-31T00:00:00Z")), "a clock that is behind");
}

#[test]
fn a_few_answers_stay_and_the_last_that_was_asked_for_by_itself() {
    let ours = check("ours", 1, Some(true));
    let theirs: Vec<_> = (2..7)
        .map(|second| by_hand(check(&format!("{second}"), second, Some(true))))
        .collect();
    let open = by_hand(check("open", 8, None));
    let mut all: Vec<_> = theirs.iter().collect();
    all.extend([&ours, &open]);
    let mut forgotten = due(ON, &node(), &all).forget;
    forgotten.sort();
    assert_eq!(forgotten, ["2", "3"]);
}
