//! The Debian packages the rig needs on this machine, installed by the system's own package manager. What emulated hosts
//! need is in their root disk (`e2e/host/build.sh`), not here. Parts that build something name theirs in a file `packages`
//! beside their script, one a line.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result};

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
];
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
    if packages.is_empty() {
        return Ok(());
    }
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
