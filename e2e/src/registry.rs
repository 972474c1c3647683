//! The real registries: a public one, which stands for every public name as their mirror, and one that asks for a password.
//! What is in them is made by `e2e/images`; the cluster has links to it in a folder of its own, to which the image of kvmlet itself is added.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    artifacts::{self, Guest},
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

/// Where the cluster's registries have their storage.
fn storage(state: &State) -> PathBuf {
    state.root.join("registry")
}

/// Starts both.
pub fn start(state: &State, images: &Path) -> Result<()> {
    ensure!(images.join("public").exists(), "{} holds no public images", images.display());
    let storage = storage(state);
    command::call("cp", [Path::new("-rs"), images, &storage])?;
    start_one(state, &storage, PUBLIC)?;
    start_one(state, &storage, PRIVATE)
}

/// Makes the image of this kvmlet program and puts it into the public registry, as `kvmlet/kvmlet` of the program's version.
pub fn add_kvmlet(state: &State, program: &Path) -> Result<()> {
    let folder = repository().join("e2e/images");
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", &folder).env("PYTHONDONTWRITEBYTECODE", "1");
    python.arg(folder.join("own/kvmlet.py")).arg(storage(state)).arg(program);
    command::run(&mut python).map(drop)
}

/// Makes the image that hosts are installed with and puts it into the public registry, under this name; answers its digest.
pub fn add_image(state: &State, made_of: (&Path, &Guest), version: &str, name: &str) -> Result<String> {
    artifacts::image(made_of, version, &storage(state), Some(name), true)
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
