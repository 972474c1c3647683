//! What is to be delivered to a pod's guest, and when to look again. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;

use crate::{
    desired::DesiredPod,
    downward::Facts,
    objects::{Object, Reference},
    token::{self, Issue, Token, Wish},
    volumes::{self, Delivered, Inputs},
};

/// Something that failed, to be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    /// How often in a row.
    pub(super) count: u32,
    /// Not before.
    pub(super) not_before: Timestamp,
}

impl Failure {
    /// Once more.
    pub(super) fn again(before: Option<Self>, now: Timestamp) -> Self {
        let count = before.map_or(0, |f| f.count) + 1;
        Self {
            count,
            not_before: now.saturating_add(token::wait(count)).unwrap_or(Timestamp::MAX),
        }
    }
}

/// The volumes that are made of something else now than what was delivered. One that is made of something that is not known is left as it is.
pub(super) fn changed<'a>(
    pod: &'a DesiredPod,
    facts: &Facts,
    objects: &BTreeMap<Reference, Option<Arc<Object>>>,
    issues: &BTreeMap<Wish, Issue>,
    delivered: &Delivered,
) -> Vec<(&'a Volume, Inputs)> {
    let volumes = pod.volumes().iter().filter(|volume| volumes::is_of_files(volume));
    volumes
        .filter_map(|volume| Some((volume, volumes::inputs(pod, volume, facts, objects, issues)?)))
        .filter(|(volume, inputs)| delivered.volumes.get(&volume.name) != Some(inputs))
        .collect()
}

/// The tokens to ask for now: those that were never had or are due, and those that a volume which is made anew holds and nobody remembers.
pub(super) fn wanted(
    pod: &DesiredPod,
    changed: &[(&Volume, Inputs)],
    issues: &BTreeMap<Wish, Issue>,
    tokens: &BTreeMap<Wish, Token>,
    failures: &BTreeMap<Wish, Failure>,
    now: Timestamp,
) -> BTreeSet<Wish> {
    let anew: BTreeSet<Wish> = changed.iter().flat_map(|(volume, _)| volumes::wishes(volume)).collect();
    all_wishes(pod)
        .into_iter()
        .filter(|wish| failures.get(wish).is_none_or(|f| f.not_before <= now))
        .filter(|wish| {
            let due = issues.get(wish).is_none_or(|issue| token::is_due(*issue, &pod.uid, now));
            due || (anew.contains(wish) && !tokens.contains_key(wish))
        })
        .collect()
}

/// When to look again if nothing else happens.
pub(super) fn next(
    pod: &DesiredPod,
    issues: &BTreeMap<Wish, Issue>,
    failures: &BTreeMap<Wish, Failure>,
    put: Option<Failure>,
) -> Option<Timestamp> {
    let of_token = |wish: Wish| match failures.get(&wish) {
        Some(failure) => Some(failure.not_before),
        None => issues.get(&wish).map(|issue| token::due(*issue, &pod.uid)),
    };
    let tokens = all_wishes(pod).into_iter().filter_map(of_token);
    tokens.chain(put.map(|f| f.not_before)).min()
}

