//! The daemon dies at random moments of all that kubectl and the cluster do to pods, also while it takes them over: nothing of it is lost, nothing
//! happens twice, nothing is left.

use std::{thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    daemon::{Identity, restart, until_ticks},
    follow::{map, set, until_exec},
    resize_pods::{resize, resources, until_resized},
    survival::{Dice, TICKS, until_gone},
    workload::{PATIENCE, Place, STAY, container, pod, pod_of, sh, with, within},
};
use crate::{Cluster, wait_for};

pub(super) const TESTS: &[Test] = &[Test {
    name: "a daemon killed at random moments of probes, resizes, debugging, crashes, jobs and deletions loses nothing, does nothing twice and leaves nothing",
    hosts: 1,
    kvmlet: true,
    run: random,
}];

/// How often the daemon is killed, at least.
const ROUNDS: u64 = 12;
/// Pods that a Job needs.
const COMPLETIONS: u64 = 6;
/// The sizes between which the pod that stays goes to and fro.
const SIZES: [[&str; 2]; 2] = [["500m", "64Mi"], ["700m", "96Mi"]];

/// What was asked for so far, and has to be so in the end.
#[derive(Default)]
struct Asked {
    /// The last content of the config map.
    generation: u64,
    /// Of [`SIZES`].
    size: usize,
    /// Ephemeral containers.
    looks: Vec<String>,
    /// Pods that run once.
    once: Vec<String>,
    /// Pods that are deleted.
    gone: Vec<String>,
}

fn random(cluster: &Cluster) -> Result<()> {
    within(cluster, "random", |place| {
        let host = cluster.host(0)?;
        place.create(&[map("words", json!({"word": "0"})), stays(), crashes(), job(&host.name)])?;
        for name in ["stays", "crashes"] {
            place.until(name, "run", |found| container(found, "main")["started"].is_boolean())?;
        }
        place.until_ready("stays")?;
        let before = Identity::of(place, "stays")?;
        let (mut asked, mut dice) = (Asked::default(), Dice(4));
        for round in 0..ROUNDS {
            asked.one_more(place, round, dice.roll(5))?;
            sleep(Duration::from_millis(dice.roll(2500)));
            host.kill_daemon()?;
            if dice.roll(2) == 0 {
                asked.one_more(place, ROUNDS + round, dice.roll(5))?;
            }
            if dice.roll(3) == 0 {
                // While it takes its pods over.
                host.start_daemon()?;
                sleep(Duration::from_millis(dice.roll(1500)));
                host.kill_daemon()?;
            }
            restart(cluster)?;
        }
        asked.is_so(place)?;
        let job = "jsonpath={.status.succeeded},{.status.failed}";
        wait_for("the Job to be complete", PATIENCE, || {
            let counts = place.kubectl(&["get", "job", "job", "-o", job])?;
            ensure!(counts == format!("{COMPLETIONS},"), "succeeded, failed: {counts}");
            Ok(Some(()))
        })?;
        wait_for("each run of a container that crashes to be counted", PATIENCE, || {
            let runs = place
                .kubectl(&["exec", "crashes", "-c", "counts", "--", "cat", "/v/runs"])?
                .lines()
                .count();
            let found = place.get("crashes")?;
            let restarts = container(&found, "main")["restartCount"].as_u64();
            ensure!(restarts == Some(runs as u64 - 1), "{runs} runs, {restarts:?} restarts");
            Ok(Some(()))
        })?;
        let after = Identity::of(place, "stays")?;
        ensure!(after == before, "{before:?} has become {after:?}");
        let ticks = || place.kubectl(&["logs", "stays", "-c", "main"]);
        let seen = until_ticks(ticks, 1)?;
        until_ticks(ticks, seen + 15).map(drop)
    })
}

