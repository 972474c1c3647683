//! `kvmlet preflight` on a host where all is well, and on the same one with something taken away. What is taken is taken in a mount namespace of the
//! command's own: the daemon and other tests do not miss it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use crate::{Cluster, Host, agent::CommandOutput, node};

pub(super) const TESTS: &[Test] = &[Test {
    name: "preflight boots a canary on a good host, and says what is missing on others and what to do about it",
    hosts: 1,
    kvmlet: true,
    run: preflight,
}];

/// For all checks, a canary among them, on a busy emulated host.
const PATIENCE: Duration = Duration::from_secs(180);
/// What a canary has for its time.
const LEFT: &str = "ls -d /var/lib/kvmlet/canary /sys/fs/cgroup/kvmlet.slice/canary 2>/dev/null; true";
/// A place where devices can be made.
const PLACE: &str = "mount -t tmpfs";

/// Something that a host lacks.
struct Lack {
    what: &'static str,
    /// Shell that takes it away.
    taken: String,
    /// Exactly these checks fail.
    checks: &'static [&'static str],
    /// What they say.
    words: &'static [&'static str],
}

fn preflight(cluster: &Cluster) -> Result<()> {
    let host = cluster.host(0)?;
    good(host)?;
    let kvm =
        |options: &str| format!("{PLACE} {options} none /mnt && mknod -m 0600 /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm &&");
    let lacks = [
        Lack {
            what: "rights, to somebody who is not root",
            // Whether others may open the host's own taps differs between hosts.
            taken: format!(
                "{} mknod -m 0666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && exec setpriv --reuid 65534 --regid 65534 --clear-groups",
                kvm("-o dev")
            ),
            checks: &["privileges", "kvm-permissions", "kvm-capabilities", "canary"],
            words: &[
                "user 65534 lacks",
                "CAP_SYS_ADMIN",
                "sudo kvmlet preflight",
                "0600",
                "run it as root",
            ],
        },
        Lack {
            what: "a right to /dev/kvm",
            taken: kvm("-o nodev"),
            checks: &["kvm-permissions", "kvm-capabilities", "canary"],
            words: &["open /dev/kvm: Permission denied", "0600", "user 0", "chmod 0660 /dev/kvm", "nodev"],
        },
        Lack {
            what: "all devices",
            taken: format!("{PLACE} none /dev &&"),
            checks: &["kvm-device", "kvm-permissions", "kvm-capabilities", "tun", "canary"],
            words: &["there is no /dev/kvm", "modprobe kvm_"],
        },
        Lack {
            what: "CNI plugins",
            taken: format!("for dir in /usr/lib/cni /opt/cni/bin; do [ ! -d $dir ] || {PLACE} none $dir; done &&"),
            checks: &["cni-plugins"],
            words: &[
                "bridge, host-local, portmap",
                "/usr/lib/cni, /opt/cni/bin",
                "containernetworking-plugins",
            ],
        },
        Lack {
            what: "open files",
            taken: "ulimit -n 256 &&".into(),
            checks: &["open-files"],
            words: &["RLIMIT_NOFILE is 256", "LimitNOFILE="],
        },
        Lack {
            what: "cgroup v2",
            taken: format!("{PLACE} none /sys/fs/cgroup &&"),
            checks: &["cgroups"],
            words: &["not cgroup v2", "systemd.unified_cgroup_hierarchy=1"],
        },
    ];
    for lack in lacks {
        lacking(host, &lack).with_context(|| format!("a host that lacks {}", lack.what))?;
    }
    let left = host.sh(LEFT)?;
    ensure!(left.is_empty(), "canaries leave {left}");
    Ok(())
}

/// Runs it in a mount namespace of its own.
fn run(host: &Host, before: &str, output: &str) -> Result<CommandOutput> {
    let script = format!(
        "{before} {} preflight --config /etc/kvmlet/config.yaml --output {output}",
        node::PROGRAM
    );
    host.run_with(&["unshare", "-m", "sh", "-c", &script], b"", PATIENCE)
}

/// Names and messages of the checks that are, or are not, passed.
fn checks(output: &CommandOutput, passed: bool) -> Result<Vec<(String, String)>> {
    let told: Value = serde_json::from_str(&output.text()).with_context(|| format!("{}{}", output.text(), output.error_text()))?;
    let all = told["checks"].as_array().context("there are no checks")?;
    ensure!(told["passed"] == all.iter().all(|check| check["passed"] == true), "{told}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = all.iter().filter(|check| check["passed"] == passed);
    Ok(found.map(|check| (text(&check["name"]), text(&check["message"]))).collect())
}

fn good(host: &Host) -> Result<()> {
    let output = run(host, "", "json")?;
    let failed = checks(&output, false)?;
    ensure!(output.code == 0 && failed.is_empty(), "it exited with {}: {failed:?}", output.code);
    let passed = checks(&output, true)?;
    let canary = passed.iter().find(|(name, _)| name == "canary").context("there was no canary")?;
    ensure!(canary.1.contains("its agent answered after"), "{canary:?}");
    let disk = |passed: &[(String, String)]| passed.iter().find(|(name, _)| name == "scratch-disk").map(|(_, said)| said.clone());
    let raw = disk(&passed).context("no disk was made")?;
    let output = run(host, "", "json --image-format qcow2")?;
    let image = disk(&checks(&output, true)?).context("no image was made")?;
    ensure!(
        output.code == 0 && raw.contains("format raw") && image.contains("format qcow2"),
        "{raw}; {image}: {}",
        output.text()
    );
    // A person reads the same, here of a host without taps.
    let output = run(host, &format!("{PLACE} none /dev/net &&"), "table")?;
    let text = output.text();
    let last = format!("1 of {} checks have not passed.", passed.len());
    ensure!(output.code == 1 && text.trim_end().ends_with(&last), "{}: {text}", output.code);
    for (name, passed, words) in [
        (
            "tun",
            "NO",
            "there is no /dev/net/tun, and pods would have no network: `modprobe tun`",
        ),
        ("canary", "yes", "its agent answered after"),
    ] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.with_context(|| format!("no line is of {name}: {text}"))?;
        ensure!(line.split_whitespace().nth(1) == Some(passed) && line.contains(words), "{line}");
    }
    Ok(())
}

fn lacking(host: &Host, lack: &Lack) -> Result<()> {
    let output = run(host, &lack.taken, "json")?;
    let failed = checks(&output, false)?;
    let names: Vec<_> = failed.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        names == lack.checks && output.code == 1,
        "it exited with {}: {failed:?}",
        output.code
    );
    let said = failed.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("\n");
    ensure!(
        lack.words.iter().all(|word| said.contains(word)),
        "it does not say {:?}: {said}",
        lack.words
    );
    Ok(())
}
