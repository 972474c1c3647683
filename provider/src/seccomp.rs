//! Profiles of system calls that the node's owner keeps as files (`seccompProfile: {type: Localhost}`): where they are, and what they say, in the
//! form that the usual runtimes read (github.com/opencontainers/runtime-spec, config-linux.md; moby's `includes` and `excludes`). What a
//! profile's names mean in numbers the guest knows.

use std::path::{Component, Path, PathBuf};

use kvmlet_protocol::{Filter, FilterAnswer, FilterCompare, FilterRule, FilterTest};
use serde::Deserialize;

/// The longest file that is read.
const MOST: u64 = 1 << 20;
/// What runs in a pod here is for this architecture, as Go names it.
const ARCHITECTURE: &str = "amd64";
const EPERM: u16 = 1;

/// A profile's file below `root`; the error is the API server's sentence (validateLocalDescendingPath), or the kubelet's.
pub fn path(root: &Path, profile: &str) -> Result<PathBuf, String> {
    if profile.is_empty() {
        return Err("localhostProfile must be set if seccompProfile type is Localhost.".into());
    }
    let own = Path::new(profile);
    if own.is_absolute() {
        return Err(format!("localhostProfile {profile:?} must be a relative path"));
    }
    if own.components().any(|part| part == Component::ParentDir) {
        return Err(format!("localhostProfile {profile:?} must not contain '..'"));
    }
    Ok(root.join(own))
}

/// Reads a profile for a process with these capabilities in a guest of this kernel release; the error is for people.
pub async fn load(path: &Path, capabilities: &[String], kernel: &str) -> Result<Filter, String> {
    let cannot = |why: String| format!("cannot load seccomp profile {:?}: {why}", path.display());
    let file = tokio::fs::metadata(path).await.map_err(|e| cannot(said(&e)))?;
    if !file.is_file() || file.len() > MOST {
        return Err(cannot(format!("it is no file of at most {MOST} bytes")));
    }
    let text = tokio::fs::read(path).await.map_err(|e| cannot(said(&e)))?;
    read(&text, capabilities, kernel).map_err(|why| format!("decoding seccomp profile failed {:?}: {why}", path.display()))
}

