//! The real registries: a public one, which stands for every public name as their mirror, and one that asks for a password.
//! What is in them is made by `e2e/images`.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    command,
    netns::Netns,
    paths::{GATEWAY, REGISTRY_PORT, State, repository},
    process::Process,
    wait_for,
};

/// The public registry's process.
pub const PUBLIC: &str = "registry-public";
/// The private registry's process.
pub const PRIVATE: &str = "registry-private";

/// Where the public registry listens.
pub fn public() -> String {
    format!("{GATEWAY}:{REGISTRY_PORT}")
}

/// Where the private registry listens.
pub fn private() -> String {
    format!("{GATEWAY}:{}", REGISTRY_PORT + 1)
}

/// Starts both.
pub fn start(state: &State, images: &Path) -> Result<()> {
    ensure!(images.join("public").exists(), "{} holds no public images", images.display());
    start_one(state, images, PUBLIC)?;
    start_one(state, images, PRIVATE)
}

fn start_one(state: &State, images: &Path, name: &str) -> Result<()> {
    let (kind, address) = if name == PRIVATE {
        ("private", private())
    } else {
        ("public", public())
    };
    let mut command = Netns::of(state).command(repository().join("e2e/images/registry.sh"));
    Process::spawn(state, name, command.arg(images).args([kind, &address])).map(drop)
}

/// Waits until the public one answers.
pub fn wait_until_ready(state: &State) -> Result<()> {
    let answers = || {
        command::run(
            Netns::of(state)
                .command("curl")
                .args(["-sS", "--fail", &format!("http://{}/v2/", public())]),
        )
        .map(Some)
    };
    wait_for("the registry", Duration::from_secs(30), answers).map(drop)
}
