//! `kvmlet uninstall`: takes from this host what `kvmlet install` brought, and what became of it, as the package's removal and purge do. Run on the host:
//! by hand, or by the DaemonSet's pod through systemd.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use kvmlet_machine::Found;
use kvmlet_provider::{config::Config, shutdown::logind, store::Store};

use super::{
    decide::Unit,
    manager::Manager,
    programs::{BIN, remove},
    settings::{self, CONFIG},
    unit, wait,
};
use crate::{cleanup, cli::UninstallArguments};

/// Uninstalls. May be run again where it was broken off.
pub(crate) fn run(arguments: &UninstallArguments) -> anyhow::Result<ExitCode> {
    // What is there without it came another way: the package, or by hand.
    if !Path::new(BIN).exists() {
        println!("there is no {BIN}: nothing on this host came with `kvmlet install`");
        return Ok(ExitCode::SUCCESS);
    }
    let path = Path::new(settings::FOLDER).join(CONFIG);
    let loaded = Config::load(&path);
    if let Err(error) = &loaded {
        println!("the defaults count: {error}");
    }
    // One that cannot be used keeps nobody from cleaning up.
    let usable = if loaded.is_ok() { &*path } else { Path::new("/nonexistent") };
    let config = loaded.unwrap_or_else(|_| Config::assumed());
    wait(stop(&config, arguments.force))??;
    cleanup::run(usable)?;
    for left in take_away(&config, Path::new(BIN), Path::new(settings::FOLDER))? {
        println!("{} is not kvmlet's alone, and stays", left.display());
    }
    let settings = Path::new(logind::SETTINGS);
    remove(settings).with_context(|| format!("remove {}", settings.display()))?;
    settings.parent().map(remove_if_empty);
    wait(forget_unit())??;
    // At last that by which it can be done again.
    remove_all(Path::new(BIN))?;
    for folder in [Path::new(BIN).parent(), Some(&config.state_dir)].into_iter().flatten() {
        remove_if_empty(folder);
    }
    println!("kvmlet is uninstalled");
    Ok(ExitCode::SUCCESS)
}

/// Has the daemon end, if no pod would lose its machine, or if that is wished.
async fn stop(config: &Config, force: bool) -> anyhow::Result<()> {
    let manager = Manager::connect().await?;
    let state = manager.state().await?;
    let text = state.is_in_our_place().then(|| fs::read_to_string(&state.file)).transpose();
    match state.unit(text.with_context(|| format!("read {}", state.file))?) {
        Unit::Masked => bail!(
            "{} is masked, as a package leaves it that was removed: nothing was removed",
            unit::NAME
        ),
        Unit::Foreign(path) => bail!("{} is {path}, which is not of `kvmlet install`: nothing was removed", unit::NAME),
        Unit::None => return refuse_with_machines(config, force),
        Unit::Ours(_) => {}
    }
    // A daemon that leaves the cluster when it is stopped drains its node first.
    if !config.drain_on_termination {
        refuse_with_machines(config, force)?;
    }
    println!("stopping {}", unit::NAME);
    manager.stop().await?;
    // One may have come meanwhile, or not have left.
    if let Err(refusal) = refuse_with_machines(config, force) {
        manager.start().await.context(refusal.to_string())?;
        return Err(refusal.context(format!("{} is started again", unit::NAME)));
    }
    Ok(())
}

fn refuse_with_machines(config: &Config, force: bool) -> anyhow::Result<()> {
    match with_machines(&config.state_dir)? {
        pods if pods.is_empty() || force => Ok(()),
        pods => bail!(
            "pods have machines on this host: {}; drain its node (kubectl drain {}), or use --force to end them",
            pods.join(", "),
            config.node_name
        ),
    }
}

/// Pods whose machines run, by namespace and name.
fn with_machines(state_dir: &Path) -> anyhow::Result<Vec<String>> {
    if !state_dir.join("pods").exists() {
        return Ok(Vec::new());
    }
    let store = Store::look(state_dir)?;
    let mut pods = Vec::new();
    for (uid, record) in store.load()? {
        if !matches!(kvmlet_machine::find(&store.machine_dir(&uid)), Ok(Found::Alive(_))) {
            continue;
        }
        pods.push(match record {
            Ok(record) => {
                let metadata = &record.pod.metadata;
                let part = |part: &Option<String>| part.clone().unwrap_or_default();
                format!("{}/{}", part(&metadata.namespace), part(&metadata.name))
            }
            Err(_) => uid,
        });
    }
    pods.sort();
    Ok(pods)
}

