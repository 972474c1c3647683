//! What a volume was made of, as far as it can change: enough to see that it must be made anew, and nothing of what is secret. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Volume;
use serde::{Deserialize, Serialize};

use super::files;
use crate::{
    desired::DesiredPod,
    downward::Facts,
    objects::{Object, Reference, refer},
    token::{Issue, Wish},
};

/// What one volume was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Versions of config maps and secrets, as `secret/keys`; nothing where one did not exist.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, Option<String>>,
    /// What the pod said of itself, by path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// When its tokens were had; nothing where there was none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Option<Timestamp>>,
}

/// What the guest of a pod has been given: kept in a record, so that a daemon that comes later knows what changed in between.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Volumes by name.
    pub volumes: BTreeMap<String, Inputs>,
    /// Tokens: when they were had, never what they are.
    pub tokens: Vec<DeliveredToken>,
}

/// A token that was delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveredToken {
    /// What was asked for.
    #[serde(flatten)]
    pub wish: Wish,
    /// When it was had.
    pub issue: Issue,
}

impl Delivered {
    /// The tokens, by what was asked for.
    pub fn tokens(&self) -> BTreeMap<Wish, Issue> {
        self.tokens.iter().map(|t| (t.wish.clone(), t.issue)).collect()
    }

    /// Replaces the tokens.
    pub fn set_tokens(&mut self, issues: &BTreeMap<Wish, Issue>) {
        let token = |(wish, issue): (&Wish, &Issue)| DeliveredToken {
            wish: wish.clone(),
            issue: *issue,
        };
        self.tokens = issues.iter().map(token).collect();
    }
}

/// What a volume is made of now; nothing while one of its objects is not known.
pub fn inputs(
    pod: &DesiredPod,
    volume: &Volume,
    facts: &Facts,
    objects: &BTreeMap<Reference, Option<Arc<Object>>>,
    tokens: &BTreeMap<Wish, Issue>,
) -> Option<Inputs> {
    let mut inputs = Inputs::default();
    for reference in refer::of_volume(&pod.namespace, volume) {
        let object = objects.get(&reference)?;
        let version = object.as_ref().map(|object| object.version.clone());
        inputs.objects.insert(reference.to_string(), version);
    }
    let projected = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
    let projected = projected.filter_map(|s| s.downward_api.as_ref()?.items.as_ref());
    let plain = volume.downward_api.iter().filter_map(|d| d.items.as_ref());
    for item in plain.chain(projected).flatten() {
        // What cannot be said shows when the files are made.
        let value = files::value(pod, facts, item).unwrap_or_default();
        inputs.fields.insert(item.path.clone(), value);
    }
    inputs.tokens = files::wishes(volume)
        .iter()
        .map(|wish| tokens.get(wish).map(|issue| issue.at))
        .collect();
    Some(inputs)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::{Entries, Kind};

    fn pod(label: &str) -> DesiredPod {
        let pod = json!({"metadata": {"namespace": "n", "labels": {"app": label}}, "spec": {"containers": [{"name": "c"}], "volumes": [
            {"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "t", "expirationSeconds": 600}},
                {"downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}}]}}]}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn objects(version: Option<&str>) -> BTreeMap<Reference, Option<Arc<Object>>> {
        let object = version.map(|version| {
            Arc::new(Object {
                version: version.into(),
                immutable: false,
                text: Entries::from([("a".into(), b"hidden".to_vec())]),
                binary: Entries::new(),
            })
        });
        BTreeMap::from([(Reference::new(Kind::Secret, "n", "s"), object)])
    }

    fn tokens(second: i64) -> BTreeMap<Wish, Issue> {
        let issue = Issue {
            at: Timestamp::from_second(second).unwrap(),
            seconds: 600,
        };
        BTreeMap::from([(Wish::new(None, Some(600)), issue)])
    }

    fn of(pod: &DesiredPod, objects: &BTreeMap<Reference, Option<Arc<Object>>>, tokens: &BTreeMap<Wish, Issue>) -> Option<Inputs> {
        inputs(pod, &pod.volumes()[0], &Facts::default(), objects, tokens)
    }

    #[test]
    fn whatever_a_volume_is_made_of_shows_when_it_changes() {
        let first = of(&pod("one"), &objects(Some("u/1")), &tokens(1)).unwrap();
        assert_eq!(of(&pod("one"), &objects(Some("u/1")), &tokens(1)).as_ref(), Some(&first));
        for (what, changed) in [
            ("a label", of(&pod("two"), &objects(Some("u/1")), &tokens(1))),
            ("the secret", of(&pod("one"), &objects(Some("u/2")), &tokens(1))),
            ("that it is gone", of(&pod("one"), &objects(None), &tokens(1))),
            ("the token", of(&pod("one"), &objects(Some("u/1")), &tokens(2))),
        ] {
            assert_ne!(changed.unwrap(), first, "{what}");
        }
    }

    #[test]
    fn while_an_object_is_not_known_nothing_is_said() {
        assert_eq!(of(&pod("one"), &BTreeMap::new(), &tokens(1)), None);
    }

    #[test]
    fn the_record_comes_back_whole_and_holds_no_secret() {
        let mut delivered = Delivered::default();
        let inputs = of(&pod("one"), &objects(Some("u/1")), &tokens(1)).unwrap();
        delivered.volumes.insert("v".into(), inputs);
        delivered.set_tokens(&tokens(1));
        let text = serde_json::to_string(&delivered).unwrap();
        assert!(!text.contains("hidden"), "{text}");
        let back: Delivered = serde_json::from_str(&text).unwrap();
        assert_eq!(back, delivered);
        assert_eq!(back.tokens(), tokens(1));
    }
}
