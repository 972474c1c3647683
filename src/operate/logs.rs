//! `kvmlet logs`: a container's log from this host's files, read by what answers `kubectl logs` on the node's port.

use std::{convert::Infallible, process::ExitCode, time::Duration};

use anyhow::Context as _;
use kvmlet_provider::{desired::DesiredPod, logs};
use kvmlet_server::{LogSource, logs::LogOptions};
use tokio::sync::watch;

use super::{
    Host,
    model::{Pod, all_names, runs_in},
    wait,
};
use crate::{
    cli::LogsArguments,
    print::{notice, print},
};

/// How often is looked whether the container still runs.
const AGAIN: Duration = Duration::from_millis(500);
/// The container that is meant where none is named (kubectl: pkg/cmd/util/podcmd).
const DEFAULT: &str = "kubectl.kubernetes.io/default-container";

/// Prints a log.
pub(crate) fn logs(arguments: &LogsArguments) -> anyhow::Result<ExitCode> {
    let options = LogOptions {
        follow: arguments.follow,
        previous: arguments.previous,
        timestamps: arguments.timestamps,
        tail_lines: tail(arguments.tail).map_err(anyhow::Error::msg)?,
        ..LogOptions::default()
    };
    let host = Host::open(&arguments.pod.config.path)?;
    let pod = host.find(&arguments.pod.pod)?;
    let chosen = choose(&pod.desired, arguments.container.as_deref()).map_err(anyhow::Error::msg)?;
    if let Some(words) = &chosen.notice {
        notice(words);
    }
    let number = logs::instance(&pod.desired, &pod.state, &chosen.name, options.previous)?;
    let directory = logs::pod_directory(&host.config.log_dir, &pod.desired).join(&chosen.name);
    wait(async {
        let (sender, running) = watch::channel(true);
        let source = LogSource {
            directory: directory.clone(),
            restart_count: number,
            running,
        };
        let reading = || format!("read {}", directory.display());
        let mut body = kvmlet_server::logs::open(source, options).await.with_context(reading)?;
        let printing = async {
            while let Some(piece) = body.recv().await {
                if !print(&piece.with_context(reading)?)? {
                    break;
                }
            }
            anyhow::Ok(())
        };
        let watching = async {
            // What is not followed ends with what is written now.
            while arguments.follow && is_written(&host, &pod, &chosen.name, number).await {
                tokio::time::sleep(AGAIN).await;
            }
            sender.send_replace(false);
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            printed = printing => printed,
            never = watching => match never {},
        }
    })??;
    Ok(ExitCode::SUCCESS)
}

/// Lines from the end; none for all.
fn tail(lines: i64) -> Result<Option<u64>, String> {
    match lines {
        -1 => Ok(None),
        // kubectl's words.
        _ => u64::try_from(lines)
            .map(Some)
            .map_err(|_| "--tail must be greater than or equal to -1".into()),
    }
}

/// Which container's log is shown.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    name: String,
    /// What is said of the choice.
    notice: Option<String>,
}

/// As kubectl chooses: who is named, else who the pod's annotation names, else the first.
fn choose(pod: &DesiredPod, wanted: Option<&str>) -> Result<Chosen, String> {
    let all = || pod.containers.iter().chain(&pod.ephemeral);
    let has = |name: &str| all().any(|one| one.name == name);
    let annotations = pod.pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get(DEFAULT)).filter(|name| has(name));
    let first = || pod.containers.iter().find(|one| !one.init).map(|one| one.name.clone());
    let name = match wanted {
        Some(name) if has(name) => name.to_owned(),
        Some(name) => {
            let full = format!("{}/{}", pod.namespace, pod.name);
            return Err(format!("container {name} is not valid for pod {full}: it has {}", all_names(pod)));
        }
        None => match annotated {
            Some(name) => name.clone(),
            None => first().ok_or("the pod has no container")?,
        },
    };
    let defaulted = wanted.is_none() && annotated.is_none() && all().count() > 1;
    let notice = defaulted.then(|| format!("Defaulted container {name:?} out of: {}", all_names(pod)));
    Ok(Chosen { name, notice })
}

/// Whether that instance of a container may still write: as its record says, and, while no daemon keeps that, as its guest does.
async fn is_written(host: &Host, pod: &Pod, container: &str, number: u32) -> bool {
    let uid = &pod.desired.uid;
    let Ok(record) = host.store.read(uid) else { return false };
    if !logs::is_written(&record.state, container, number) || !host.is_alive(uid) {
        return false;
    }
    if host.daemon().is_some() {
        return true;
    }
    let id = record.state.by_name(container).and_then(|own| own.slot.id());
    match host.guest(uid).await {
        Some(all) => id.is_some_and(|id| runs_in(&all, id)),
        // A guest that is slow has not ended.
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn read(containers: Value, annotations: Value) -> DesiredPod {
        let pod =
            json!({"metadata": {"namespace": "default", "name": "p", "annotations": annotations}, "spec": {"containers": containers}});
        DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0
    }

    fn two() -> Value {
        json!([{"name": "a", "image": "x"}, {"name": "b", "image": "x"}])
    }

    #[test]
    fn the_only_container_is_meant_without_a_word() {
        let chosen = choose(&read(json!([{"name": "a", "image": "x"}]), json!({})), None).unwrap();
        assert_eq!((chosen.name.as_str(), chosen.notice), ("a", None));
    }

    #[test]
    fn of_several_the_first_is_shown_and_that_is_said_unless_the_pod_names_one() {
        let chosen = choose(&read(two(), json!({})), None).unwrap();
        assert_eq!(chosen.name, "a");
        assert_eq!(chosen.notice.as_deref(), Some("Defaulted container \"a\" out of: a, b"));
        let annotated = choose(&read(two(), json!({DEFAULT: "b"})), None).unwrap();
        assert_eq!((annotated.name.as_str(), annotated.notice), ("b", None));
        let named = choose(&read(two(), json!({DEFAULT: "b"})), Some("a")).unwrap();
        assert_eq!((named.name.as_str(), named.notice), ("a", None));
    }

    #[test]
    fn a_container_that_is_not_there_is_answered_with_those_that_are() {
        let said = choose(&read(two(), json!({})), Some("c")).unwrap_err();
        assert_eq!(said, "container c is not valid for pod default/p: it has a, b");
    }

    #[test]
    fn lines_from_the_end_are_counted_as_kubectl_counts_them() {
        assert_eq!((tail(-1), tail(0), tail(7)), (Ok(None), Ok(Some(0)), Ok(Some(7))));
        assert!(tail(-2).unwrap_err().contains("greater than or equal to -1"));
    }
}