fn said(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".into(),
        _ => error.to_string(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    syscalls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    #[serde(default)]
    name: String,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// What a profile's text says; the error is for people.
fn read(text: &[u8], capabilities: &[String], kernel: &str) -> Result<Filter, String> {
    let profile: Profile = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let default = answer(&profile.default_action, profile.default_errno_ret)?;
    if !profile.listener_path.is_empty() {
        return Err("listenerPath: a pod's kernel has no listener of its host's".into());
    }
    let (mut log, mut speculation) = (false, false);
    for flag in profile.flags.iter().flatten() {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_LOG" => log = true,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => speculation = true,
            // The process has one thread when it takes its filter.
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            _ => return Err(format!("seccomp flag {flag:?} is not known")),
        }
    }
    let mut rules = Vec::new();
    for call in profile.syscalls.iter().flatten() {
        if applies(call, capabilities, kernel)? {
            rules.extend(of_call(call)?);
        }
    }
    Ok(Filter {
        default,
        narrow: narrow(&profile)?,
        log,
        speculation,
        rules,
    })
}

/// Whether 32-bit programs are filtered as 64-bit ones are, instead of not running at all.
fn narrow(profile: &Profile) -> Result<bool, String> {
    let named = profile.architectures.as_deref().unwrap_or_default();
    let map = profile.arch_map.as_deref().unwrap_or_default();
    if !named.is_empty() && !map.is_empty() {
        return Err(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'".into(),
        );
    }
    let own = map.iter().find(|one| one.architecture == "SCMP_ARCH_X86_64");
    let mut all = named
        .iter()
        .chain(own.and_then(|one| one.sub_architectures.as_ref()).into_iter().flatten());
    Ok(all.any(|name| name == "SCMP_ARCH_X86"))
}

/// Whether a rule is for this process.
fn applies(call: &Call, capabilities: &[String], kernel: &str) -> Result<bool, String> {
    let none = Conditions::default();
    let (without, with) = (call.excludes.as_ref().unwrap_or(&none), call.includes.as_ref().unwrap_or(&none));
    let here = |arches: &Vec<String>| arches.iter().any(|one| one == ARCHITECTURE);
    let held = |one: &String| capabilities.contains(one);
    let new = |least: &Option<String>| least.as_deref().map(|least| at_least(kernel, least)).transpose();
    let excluded =
        without.arches.as_ref().is_some_and(here) || without.caps.iter().flatten().any(held) || new(&without.min_kernel)?.unwrap_or(false);
    let included = with.arches.as_ref().is_none_or(|arches| arches.is_empty() || here(arches))
        && with.caps.iter().flatten().all(held)
        && new(&with.min_kernel)?.unwrap_or(true);
    Ok(included && !excluded)
}

/// Whether a release (`6.12.38+deb13`) is that of a version (`4.8`) or newer.
fn at_least(release: &str, version: &str) -> Result<bool, String> {
    let numbers = |text: &str| {
        let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    let least = numbers(version).ok_or_else(|| format!("minKernel {version:?} is not a version"))?;
    let own = numbers(release).ok_or_else(|| format!("the guest's kernel calls itself {release:?}"))?;
    Ok(own >= least)
}

/// One rule, or, where tests are of the same argument, one for each: any of them then does (runc's matchCall).
fn of_call(call: &Call) -> Result<Vec<FilterRule>, String> {
    let names = match (call.name.is_empty(), &call.names) {
        (false, Some(names)) if !names.is_empty() => {
            return Err("both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'".into());
        }
        (false, _) => vec![call.name.clone()],
        (true, names) => names.clone().unwrap_or_default(),
    };
    if names.iter().any(String::is_empty) {
        return Err("empty string is not a valid syscall".into());
    }
    let answer = answer(&call.action, call.errno_ret)?;
    let tests = call.args.iter().flatten().map(test).collect::<Result<Vec<_>, _>>()?;
    let rule = |tests| FilterRule {
        names: names.clone(),
        answer,
        tests,
    };
    let twice = tests
        .iter()
        .enumerate()
        .any(|(i, one)| tests[..i].iter().any(|other| other.argument == one.argument));
    Ok(if twice {
        tests.into_iter().map(|test| rule(vec![test])).collect()
    } else {
        vec![rule(tests)]
    })
}

fn test(argument: &Argument) -> Result<FilterTest, String> {
    if argument.index > 5 {
        return Err(format!("a system call has no argument {}", argument.index));
    }
    Ok(FilterTest {
        argument: argument.index,
        compare: match argument.op.as_str() {
            "SCMP_CMP_NE" => FilterCompare::NotEqual,
            "SCMP_CMP_LT" => FilterCompare::Less,
            "SCMP_CMP_LE" => FilterCompare::LessOrEqual,
            "SCMP_CMP_EQ" => FilterCompare::Equal,
            "SCMP_CMP_GE" => FilterCompare::GreaterOrEqual,
            "SCMP_CMP_GT" => FilterCompare::Greater,
            "SCMP_CMP_MASKED_EQ" => FilterCompare::MaskedEqual,
            other => return Err(format!("string {other} is not a valid operator for seccomp")),
        },
        value: argument.value,
        second: argument.value_two,
    })
}

fn answer(action: &str, number: Option<u16>) -> Result<FilterAnswer, String> {
    Ok(match action {
        "SCMP_ACT_ALLOW" => FilterAnswer::Allow,
        "SCMP_ACT_LOG" => FilterAnswer::Log,
        "SCMP_ACT_ERRNO" => FilterAnswer::Errno(number.unwrap_or(EPERM)),
        "SCMP_ACT_TRACE" => FilterAnswer::Trace(number.unwrap_or(EPERM)),
        "SCMP_ACT_TRAP" => FilterAnswer::Trap,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => FilterAnswer::KillThread,
        "SCMP_ACT_KILL_PROCESS" => FilterAnswer::KillProcess,
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY: a pod's kernel has no listener of its host's".into()),
        other => return Err(format!("string {other} is not a valid action for seccomp")),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(profile: &Value) -> Result<Filter, String> {
        read(
            profile.to_string().as_bytes(),
            &["CAP_SYS_ADMIN".into(), "CAP_CHOWN".into()],
            "6.12.38+deb13",
        )
    }

    #[test]
    fn a_profile_stays_below_its_directory() {
        let root = Path::new("/var/lib/kvmlet/seccomp");
        assert_eq!(path(root, "profiles/audit.json").unwrap(), root.join("profiles/audit.json"));
        for (profile, words) in [
            ("", "must be set"),
            ("/etc/shadow", "must be a relative path"),
            ("../pods/x", "must not contain '..'"),
            ("a/../../x", "must not contain '..'"),
        ] {
            assert!(path(root, profile).unwrap_err().contains(words), "{profile}");
        }
        assert!(path(root, "a..b").is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_or_no_profile_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.json");
        let error = load(&file, &[], "6.1").await.unwrap_err();
        assert_eq!(
            error,
            format!("cannot load seccomp profile {:?}: no such file or directory", file.display())
        );
        assert!(load(dir.path(), &[], "6.1").await.unwrap_err().contains("no file of at most"));
        std::fs::write(&file, "{}").unwrap();
        let error = load(&file, &[], "6.1").await.unwrap_err();
        assert!(
            error.starts_with("decoding seccomp profile failed") && error.contains("defaultAction"),
            "{error}"
        );
    }

    #[test]
    fn a_profile_is_read_as_the_runtimes_read_it() {
        let filter = of(
            &json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {}},
                {"name": "kill", "action": "SCMP_ACT_ERRNO"},
                {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 40, "valueTwo": 0, "op": "SCMP_CMP_NE"},
                    {"index": 1, "value": 1, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"},
                    {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}),
        )
        .unwrap();
        assert_eq!(
            (filter.default, filter.narrow, filter.log, filter.speculation),
            (FilterAnswer::Errno(38), true, true, false)
        );
        let rules: Vec<_> = filter
            .rules
            .iter()
            .map(|r| (r.names[0].as_str(), r.answer, r.tests.len()))
            .collect();
        assert_eq!(
            rules,
            [
                ("read", FilterAnswer::Allow, 0),
                ("kill", FilterAnswer::Errno(1), 0),
                ("socket", FilterAnswer::Log, 2),
                ("personality", FilterAnswer::Allow, 1),
                ("personality", FilterAnswer::Allow, 1)
            ]
        );
        assert_eq!(filter.rules[2].tests[1].compare, FilterCompare::MaskedEqual);
        let map = json!([{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}]);
        assert!(of(&json!({"defaultAction": "SCMP_ACT_KILL", "archMap": map})).unwrap().narrow);
        assert!(!of(&json!({"defaultAction": "SCMP_ACT_LOG"})).unwrap().narrow);
    }

    #[test]
    fn rules_are_for_those_whom_they_include_and_do_not_exclude() {
        let has = |conditions: Value| {
            let mut call = json!({"names": ["mount"], "action": "SCMP_ACT_ALLOW"});
            call.as_object_mut().unwrap().extend(conditions.as_object().unwrap().clone());
            !of(&json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [call]}))
                .unwrap()
                .rules
                .is_empty()
        };
        for (conditions, applies) in [
            (json!({"includes": {"caps": ["CAP_SYS_ADMIN"]}}), true),
            (json!({"includes": {"caps": ["CAP_SYS_ADMIN", "CAP_BPF"]}}), false),
            (json!({"excludes": {"caps": ["CAP_BPF", "CAP_CHOWN"]}}), false),
            (json!({"excludes": {"caps": ["CAP_BPF"]}}), true),
            (json!({"includes": {"arches": ["arm64"]}}), false),
            (json!({"includes": {"arches": ["amd64", "x32"]}}), true),
            (json!({"excludes": {"arches": ["amd64"]}}), false),
            (json!({"includes": {"minKernel": "4.8"}}), true),
            (json!({"includes": {"minKernel": "6.13"}}), false),
            (json!({"excludes": {"minKernel": "6.12"}}), false),
        ] {
            assert_eq!(has(conditions.clone()), applies, "{conditions}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused_by_its_name() {
        for (profile, words) in [
            (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
            (json!({"defaultAction": "allow"}), "string allow is not a valid action"),
            (json!({"defaultAction": "SCMP_ACT_LOG", "flags": ["X"]}), "seccomp flag \"X\""),
            (json!({"defaultAction": "SCMP_ACT_LOG", "listenerPath": "/x"}), "listenerPath"),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86"}]}),
                "use either",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_LOG"}]}),
                "'name' and 'names'",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
                "no argument 6",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 0, "op": "=="}]}]}),
                "valid operator",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}]}),
                "minKernel \"new\"",
            ),
        ] {
            let error = of(&profile).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
