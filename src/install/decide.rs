//! What is to be done to a host, given what it has. Pure.

/// systemd's word for the architecture of the programs (Manager.Architecture, org.freedesktop.systemd1(5)).
const ARCHITECTURE: &str = "x86-64";

/// Whose `kvmlet.service` is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    /// There is none.
    None,
    /// There is to be none: somebody has masked it, as a package does that was removed and not purged.
    Masked,
    /// A file that this command has not written.
    Foreign(String),
    /// A file of this command, with this text.
    Ours(String),
}

/// What the host has.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// In systemd's words.
    pub(super) architecture: String,
    /// Whether control groups are those of cgroup v2 alone.
    pub(super) has_cgroup2: bool,
    pub(super) unit: Unit,
    /// Whether the unit runs, is about to, or is between two attempts.
    pub(super) runs: bool,
    /// Whether somebody has begun to change the host and has not come to the end.
    pub(super) is_pending: bool,
    /// Whether there is a configuration, or will be.
    pub(super) has_config: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: this host does not fit, for these reasons, each with what to do.
    Refuse(Vec<String>),
    /// Everything is to be put there, and the unit started.
    Install,
    /// What has changed is to be put there, and the daemon started anew; pods go on.
    Switch,
    /// Everything is there, and the unit is to be started.
    Start,
    /// All is as it shall be.
    Nothing,
}

/// Decides. `unit` is the text that the unit shall have; `changed`: whether files of the configuration are to be written.
pub(super) fn decide(found: &Found, unit: &str, changed: bool) -> Step {
    let against = refusals(found);
    if !against.is_empty() {
        return Step::Refuse(against);
    }
    match &found.unit {
        Unit::Ours(text) if text == unit && !changed && !found.is_pending => match found.runs {
            true => Step::Nothing,
            false => Step::Start,
        },
        Unit::Ours(_) => Step::Switch,
        _ => Step::Install,
    }
}

fn refusals(found: &Found) -> Vec<String> {
    let mut against = Vec::new();
    if found.architecture != ARCHITECTURE {
        against.push(format!(
            "it is {}, and the programs are {ARCHITECTURE}: select hosts by kubernetes.io/arch",
            found.architecture
        ));
    }
    if !found.has_cgroup2 {
        against.push("it has cgroup v1: boot it with systemd.unified_cgroup_hierarchy=1, and nothing of cgroup_disable=".into());
    }
    match &found.unit {
        Unit::Masked => against.push(
            "kvmlet.service is masked: `apt purge kvmlet` where the package was only removed, `systemctl unmask kvmlet` where somebody has \
             switched it off"
                .into(),
        ),
        Unit::Foreign(path) if path.starts_with("/lib/") || path.starts_with("/usr/lib/") => against.push(format!(
            "kvmlet.service is {path}: the package is installed. Keep it, and take the Node out of this DaemonSet's selector; or `apt purge kvmlet`"
        )),
        Unit::Foreign(path) => against.push(format!(
            "kvmlet.service is {path}, which is not of this command: whoever has written it has to take it away"
        )),
        Unit::None | Unit::Ours(_) => {}
    }
    if !found.has_config {
        against.push("it has no configuration: put config.yaml into the ConfigMap, or /etc/kvmlet/config.yaml on the host".into());
    }
    against
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Found {
        Found {
            architecture: "x86-64".into(),
            has_cgroup2: true,
            unit: Unit::None,
            runs: false,
            is_pending: false,
            has_config: true,
        }
    }

    fn installed(text: &str) -> Found {
        Found {
            unit: Unit::Ours(text.into()),
            runs: true,
            ..fresh()
        }
    }

    fn refused(found: &Found) -> String {
        match decide(found, "unit", false) {
            Step::Refuse(words) => words.join("\n"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_fresh_host_gets_everything() {
        assert_eq!(decide(&fresh(), "unit", true), Step::Install);
    }

    #[test]
    fn the_same_again_changes_and_restarts_nothing() {
        assert_eq!(decide(&installed("unit"), "unit", false), Step::Nothing);
    }

    #[test]
    fn a_unit_that_is_as_it_shall_be_and_does_not_run_is_started() {
        let stopped = Found {
            runs: false,
            ..installed("unit")
        };
        assert_eq!(decide(&stopped, "unit", false), Step::Start);
    }

    #[test]
    fn other_programs_another_configuration_and_a_change_that_was_broken_off_start_the_daemon_anew() {
        assert_eq!(decide(&installed("old"), "unit", false), Step::Switch);
        assert_eq!(decide(&installed("unit"), "unit", true), Step::Switch);
        let broken_off = Found {
            is_pending: true,
            ..installed("unit")
        };
        assert_eq!(decide(&broken_off, "unit", false), Step::Switch);
    }

    #[test]
    fn a_host_with_the_package_is_left_alone_and_told_so() {
        for path in ["/lib/systemd/system/kvmlet.service", "/usr/lib/systemd/system/kvmlet.service"] {
            let found = Found {
                unit: Unit::Foreign(path.into()),
                runs: true,
                ..fresh()
            };
            let words = refused(&found);
            assert!(words.contains(path) && words.contains("apt purge kvmlet"), "{words}");
        }
        let masked = Found {
            unit: Unit::Masked,
            ..fresh()
        };
        assert!(refused(&masked).contains("only removed"), "{}", refused(&masked));
    }

    #[test]
    fn a_unit_that_somebody_else_wrote_is_left_alone() {
        let found = Found {
            unit: Unit::Foreign("/etc/systemd/system/kvmlet.service".into()),
            ..fresh()
        };
        let words = refused(&found);
        assert!(words.contains("not of this command") && !words.contains("apt"), "{words}");
    }

    #[test]
    fn all_that_does_not_fit_is_said_at_once() {
        let found = Found {
            architecture: "arm64".into(),
            has_cgroup2: false,
            has_config: false,
            ..fresh()
        };
        let words = refused(&found);
        for part in ["it is arm64", "cgroup v1", "no configuration"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }
}
