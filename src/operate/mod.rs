//! What the host's operator sees of its machines, with the API server or without it, with the daemon or without it: `kvmlet ps`, `top`, `inspect`,
//! `console`, `logs`.
//!
//! ```text
//!  <stateDir>/pods: records ─┐
//!  /proc, control groups ────┼─▶ look ─▶ Pod (model) ─▶ ps, inspect, top: each a pure function
//!  taps, start.json ─────────┤
//!  guests, while no daemon ──┘
//! ```
//!
//! All of it is read, nothing is changed, and the daemon is not asked: it has written down what it knows. While it is away, guests say which of their
//! containers still run.

mod console;
mod find;
mod inspect;
mod logs;
mod look;
mod model;
mod ps;
mod text;
mod top;

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use kvmlet_provider::{config::Config, store::Store};

pub(crate) use self::{console::console, inspect::inspect, logs::logs, ps::ps, top::top};

/// This host, as its node's configuration says where all is.
struct Host {
    config: Config,
    /// Where that was read.
    path: PathBuf,
    store: Store,
}

impl Host {
    fn open(path: &Path) -> anyhow::Result<Self> {
        privileged(rustix::process::geteuid().is_root())?;
        Self::of(path)
    }

    fn of(path: &Path) -> anyhow::Result<Self> {
        let config = Config::load(path).context("nothing says where this host's node keeps its state (--config names another file)")?;
        let store = Store::look(&config.state_dir).with_context(|| {
            let (state, path) = (config.state_dir.display(), path.display());
            format!("no node keeps its state in {state} (stateDir of {path})")
        })?;
        Ok(Self {
            config,
            path: path.to_owned(),
            store,
        })
    }

    /// The daemon's process, if it runs: it has the store of images open.
    fn daemon(&self) -> Option<u32> {
        kvmlet_image::holder(&self.config.state_dir.join("images"))
    }
}

fn privileged(is_root: bool) -> anyhow::Result<()> {
    ensure!(is_root, "only root may look at this host's machines: run it with sudo");
    Ok(())
}

/// For what asks guests, and waits for signals.
fn wait<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_is_told_so() {
        assert!(privileged(true).is_ok());
        assert!(privileged(false).unwrap_err().to_string().contains("sudo"));
    }

    #[test]
    fn a_host_without_configuration_or_state_is_told_so_by_the_path_that_is_missing() {
        let said = |path: &Path| Host::of(path).map(drop).map_err(|error| format!("{error:#}")).unwrap_err();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let none = said(&path);
        assert!(none.contains("config.yaml: No such file") && none.contains("--config"), "{none}");
        let state = dir.path().join("state");
        let text = format!(
            "{{apiVersion: kvmlet.io/v1alpha1, kind: KvmletConfiguration, nodeName: n, nodeIP: 192.0.2.1, kubeconfig: /none, stateDir: {}, \
             tls: {{certFile: /none, keyFile: /none, clientCAFile: /none}}}}",
            state.display()
        );
        std::fs::write(&path, text).unwrap();
        let none = said(&path);
        assert!(
            none.contains(&format!("in {} (stateDir of", state.display())) && none.contains("No such file"),
            "{none}"
        );
        std::fs::create_dir_all(state.join("pods")).unwrap();
        assert_eq!(Host::of(&path).unwrap().daemon(), None);
        std::fs::remove_dir(state.join("pods")).unwrap();
        std::fs::write(state.join("pods"), "").unwrap();
        assert!(said(&path).contains("Not a directory"), "{}", said(&path));
    }
}
