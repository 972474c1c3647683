//! Containers' log files: opened and rotated here, written by the machine process, which gets each file open with a budget of bytes.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvmlet_server::LogError;
use tracing::warn;

use crate::{
    act::log_directory,
    context::Context,
    desired::DesiredPod,
    image_volumes,
    machine::Running,
    state::{ContainerState, PodState, Slot},
};

/// Where a pod's logs are, each container's in a directory of its own: `<logDir>/<namespace>_<name>_<uid>`.
pub fn pod_directory(log_dir: &Path, pod: &DesiredPod) -> PathBuf {
    log_dir.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
}

/// Number of the instance of a container whose log is asked for: the present one's, or that of the one before it.
///
/// # Errors
/// When there is none, in the words that `kubectl logs` prints.
pub fn instance(desired: &DesiredPod, state: &PodState, container: &str, previous: bool) -> Result<u32, LogError> {
    let pod = || desired.name.clone();
    let name = || container.to_owned();
    let Some(own) = state.by_name(container) else {
        return Err(LogError::UnknownContainer {
            container: name(),
            pod: pod(),
        });
    };
    let number = present(own);
    if previous {
        return number.and_then(|n| n.checked_sub(1)).ok_or_else(|| LogError::NoPrevious {
            container: name(),
            pod: pod(),
        });
    }
    number.ok_or_else(|| LogError::Waiting {
        container: name(),
        pod: pod(),
        reason: waits_for(desired, state, own),
    })
}

/// `None` before the first.
fn present(own: &ContainerState) -> Option<u32> {
    match &own.slot {
        Slot::Running { .. } | Slot::Ended(_) | Slot::Starting { .. } => Some(own.restarts),
        Slot::Waiting { .. } => own.last.as_ref().and(own.restarts.checked_sub(1)),
    }
}

fn waits_for(desired: &DesiredPod, state: &PodState, own: &ContainerState) -> String {
    let wished = desired.containers.iter().find(|one| one.name == own.name);
    let volume = wished.and_then(|one| image_volumes::missing(desired, state, one));
    match (&own.slot, own.image.failure().or(volume)) {
        (Slot::Waiting { reason: Some(reason), .. }, _) => reason.clone(),
        (_, Some((reason, _))) => reason.to_owned(),
        _ => "ContainerCreating".into(),
    }
}

/// Whether that instance of a container may still write to its log.
pub fn is_written(state: &PodState, container: &str, instance: u32) -> bool {
    state
        .by_name(container)
        .is_some_and(|own| own.restarts == instance && own.slot.is_alive())
}

/// Opens the log of a container's new instance and hands it to the machine.
pub async fn open(
    context: &Arc<Context>,
    desired: &DesiredPod,
    running: &Running,
    container: &str,
    id: &str,
    restarts: u32,
) -> Result<(), String> {
    let dir = log_directory(context, desired, container);
    let file = create(&dir, restarts).map_err(|e| format!("{}: {e}", dir.display()))?;
    remove_old_instances(&dir, restarts);
    running
        .logs
        .lock()
        .expect("no holder panics")
        .insert(id.to_owned(), (dir, restarts));
    running.log_file(id, file, context.config.logs.max_size.value()).await
}

/// Rotates whenever a budget is spent, until the machine is gone.
pub async fn keep_rotating(context: &Arc<Context>, desired: &DesiredPod, running: &Running) {
    let mut spent = running.spent_budgets();
    while let Some(container) = spent.recv().await {
        let known = running.logs.lock().expect("no holder panics").get(&container).cloned();
        let Some((dir, number)) = known else { continue };
        let handed = match rotate(&dir, number, context.config.logs.max_files) {
            Ok(file) => running.log_file(&container, file, context.config.logs.max_size.value()).await,
            Err(error) => Err(error.to_string()),
        };
        match handed {
            Ok(()) => context.clear_trouble("logs"),
            Err(error) => {
                warn!(error, name = desired.name, dir = %dir.display(), "rotate a log; its container waits");
                context.trouble("logs", format!("logs cannot be rotated: {error}"));
            }
        }
    }
}

fn create(dir: &Path, number: u32) -> io::Result<File> {
    fs::create_dir_all(dir)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(dir.join(format!("{number}.log")))
}

/// `<n>.log` becomes `<n>.log.<time>`; of these the newest are kept so that there are `most` files in all.
fn rotate(dir: &Path, number: u32, most: usize) -> io::Result<File> {
    let stamp = jiff::Zoned::now()
        .with_time_zone(jiff::tz::TimeZone::UTC)
        .strftime("%Y%m%d-%H%M%S%.9f")
        .to_string()
        .replace('.', "");
    match fs::rename(dir.join(format!("{number}.log")), dir.join(format!("{number}.log.{stamp}"))) {
        // A daemon that died between this and the next step has done it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => done?,
    }
    let file = create(dir, number)?;
    let mut rotated = parts(dir, &format!("{number}.log."))?;
    rotated.sort();
    for old in rotated.iter().take((rotated.len() + 1).saturating_sub(most)) {
        fs::remove_file(old)?;
    }
    Ok(file)
}

/// Only the present and the previous instance keep their logs, as with the kubelet's one dead container.
fn remove_old_instances(dir: &Path, restarts: u32) {
    let Some(oldest) = restarts.checked_sub(1) else { return };
    for path in parts(dir, "").unwrap_or_default() {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let number = name.split('.').next().and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|n| n < oldest)
            && let Err(error) = fs::remove_file(&path)
        {
            warn!(%error, path = %path.display(), "remove an old log");
        }
    }
}

fn parts(dir: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?;
    Ok(entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn rotation_keeps_the_newest_files_and_an_open_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = create(dir.path(), 0).unwrap();
        for round in 0..5 {
            writeln!(file, "{round}").unwrap();
            file = rotate(dir.path(), 0, 3).unwrap();
        }
        let mut names = parts(dir.path(), "0.log").unwrap();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        let texts: Vec<String> = names.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
        assert_eq!(texts, ["", "3\n", "4\n"]);
    }

    #[test]
    fn a_third_instance_takes_the_first_ones_log_away() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..3 {
            create(dir.path(), number).unwrap();
        }
        remove_old_instances(dir.path(), 2);
        assert!(!dir.path().join("0.log").exists() && dir.path().join("1.log").exists());
    }
}
