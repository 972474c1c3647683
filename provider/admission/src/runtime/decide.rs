//! What is due on a node, from what it is and the checks there are of it. Everything follows from what is seen: a leader that begins anew goes on
//! where another stopped.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::{CORDONED, CheckSpec, ImageFormat, KvmletRuntime, PreflightCheck, Reason, SKIP, TAINT, newest};

/// Answered checks of a node that stay.
const KEPT: usize = 3;
/// After so many seconds a check of a node that there is not goes.
const ORPHANED: i64 = 3600;
/// What a container runtime's version begins with on nodes of ours.
const RUNTIME: &str = "kvmlet://";

/// What counts of a Node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// The version of kvmlet.
    pub version: String,
    /// It has the label [`SKIP`].
    pub is_skipped: bool,
    /// The value of the taint [`TAINT`].
    pub taint: Option<String>,
    /// It is cordoned.
    pub is_unschedulable: bool,
    /// By us.
    pub is_cordoned: bool,
}

impl Seen {
    /// Reads a Node; nothing if another provider's daemon runs it.
    pub fn of(node: &Node) -> Option<Self> {
        let info = node.status.as_ref()?.node_info.as_ref()?;
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
        Some(Self {
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            version: info.container_runtime_version.strip_prefix(RUNTIME)?.to_owned(),
            is_skipped: node.labels().contains_key(SKIP),
            taint: taints
                .into_iter()
                .find(|taint| taint.key == TAINT)
                .map(|taint| taint.value.clone().unwrap_or_default()),
            is_unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or_default(),
            is_cordoned: node.annotations().contains_key(CORDONED),
        })
    }
}

/// Whether and how nodes are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By nobody: there is no switch, or it is being deleted.
    Free,
    /// They take no pods.
    Disabled,
    /// They take pods once they have passed.
    Enabled {
        /// Emulated hosts pass, too.
        use_emulation: bool,
        /// What hosts have to make scratch disks as.
        image_format: ImageFormat,
    },
}

impl Mode {
    /// What the switch says, if there is one.
    pub fn of(runtime: Option<&KvmletRuntime>) -> Self {
        match runtime {
            Some(runtime) if runtime.metadata.deletion_timestamp.is_none() => match &runtime.spec {
                spec if spec.enabled => Self::Enabled {
                    use_emulation: spec.use_emulation,
                    image_format: spec.image_format,
                },
                _ => Self::Disabled,
            },
            _ => Self::Free,
        }
    }
}

/// Why a node gets no pods; the value of the taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its newest check has not been answered yet.
    Checking,
    /// It has not passed.
    Failed,
    /// It has the label [`SKIP`].
    Skipped,
}

impl Why {
    /// The taint's value.
    pub fn value(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Failed => "failed",
            Self::Skipped => "skip-schedule",
        }
    }
}

/// How a node should be, and what is to be asked of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// The taint that it should have.
    pub taint: Option<Why>,
    /// Whether it should be cordoned by us; nothing where that is as it should be.
    pub cordon: Option<bool>,
    /// Its pods have to leave.
    pub drain: bool,
    /// A check to ask for.
    pub ask: Option<CheckSpec>,
    /// Names of checks that nobody needs any more.
    pub forget: Vec<String>,
}

impl Due {
    /// Whether the node has to be changed to be so.
    pub fn is_change(&self, node: &Seen) -> bool {
        self.cordon.is_some() || self.taint.map(Why::value) != node.taint.as_deref()
    }
}

/// What is due on a node, of which there are these checks.
pub fn due(mode: Mode, node: &Seen, checks: &[&PreflightCheck]) -> Due {
    let uncordon = node.is_cordoned.then_some(false);
    let Mode::Enabled {
        use_emulation,
        image_format,
    } = mode
    else {
        // Whoever is enabled again is checked again.
        let of_ours = checks.iter().filter(|check| check.spec.reason.is_some());
        let is_off = mode == Mode::Disabled;
        let cordon = (is_off && !node.is_unschedulable).then_some(true);
        return Due {
            cordon: if is_off { cordon } else { uncordon },
            drain: is_off,
            forget: of_ours.map(|check| check.name_any()).collect(),
            ..Due::default()
        };
    };
    let reason = if node.is_skipped {
        None
    } else {
        reason((use_emulation, image_format), node, checks)
    };
    let ask = reason.map(|reason| CheckSpec {
        node_name: node.name.clone(),
        use_emulation: Some(use_emulation),
        image_format: Some(image_format),
        reason: Some(reason),
        version: Some(node.version.clone()),
    });
    Due {
        taint: match &ask {
            _ if node.is_skipped => Some(Why::Skipped),
            Some(_) => Some(Why::Checking),
            None => verdict(checks),
        },
        cordon: uncordon,
        drain: false,
        ask,
        forget: outdated(checks),
    }
}

/// Why a check has to be asked for, if it has.
fn reason(features: (bool, ImageFormat), node: &Seen, checks: &[&PreflightCheck]) -> Option<Reason> {
    let Some(last) = last_of_ours(checks) else {
        return Some(Reason::Enabled);
    };
    let is_open = newest(checks).iter().any(|check| !check.is_answered());
    if last.spec.use_emulation.zip(last.spec.image_format) != Some(features) {
        Some(Reason::FeaturesChanged)
    } else if last.spec.version.as_deref() != Some(&node.version) {
        Some(Reason::Upgraded)
    } else if node.taint.as_deref() == Some(Why::Skipped.value()) && !is_open {
        Some(Reason::Unskipped)
    } else {
        None
    }
}

fn last_of_ours<'a>(checks: &[&'a PreflightCheck]) -> Option<&'a PreflightCheck> {
    let of_ours = checks.iter().copied().filter(|check| check.spec.reason.is_some());
    of_ours.max_by_key(|check| (check.creation_timestamp(), check.name_any()))
}

/// What the newest check says, as a taint. Of several of one second each has to have passed.
fn verdict(checks: &[&PreflightCheck]) -> Option<Why> {
    let newest = newest(checks);
    if newest.iter().any(|check| !check.is_answered()) {
        Some(Why::Checking)
    } else if newest.iter().any(|check| !check.has_passed()) {
        Some(Why::Failed)
    } else {
        None
    }
}

/// Whether a check of a node that there is not has been there long enough: by then a node that is about to come has come.
pub fn is_orphaned(check: &PreflightCheck, now: Timestamp) -> bool {
    let made = check.creation_timestamp();
    made.is_some_and(|made| now.duration_since(made.0).as_secs() >= ORPHANED)
}

/// Those that were answered long ago. The last of ours stays: it says what was asked for.
fn outdated(checks: &[&PreflightCheck]) -> Vec<String> {
    let last = last_of_ours(checks).map(|check| check.name_any());
    let mut answered: Vec<_> = checks.iter().filter(|check| check.is_answered()).collect();
    answered.sort_by_key(|check| std::cmp::Reverse(check.creation_timestamp()));
    let names = answered.into_iter().skip(KEPT).map(|check| check.name_any());
    names.filter(|name| Some(name) != last.as_ref()).collect()
}

#[cfg(test)]
#[path = "decide_tests.rs"]
pub(crate) mod tests;
