//! Everything that a pod leaves on a host while it lives, found by looking where it would be rather than by asking kvmlet.

use std::{collections::BTreeSet, fmt};

use anyhow::Result;

use crate::Host;

/// One trace a line: what it is, and which.
const SCRIPT: &str = r#"
ps -eo pid=,args= | awk '/kvmlet vm$/ { print "process", $1 }'
for space in $(ls /run/netns); do
    echo "netns $space"
    ip -n "$space" -o link show type tun 2>/dev/null | awk -v space="$space" '{ print "tap", space "/" $2 }'
done
ip -o link show type veth | awk '{ print "veth", $2 }'
ip -o link show type tun | awk '{ print "tap", $2 }'
ls /var/lib/kvmlet/network/leases/kvmlet 2>/dev/null | grep '^[0-9]' | sed 's/^/address /'
find /var/lib/kvmlet/pods /var/lib/kvmlet/network/pods -mindepth 1 -printf 'file %p\n' 2>/dev/null
find /var/log/pods -mindepth 1 -printf 'log %p\n' 2>/dev/null
find /sys/fs/cgroup/kvmlet.slice -mindepth 1 -type d -printf 'cgroup %p\n' 2>/dev/null
awk '/kvmlet\/pods/ { print "mount", $2 }' /proc/mounts
"#;

/// What there may be, with the words for one and for more.
const KINDS: [(&str, &str, &str); 9] = [
    ("process", "process", "processes"),
    ("netns", "network namespace", "network namespaces"),
    ("tap", "tap", "taps"),
    ("veth", "veth", "veths"),
    ("address", "address", "addresses"),
    ("file", "file", "files"),
    ("log", "log", "logs"),
    ("cgroup", "cgroup", "cgroups"),
    ("mount", "mount", "mounts"),
];

/// Kinds that every running pod has.
const NEEDED: [&str; 8] = ["process", "netns", "tap", "veth", "address", "file", "log", "cgroup"];

/// What pods have left on a host at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Traces(BTreeSet<String>);

impl Traces {
    /// Those there are now.
    pub(super) fn of(host: &Host) -> Result<Self> {
        Ok(Self(host.sh(SCRIPT)?.lines().map(str::to_owned).collect()))
    }

    /// Those that `before` did not have.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self(self.0.difference(&before.0).cloned().collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A kind that a running pod has and that is not here: whoever looked would not have seen it stay either.
    pub(super) fn missing(&self) -> Option<&'static str> {
        NEEDED.into_iter().find(|kind| self.count(kind) == 0)
    }

    /// Each by name, for an error.
    pub(super) fn list(&self) -> String {
        let all: Vec<&str> = self.0.iter().map(String::as_str).collect();
        all.join(", ")
    }

    fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|trace| trace.split(' ').next() == Some(kind)).count()
    }
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = KINDS.iter().filter_map(|(kind, one, more)| match self.count(kind) {
            0 => None,
            1 => Some(format!("1 {one}")),
            many => Some(format!("{many} {more}")),
        });
        f.write_str(&words.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(lines: &[&str]) -> Traces {
        Traces(lines.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn only_what_came_is_counted() {
        let before = traces(&["process 7", "file /a"]);
        let after = traces(&["process 7", "process 9", "file /a", "file /b", "file /c"]);
        let new = after.since(&before);
        assert_eq!(new.to_string(), "1 process, 2 files");
        assert_eq!(new.missing(), Some("netns"));
        assert!(before.since(&after).is_empty());
    }
}
