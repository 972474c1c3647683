//! The pod that a word on the command line means. Pure.

use jiff::Timestamp;
use kvmlet_provider::store::Record;

/// How few characters of a UID are enough, if they are one pod's only: `ps` shows so many.
const LEAST: usize = 8;
/// Names that are told to whoever has mistyped one.
const NEAR: usize = 3;

/// What pods are found by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// On its way out.
    pub(super) ends: bool,
    pub(super) accepted: Timestamp,
}

impl Known {
    /// The pod of a record.
    pub(super) fn of(record: &Record) -> Self {
        let metadata = &record.pod.metadata;
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            ends: record.state.deletion.is_some(),
            accepted: record.state.accepted,
        }
    }

    fn full(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The number in `all` of the pod that `NAMESPACE/NAME`, a UID, or the beginning of one means; of two with one name the one that is not on its way out.
///
/// # Errors
/// In words for people, with names that are near.
pub(super) fn find(all: &[Known], wanted: &str) -> Result<usize, String> {
    let numbered = || all.iter().enumerate();
    if let Some((exact, _)) = numbered().find(|(_, pod)| pod.uid == wanted) {
        return Ok(exact);
    }
    if wanted.contains('/') {
        let named = numbered().filter(|(_, pod)| pod.full() == wanted);
        let stays = named.min_by_key(|(_, pod)| (pod.ends, std::cmp::Reverse(pod.accepted)));
        return stays.map(|(number, _)| number).ok_or_else(|| unknown(all, wanted));
    }
    let begun: Vec<_> = numbered().filter(|(_, pod)| pod.uid.starts_with(wanted)).collect();
    match begun[..] {
        [(one, _)] if wanted.len() >= LEAST => Ok(one),
        [_, _, ..] if wanted.len() >= LEAST => Err(format!(
            "the UIDs of {} pods begin with {wanted}: {}",
            begun.len(),
            list(begun.iter().map(|(_, pod)| format!("{} ({})", pod.full(), pod.uid)))
        )),
        _ => Err(unknown(all, wanted)),
    }
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

fn unknown(all: &[Known], wanted: &str) -> String {
    let (namespace, name) = wanted.rsplit_once('/').unwrap_or(("", wanted));
    let mut near: Vec<(usize, String)> = all
        .iter()
        .filter_map(|pod| {
            let allowed = 2.max(name.len() / 3);
            let apart = distance(name, &pod.name);
            // Whoever knows the name of a Deployment's pod knows how it begins.
            let apart = if !name.is_empty() && pod.name.starts_with(name) { 0 } else { apart };
            (apart <= allowed).then(|| (apart + usize::from(pod.namespace != namespace), pod.full()))
        })
        .collect();
    near.sort();
    near.dedup();
    let what = match wanted.contains('/') {
        true => format!("there is no pod {wanted} on this host"),
        false => format!("there is no pod whose UID is {wanted} on this host; a pod's name is NAMESPACE/NAME"),
    };
    match near.is_empty() {
        true => format!("{what} (kvmlet ps lists them)"),
        false => format!("{what}; near it are {}", list(near.into_iter().take(NEAR).map(|(_, name)| name))),
    }
}

/// Letters that have to be changed, added or taken away to come from one word to the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], above + 1);
        for column in 0..other.len() {
            let changed = diagonal + usize::from(letter != other[column]);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(uid: &str, full: &str, ends: bool) -> Known {
        let (namespace, name) = full.split_once('/').unwrap();
        Known {
            uid: uid.into(),
            namespace: namespace.into(),
            name: name.into(),
            ends,
            accepted: Timestamp::UNIX_EPOCH,
        }
    }

    fn pods() -> Vec<Known> {
        vec![
            known("11111111-aaaa", "default/hello", true),
            known("11111111-bbbb", "default/hello", false),
            known("22222222-cccc", "default/web-5d9c7b-x2x4z", false),
            known("33333333-dddd", "kube-system/dns", false),
        ]
    }

    #[test]
    fn a_pod_is_found_by_name_by_uid_and_by_the_uid_that_ps_shows() {
        let pods = pods();
        let uid = |wanted| find(&pods, wanted).map(|number| pods[number].uid.as_str());
        assert_eq!(uid("default/hello"), Ok("11111111-bbbb"), "the one that stays");
        assert_eq!(uid("11111111-aaaa"), Ok("11111111-aaaa"));
        assert_eq!(uid("22222222"), Ok("22222222-cccc"));
        let both = uid("11111111").unwrap_err();
        assert!(both.contains("2 pods") && both.contains("default/hello (11111111-aaaa)"), "{both}");
        assert!(uid("2222222").is_err(), "too short to be meant");
        assert!(uid("").is_err());
    }

    #[test]
    fn whoever_mistypes_a_name_is_told_what_is_near_it() {
        let pods = pods();
        let said = |wanted| find(&pods, wanted).unwrap_err();
        assert!(
            said("default/helo").ends_with("near it are default/hello"),
            "{}",
            said("default/helo")
        );
        assert!(
            said("default/web").ends_with("near it are default/web-5d9c7b-x2x4z"),
            "{}",
            said("default/web")
        );
        assert!(
            said("default/dns").ends_with("near it are kube-system/dns"),
            "{}",
            said("default/dns")
        );
        let bare = said("hello");
        assert!(bare.contains("NAMESPACE/NAME") && bare.ends_with("default/hello"), "{bare}");
        assert!(
            said("default/something-else").contains("kvmlet ps"),
            "{}",
            said("default/something-else")
        );
    }

    #[test]
    fn the_distance_of_two_words_counts_their_letters() {
        let pairs = [("", ""), ("abc", "abc"), ("abc", ""), ("kitten", "sitting"), ("ab", "ba")];
        assert_eq!(pairs.map(|(one, other)| distance(one, other)), [0, 0, 3, 3, 2]);
    }
}