/// Removes pods' logs, the state and the configuration; answers what stays.
fn take_away(config: &Config, bin: &Path, etc: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (state, logs) = (&config.state_dir, &config.log_dir);
    // Only of pods that were this node's: a kubelet's may be there.
    for pod in entries(&state.join("pods"))? {
        let uid = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for log in entries(logs)? {
            if log.to_string_lossy().ends_with(&format!("_{uid}")) {
                remove_all(&log)?;
            }
        }
    }
    remove_if_empty(logs);
    logs.parent().filter(|parent| parent.ends_with("kvmlet")).map(remove_if_empty);
    for name in settings::ours(bin) {
        let file = etc.join(name);
        remove(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    remove_if_empty(etc);
    for entry in entries(state)? {
        if entry != bin {
            remove_all(&entry)?;
        }
    }
    entries(etc)
}

async fn forget_unit() -> anyhow::Result<()> {
    let manager = Manager::connect().await?;
    if manager.state().await?.is_in_our_place() {
        manager.disable().await?;
        let file = Path::new(unit::FOLDER).join(unit::NAME);
        remove(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    manager.reload().await?;
    manager.forget().await;
    Ok(())
}

/// What is in a folder; of one that is not there, nothing.
fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = || format!("list {}", folder.display());
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let paths = entries.with_context(list)?.map(|entry| Ok(entry?.path()));
            paths.collect::<io::Result<_>>().with_context(list)
        }
    }
}

fn remove_all(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// One with something in it is somebody else's, too; one that is a file system of its own stays.
fn remove_if_empty(folder: &Path) {
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(root: &Path) -> Config {
        let text = format!(
            "{{apiVersion: kvmlet.io/v1alpha1, kind: KvmletConfiguration, nodeName: n, nodeIP: 192.0.2.1, kubeconfig: /none, stateDir: {0}/state, \
             logDir: {0}/log/kvmlet/pods, tls: {{certFile: /none, keyFile: /none, clientCAFile: /none}}}}",
            root.display()
        );
        for file in [
            "state/pods/u1/state.json",
            "state/images/layer",
            "state/bin/kvmlet",
            "log/kvmlet/pods/ns_ours_u1/0.log",
            "etc/config.yaml",
        ] {
            let file = root.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let config = settings::Setting {
            name: CONFIG.into(),
            content: Vec::new(),
        };
        settings::claim(&root.join("state/bin"), &[config]).unwrap();
        Config::parse(Path::new("test"), &text).unwrap()
    }

    #[test]
    fn state_logs_and_configuration_go_and_the_program_is_left_for_another_try() {
        let root = tempfile::tempdir().unwrap();
        let config = host(root.path());
        let bin = config.state_dir.join("bin");
        for _ in 0..2 {
            assert_eq!(take_away(&config, &bin, &root.path().join("etc")).unwrap(), [] as [PathBuf; 0]);
        }
        assert_eq!(entries(&config.state_dir).unwrap(), [bin]);
        assert_eq!(entries(root.path()).unwrap().len(), 2, "{:?}", entries(root.path()));
        assert_eq!(entries(&root.path().join("log")).unwrap(), [] as [PathBuf; 0]);
    }

    #[test]
    fn logs_of_other_pods_and_files_that_somebody_else_wrote_stay_and_are_named() {
        let root = tempfile::tempdir().unwrap();
        let config = host(root.path());
        let etc = root.path().join("etc");
        let theirs = config.log_dir.join("ns_theirs_u2");
        fs::create_dir(&theirs).unwrap();
        fs::write(etc.join("routes.kubeconfig"), "").unwrap();
        let left = take_away(&config, &config.state_dir.join("bin"), &etc).unwrap();
        assert_eq!(left, [etc.join("routes.kubeconfig")]);
        assert_eq!(entries(&config.log_dir).unwrap(), [theirs]);
    }

    #[test]
    fn a_host_without_machines_has_none_to_name() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(with_machines(root.path()).unwrap(), [] as [String; 0]);
        let config = host(root.path());
        assert_eq!(with_machines(&config.state_dir).unwrap(), [] as [String; 0]);
        refuse_with_machines(&config, false).unwrap();
    }
}