fn all_wishes(pod: &DesiredPod) -> BTreeSet<Wish> {
    pod.volumes().iter().flat_map(volumes::wishes).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::{Entries, Kind};

    const MINUTE: i64 = 60;

    fn pod() -> DesiredPod {
        let pod = json!({"metadata": {"namespace": "n", "uid": "u", "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}], "volumes": [
            {"name": "map", "configMap": {"name": "m", "optional": true}},
            {"name": "all", "projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "t", "expirationSeconds": 600}}]}},
            {"name": "down", "downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}},
            {"name": "empty", "emptyDir": {}}]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn wish() -> Wish {
        Wish::new(None, Some(600))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn issue() -> Issue {
        Issue { at: at(0), seconds: 600 }
    }

    fn issues() -> BTreeMap<Wish, Issue> {
        BTreeMap::from([(wish(), issue())])
    }

    fn tokens() -> BTreeMap<Wish, Token> {
        let token = Token {
            value: "t".into(),
            issue: issue(),
        };
        BTreeMap::from([(wish(), token)])
    }

    fn objects(map: Option<&str>, secret: &str) -> BTreeMap<Reference, Option<Arc<Object>>> {
        let object = |version: &str| {
            Arc::new(Object {
                version: version.into(),
                immutable: false,
                text: Entries::new(),
                binary: Entries::new(),
            })
        };
        BTreeMap::from([
            (Reference::new(Kind::ConfigMap, "n", "m"), map.map(object)),
            (Reference::new(Kind::Secret, "n", "s"), Some(object(secret))),
        ])
    }

    #[test]
    fn a_token_is_renewed_when_the_clock_has_jumped_past_its_time_or_back_before_it_was_had() {
        let asked = |now| wanted(&pod(), &[], &issues(), &tokens(), &BTreeMap::new(), now).len();
        assert_eq!(asked(at(0)), 0);
        assert_eq!(asked(at(300)), 0);
        assert_eq!(asked(at(365 * 86_400)), 1, "a year forward");
        assert_eq!(asked(at(-1)), 1, "a second back");
        assert_eq!(asked(at(-86_400)), 1, "a day back");
        let failure = Failure::again(None, at(-86_400));
        let failures = BTreeMap::from([(wish(), failure)]);
        assert_eq!(
            wanted(&pod(), &[], &issues(), &tokens(), &failures, at(-86_400)).len(),
            0,
            "not in a loop"
        );
    }

    fn names(changed: &[(&Volume, Inputs)]) -> Vec<String> {
        changed.iter().map(|(volume, _)| volume.name.clone()).collect()
    }

    /// All that the pod has been given.
    fn delivered(pod: &DesiredPod) -> Delivered {
        let mut delivered = Delivered::default();
        let all = changed(pod, &Facts::default(), &objects(None, "1"), &issues(), &delivered);
        assert_eq!(names(&all), ["map", "all", "down"]);
        delivered.volumes = all.into_iter().map(|(volume, inputs)| (volume.name.clone(), inputs)).collect();
        delivered.set_tokens(&issues());
        delivered
    }

    #[test]
    fn only_what_has_changed_since_it_was_delivered_is_delivered() {
        let pod = pod();
        let delivered = delivered(&pod);
        let changed = |objects: &_, issues: &_| names(&changed(&pod, &Facts::default(), objects, issues, &delivered));
        assert_eq!(changed(&objects(None, "1"), &issues()), [""; 0]);
        assert_eq!(changed(&objects(Some("1"), "1"), &issues()), ["map"]);
        assert_eq!(changed(&objects(None, "2"), &issues()), ["all"]);
        assert_eq!(changed(&BTreeMap::new(), &issues()), [""; 0]);
        let renewed = BTreeMap::from([(
            wish(),
            Issue {
                at: at(MINUTE),
                seconds: 600,
            },
        )]);
        assert_eq!(changed(&objects(None, "1"), &renewed), ["all"]);
    }

    #[test]
    fn a_label_that_changes_reaches_the_volume_that_shows_it() {
        let mut pod = pod();
        let delivered = delivered(&pod);
        let mut object = (*pod.pod).clone();
        object.metadata.labels.as_mut().unwrap().insert("app".into(), "other".into());
        pod.pod = Arc::new(object);
        let changed = changed(&pod, &Facts::default(), &objects(None, "1"), &issues(), &delivered);
        assert_eq!(names(&changed), ["down"]);
    }

    #[test]
    fn a_token_is_asked_for_when_it_is_due_and_not_before() {
        let pod = pod();
        let wanted = |now, failures: &_| wanted(&pod, &[], &issues(), &tokens(), failures, now);
        let none = BTreeMap::new();
        assert_eq!(wanted(at(7 * MINUTE), &none), BTreeSet::new());
        assert_eq!(wanted(at(8 * MINUTE), &none), BTreeSet::from([wish()]));
        let failed = Failure::again(None, at(8 * MINUTE));
        let failures = BTreeMap::from([(wish(), failed)]);
        assert_eq!(wanted(at(8 * MINUTE), &failures), BTreeSet::new());
        assert_eq!(wanted(at(8 * MINUTE + 2), &failures), BTreeSet::from([wish()]));
        let due = next(&pod, &issues(), &none, None).unwrap();
        assert!((at(7 * MINUTE)..=at(8 * MINUTE)).contains(&due));
        assert_eq!(next(&pod, &issues(), &failures, None), Some(failed.not_before));
        let sooner = Failure::again(None, at(0));
        assert_eq!(next(&pod, &issues(), &failures, Some(sooner)), Some(at(2)));
    }

    #[test]
    fn after_a_restart_a_token_is_asked_for_only_if_its_volume_is_made_anew() {
        let pod = pod();
        let delivered = delivered(&pod);
        // The record says when the token was had, and nobody knows it any more.
        let asked = |objects: &_| {
            let changed = changed(&pod, &Facts::default(), objects, &issues(), &delivered);
            wanted(&pod, &changed, &issues(), &BTreeMap::new(), &BTreeMap::new(), at(MINUTE))
        };
        assert_eq!(asked(&objects(None, "1")), BTreeSet::new());
        assert_eq!(asked(&objects(Some("1"), "1")), BTreeSet::new());
        assert_eq!(asked(&objects(None, "2")), BTreeSet::from([wish()]));
        // A machine of a daemon that kept no record gets all of it anew.
        let changed = changed(
            &pod,
            &Facts::default(),
            &objects(None, "1"),
            &BTreeMap::new(),
            &Delivered::default(),
        );
        assert_eq!(changed.len(), 3);
        let all = wanted(&pod, &changed, &BTreeMap::new(), &BTreeMap::new(), &BTreeMap::new(), at(0));
        assert_eq!(all, BTreeSet::from([wish()]));
    }
}
