//! `kvmlet install`: what the DaemonSet's pod runs. It puts this image's programs, the configuration and the unit on the host and has the host's systemd
//! start them: in a pod, machines would end with it. With `--check` it is the pod's readiness probe, with `--remove` the opposite.
//!
//! The pod has four of the host's folders, each where the host has it, and nothing of the host's processes: what has to look at the host, or to end
//! machines there, is run by the host's systemd.

mod decide;
mod manager;
mod programs;
mod settings;
mod uninstall;
mod unit;

use std::{
    env, fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::time::sleep;
use tracing::{info, warn};

pub(crate) use self::uninstall::run as uninstall;
use self::{
    decide::{Found, Step, decide},
    manager::{Manager, State},
    programs::{BIN, PROGRAM, Programs},
    settings::CONFIG,
};
use crate::{cli::InstallArguments, ending::Signals};

/// How often the unit is looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How long a look at host and configuration may take.
const LOOK: Duration = Duration::from_secs(300);
/// The unit that looks.
const LOOKS: &str = "kvmlet-check.service";
/// The unit that takes everything away.
const REMOVES: &str = "kvmlet-uninstall.service";
/// In [`settings::FOLDER`]: a configuration that has not been looked at.
const CANDIDATE: &str = "candidate.yaml";
/// In [`BIN`]: there while the host is between two states.
const PENDING: &str = "pending";
/// Where control groups are, in a pod as on its host.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Installs, checks or removes.
pub(crate) fn run(arguments: &InstallArguments) -> anyhow::Result<ExitCode> {
    if arguments.check {
        return wait(check(arguments.remove))?;
    }
    crate::node::log_to_stderr();
    wait(async {
        let mut signals = Signals::new()?;
        let work = async {
            let manager = Manager::connect().await?;
            if arguments.remove {
                remove(&manager, arguments.force).await?;
                info!("nothing of kvmlet is left on this host, as far as it came with `kvmlet install`");
                std::future::pending().await
            } else {
                install(&manager, &arguments.settings).await?;
                watch(&manager).await
            }
        };
        tokio::select! {
            // The host's unit goes on.
            _ = signals.next() => Ok(ExitCode::SUCCESS),
            ended = work => ended,
        }
    })?
}

fn wait<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work))
}

/// The readiness probe.
async fn check(removed: bool) -> anyhow::Result<ExitCode> {
    let state = Manager::connect().await?.state().await?;
    if removed {
        return match state.is_in_our_place() {
            true => bail!("{} is still there", state.file),
            false => Ok(ExitCode::SUCCESS),
        };
    }
    let own = Programs::own()?.digest;
    let present = fs::read_link(Path::new(BIN).join(PROGRAM)).with_context(|| format!("find the host's programs in {BIN}"))?;
    match () {
        () if !state.is_ready() => bail!(state.words()),
        () if present.parent() != Some(Path::new(&own)) => bail!("the daemon is that of {}, and this image is {own}", present.display()),
        () => Ok(ExitCode::SUCCESS),
    }
}

async fn install(manager: &Manager, folder: &Path) -> anyhow::Result<()> {
    let own = Programs::own()?;
    let (bin, etc) = (Path::new(BIN), Path::new(settings::FOLDER));
    let unit = unit::text(&bin.join(&own.digest));
    let wanted = settings::read(folder, &variables()?)?;
    let changes = settings::compare(&wanted, |name| fs::read(etc.join(name)).ok(), &settings::ours(bin));
    for name in &changes.foreign {
        warn!("{}/{name} is not of `kvmlet install`: it stays as it is", settings::FOLDER);
    }
    let found = find(manager, wanted.iter().any(|one| one.name == CONFIG)).await?;
    let step = decide(&found, &unit, !changes.write.is_empty());
    match step {
        Step::Refuse(why) => bail!("this host does not fit: {}", why.join("; ")),
        Step::Nothing => {
            info!(digest = own.digest, "nothing is to be changed");
            return Ok(());
        }
        Step::Start => {
            info!(digest = own.digest, "everything is there: starting {}", unit::NAME);
            manager.enable().await?;
            return manager.start().await;
        }
        Step::Install | Step::Switch => {}
    }
    info!(digest = own.digest, "copying the programs to {BIN}");
    fs::create_dir_all(bin).with_context(|| format!("create {BIN}"))?;
    let programs = own.copy_to(bin)?;
    look(manager, &programs, &changes.write).await?;
    settings::write(&bin.join(PENDING), b"", 0o600).with_context(|| format!("write into {BIN}"))?;
    settings::claim(bin, &changes.write).with_context(|| format!("write into {BIN}"))?;
    for setting in &changes.write {
        info!("writing {}/{}", settings::FOLDER, setting.name);
        setting.write(etc, &setting.name)?;
    }
    let file = Path::new(unit::FOLDER).join(unit::NAME);
    settings::write(&file, unit.as_bytes(), 0o644).with_context(|| format!("write {}", file.display()))?;
    manager.reload().await?;
    manager.enable().await?;
    info!("starting {}; machines that run go on", unit::NAME);
    manager.restart().await?;
    programs::link(bin, &own.digest).with_context(|| format!("link the program in {BIN}"))?;
    programs::remove(&bin.join(PENDING)).with_context(|| format!("write into {BIN}"))
}

