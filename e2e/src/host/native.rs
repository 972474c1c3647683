//! A native KVM host: this machine, seen through namespaces of its own (network, mounts, processes, name), so that two can
//! live side by side with the paths that an emulated host has. Ending its first process ends all of it. What stays on the
//! machine are the empty folders that were mounted over.

use std::{env, fs, path::Path};

use anyhow::{Context, Result};

use super::Host;
use crate::{
    netns::Netns,
    paths::{AGENT_PORT, State, repository},
    process::Process,
};

pub(super) fn start(state: &State, host: &Host, programs: &Path) -> Result<()> {
    let folder = state.host(&host.name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let network = Netns {
        name: format!("{}-{}", state.namespace, host.name),
    };
    Netns::of(state).add_native(&network, &host.name, host.address)?;
    let mut command = network.command("unshare");
    command.args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
    command
        .arg(repository().join("e2e/host/native-init"))
        .arg(&folder)
        .arg(programs)
        .arg(&host.name);
    command
        .arg(env::current_exe().context("find this program")?)
        .arg(format!("{}:{AGENT_PORT}", host.address));
    Process::spawn(state, &host.name, &mut command).map(drop)
}
