//! The Debian packages the rig needs on this machine, installed by the system's own package manager. What emulated hosts
//! need is in their root disk (`e2e/host/build.sh`), not here. Parts that build something name theirs in a file `packages`
//! beside their script, one a line.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{command, paths::repository, progress};

/// The rig's own.
const NEEDED: &[&str] = &[
    // Emulated hosts and their image.
    "qemu-system-x86",
    "qemu-utils",
    "mmdebstrap",
    "cpio",
    "busybox-static",
    "e2fsprogs",
    "kmod",
    "xz-utils",
    // The cluster's network, native hosts, tests.
    "iproute2",
    "nftables",
    "iptables",
    "conntrack",
    "containernetworking-plugins",
    "procps",
    "util-linux",
    "curl",
    "iputils-ping",
    "erofs-utils",
    // What the bench measures kubectl beside.
    "openssh-client",
    // What a package depends on, in its words.
    "dpkg-dev",
    // Who is told of a host's shutdown.
    "dbus-daemon",
    "systemd",
];
/// Before it, the software emulation of several processors let one run what another had just patched: kernels that patch themselves (Linux's
/// static keys, at the first of something or after its last) panic at an `int3`.
const QEMU: (u32, u32) = (8, 1);
/// Of Debian's releases, in its package of that name.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Of the parts that build something; the guest kernel's script installs its own, as most runs find it built.
const LISTS: &[&str] = &["e2e/controlplane/packages", "e2e/images/packages"];

/// Installs what is missing; says nothing when nothing is.
pub fn ensure() -> Result<()> {
    let mut packages: BTreeSet<String> = NEEDED.iter().map(ToString::to_string).collect();
    for list in LISTS {
        let text = fs::read_to_string(repository().join(list)).with_context(|| format!("read {list}"))?;
        let words = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(str::split_ascii_whitespace);
        packages.extend(words.map(str::to_owned));
    }
    packages.retain(|package| !is_installed(package));
    if !packages.is_empty() {
        ensure_installed(&packages)?;
    }
    let version = qemu_version()?;
    if version < QEMU {
        let step = format!(
            "QEMU {}.{} lets emulated hosts panic: installing the one of Debian's backports",
            version.0, version.1
        );
        progress::step(&step, upgrade_qemu)?;
    }
    Ok(())
}

fn ensure_installed(packages: &BTreeSet<String>) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    progress::step(&format!("installing Debian packages: {}", names.join(" ")), || {
        if install(&names).is_err() {
            // The package lists may be old or absent.
            command::run(apt().args(["-q", "update"])).context("refresh the package lists")?;
            install(&names)?;
        }
        Ok(())
    })
}

/// Major and minor.
fn qemu_version() -> Result<(u32, u32)> {
    let output = command::run(Command::new("qemu-system-x86_64").arg("--version"))?;
    let text = command::text(&output.stdout);
    parse_version(&text).with_context(|| format!("no version in {text:?}"))
}

/// Of `QEMU emulator version 10.0.2 (Debian …)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, version) = text.split_once("version ")?;
    let mut numbers = version.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// From the backports of this release, beside what this machine's sources already name, and without changing those.
fn upgrade_qemu() -> Result<()> {
    let target = [
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ];
    let targets = command::text(&command::run(apt().args(target))?.stdout);
    // The release itself is the one without a suffix.
    let Some((mirror, codename)) = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, name)| !name.contains('-'))
    else {
        bail!(
            "QEMU {}.{} or newer is needed, and no Debian release is among this machine's package sources",
            QEMU.0,
            QEMU.1
        );
    };
    let own = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let sources = tempfile::NamedTempFile::with_suffix(".list").context("make a file of package sources")?;
    let text = format!("{own}\ndeb [signed-by={KEYRING}] {mirror} {codename}-backports main\n");
    fs::write(sources.path(), text).context("write package sources")?;
    let with = |arguments: &[&str]| {
        let mut command = apt();
        command.arg("-o").arg(format!("Dir::Etc::sourcelist={}", sources.path().display()));
        command::run(command.args(arguments)).map(drop)
    };
    with(&["-q", "update"])?;
    let release = format!("{codename}-backports");
    with(&[
        "-q",
        "-y",
        "--no-install-recommends",
        "-t",
        &release,
        "install",
        "qemu-system-x86",
        "qemu-utils",
    ])
}

fn is_installed(package: &str) -> bool {
    let info = Path::new("/var/lib/dpkg/info");
    info.join(format!("{package}.list")).exists() || info.join(format!("{package}:amd64.list")).exists()
}

fn install(packages: &[&str]) -> Result<()> {
    command::run(apt().args(["-q", "-y", "--no-install-recommends", "install"]).args(packages)).map(drop)
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_says_its_version() {
        assert_eq!(
            parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright"),
            Some((7, 2))
        );
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("qemu: not found"), None);
    }
}