/// What a template may ask for.
fn variables() -> anyhow::Result<[(&'static str, String); 2]> {
    let variable = |name: &'static str| {
        let value = env::var(name).with_context(|| format!("the pod's environment has no {name} (downward API)"))?;
        anyhow::Ok((name, value))
    };
    Ok([variable("NODE_NAME")?, variable("HOST_IP")?])
}

async fn find(manager: &Manager, brings_config: bool) -> anyhow::Result<Found> {
    let state = manager.state().await?;
    let text = match state.is_in_our_place() {
        true => Some(fs::read_to_string(&state.file).with_context(|| format!("read {}", state.file))?),
        false => None,
    };
    let groups = rustix::fs::statfs(CONTROL_GROUPS).with_context(|| format!("look at {CONTROL_GROUPS}"))?;
    Ok(Found {
        architecture: manager.architecture().await?,
        // On a host with both kinds the folder is a tmpfs.
        has_cgroup2: groups.f_type == nix::sys::statfs::CGROUP2_SUPER_MAGIC.0,
        unit: state.unit(text),
        runs: state.runs(),
        is_pending: Path::new(BIN).join(PENDING).exists(),
        has_config: brings_config || Path::new(settings::FOLDER).join(CONFIG).exists(),
    })
}

/// Has the host looked at with the new programs and the new configuration, before anything is changed: a daemon that would not start leaves the
/// old one at work.
async fn look(manager: &Manager, programs: &Path, write: &[settings::Setting]) -> anyhow::Result<()> {
    let etc = Path::new(settings::FOLDER);
    let candidate = write.iter().find(|setting| setting.name == CONFIG);
    let config: PathBuf = etc.join(if candidate.is_some() { CANDIDATE } else { CONFIG });
    if let Some(candidate) = candidate {
        candidate.write(etc, CANDIDATE)?;
    }
    let (program, path) = (programs.join(PROGRAM).display().to_string(), config.display().to_string());
    let looked = manager
        .run(LOOKS, &[&program, "node", "--check", "--config", &path], Some(LOOK))
        .await;
    programs::remove(&etc.join(CANDIDATE)).with_context(|| format!("remove {CANDIDATE}"))?;
    looked.context("nothing was changed")
}

/// Says how the unit is, for ever; once the daemon is ready, takes away the programs of others.
async fn watch(manager: &Manager) -> anyhow::Result<ExitCode> {
    let own = Programs::own()?.digest;
    let mut said: Option<State> = None;
    let mut swept = false;
    loop {
        let state = manager.state().await?;
        if said.as_ref() != Some(&state) {
            info!("{}", state.words());
        }
        if state.is_ready() && !swept {
            let gone = programs::sweep(Path::new(BIN), &own).with_context(|| format!("remove old programs from {BIN}"))?;
            if !gone.is_empty() {
                info!("removed programs that no daemon runs any more: {}", gone.join(", "));
            }
            swept = true;
        }
        said = Some(state);
        sleep(EVERY).await;
    }
}

/// Has the host's own program take everything away. Without it there is nothing.
async fn remove(manager: &Manager, force: bool) -> anyhow::Result<()> {
    let program = Path::new(BIN).join(PROGRAM).display().to_string();
    let mut argv = vec![&*program, "uninstall"];
    if force {
        argv.push("--force");
    }
    // A drain takes the time that the configuration gives it.
    manager.run(REMOVES, &argv, None).await
}