impl Asked {
    /// Asks for something more, by kubectl.
    fn one_more(&mut self, place: &Place<'_>, number: u64, what: u64) -> Result<()> {
        match what {
            0 => {
                self.generation = number + 1;
                eprintln!("  {number}: writes the config map");
                set(place, "configmap", "words", &json!({"word": self.generation.to_string()}))
            }
            1 => {
                self.size = 1 - self.size;
                let [cpu, memory] = SIZES[self.size];
                eprintln!("  {number}: resizes to {cpu} and {memory}");
                resize(place, "stays", cpu, memory)
            }
            2 => {
                let name = format!("look-{number}");
                eprintln!("  {number}: adds {name}");
                let script = format!("echo {name}");
                place.kubectl(&["debug", "stays", "-q", "-c", &name, "--image=busybox", "--", "sh", "-c", &script])?;
                self.looks.push(name);
                Ok(())
            }
            3 => {
                let name = format!("once-{number}");
                eprintln!("  {number}: makes {name}");
                let once = pod(&name, sh(&format!("sleep 1; echo {name}; exit 3")));
                place.create(&[with(once, &[("/spec/restartPolicy", "Never".into())])])?;
                self.once.push(name);
                Ok(())
            }
            _ => {
                // The one before is deleted at whatever it does by now.
                if let Some(last) = self.gone.last() {
                    eprintln!("  {number}: deletes {last}");
                    place.kubectl(&["delete", "pod", last, "--wait=false", "--ignore-not-found"])?;
                }
                let name = format!("leaves-{number}");
                eprintln!("  {number}: makes {name}");
                let hook = json!({"preStop": {"exec": {"command": ["sleep", "1"]}}});
                let leaving = with(pod(&name, sh(STAY)), &[("/spec/containers/0/lifecycle", hook)]);
                place.create(&[with(leaving, &[("/spec/terminationGracePeriodSeconds", 5.into())])])?;
                self.gone.push(name);
                Ok(())
            }
        }
    }

    /// Waits until all of it is so, and looks for what is so twice.
    fn is_so(&self, place: &Place<'_>) -> Result<()> {
        if let Some(last) = self.gone.last() {
            place.kubectl(&["delete", "pod", last, "--wait=false", "--ignore-not-found"])?;
        }
        for name in &self.gone {
            until_gone(place, name)?;
        }
        until_exec(place, "stays", "cat /words/word", &self.generation.to_string())?;
        let [cpu, memory] = SIZES[self.size];
        until_resized(place, "stays", cpu, memory)?;
        for name in &self.looks {
            let what = format!("have ended {name}");
            let found = place.until("stays", &what, |found| ended(ephemeral(found, name)))?;
            ensure!(
                ephemeral(&found, name)["state"]["terminated"]["exitCode"] == 0,
                "{}",
                found["status"]
            );
            let said = place.kubectl(&["logs", "stays", "-c", name])?;
            ensure!(said.trim() == name, "{name} has written {said:?}");
        }
        for name in &self.once {
            let found = place.until_phase(name, "Failed")?;
            let main = container(&found, "main");
            ensure!(
                main["state"]["terminated"]["exitCode"] == 3 && main["restartCount"] == 0,
                "{name}: {}",
                found["status"]
            );
            let said = place.kubectl(&["logs", name])?;
            ensure!(said.trim() == name, "{name} has written {said:?}");
        }
        Ok(())
    }
}

fn ended(status: &Value) -> bool {
    status["state"]["terminated"].is_object()
}

fn ephemeral<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
    all.into_iter().find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

/// A pod that must notice nothing: probes, a sidecar, an init container, a volume that is followed.
fn stays() -> Value {
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 3, "timeoutSeconds": 5});
    let mounts = json!([{"name": "words", "mountPath": "/words"}]);
    let main = with(
        sh(TICKS),
        &[
            ("/resources", resources(SIZES[0][0], SIZES[0][1])),
            ("/readinessProbe", probe.clone()),
            ("/livenessProbe", probe),
            ("/volumeMounts", mounts),
        ],
    );
    let init = json!([
        {"name": "first", "image": "busybox", "command": ["true"]},
        {"name": "sidecar", "image": "busybox", "command": ["sh", "-c", STAY], "restartPolicy": "Always"}]);
    let volumes = json!([{"name": "words", "configMap": {"name": "words"}}]);
    with(pod("stays", main), &[("/spec/initContainers", init), ("/spec/volumes", volumes)])
}

/// A container that fails again and again, and one that stays and sees how often.
fn crashes() -> Value {
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let main = with(sh("echo run >> /v/runs; sleep 1; exit 1"), &[("/volumeMounts", mounts.clone())]);
    let counts = with(sh(STAY), &[("/name", "counts".into()), ("/volumeMounts", mounts)]);
    with(
        pod_of("crashes", json!([main, counts])),
        &[("/spec/volumes", json!([{"name": "v", "emptyDir": {}}]))],
    )
}

/// A Job whose pods run one after the other meanwhile.
fn job(host: &str) -> Value {
    let mut template = with(pod("any", sh("sleep 2")), &[("/spec/restartPolicy", "Never".into())]);
    template["spec"]["nodeSelector"]["kubernetes.io/hostname"] = host.into();
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
        "spec": {"completions": COMPLETIONS, "parallelism": 1, "backoffLimit": 0, "template": {"spec": template["spec"]}}})
}
