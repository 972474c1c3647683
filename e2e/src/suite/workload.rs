//! A namespace for one test, the pods it makes there, and the words it looks at them with. At the end the namespace is deleted,
//! and every host must be as it was before.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Cluster, wait::wait_while, wait_for};

/// Longest that a step of a pod's life may take on an emulated host that has other work to do.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// What a pod leaves on a host, one line a thing: records, namespaces, links, leases, logs, processes.
const TRACES: &str = "ls -d /var/lib/kvmlet/pods/* /run/netns/* /var/lib/kvmlet/network/leases/*/[0-9]* /var/log/pods/* 2>/dev/null
    ip -o link | sed 's/^[0-9]*: \\([^:@]*\\).*/link \\1/' | grep -v ' kvmlet0$'
    mount | sed -n 's/.* on \\(.*kvmlet.*\\) type.*/mount \\1/p'
    pgrep -f '^[^ ]* (vm|fs)( |$)' | sed 's/^/process /'; true";

/// A namespace of a test.
pub(super) struct Place<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) name: String,
}

/// The label by which a pod of [`pod_of`] finds the first host of the cluster its test sees.
const HERE: &str = "here";

/// Makes a namespace, does what `body` does in it, deletes its pods, and looks whether anything is left on a host; the namespace goes in its
/// own time. Where `body` fails the namespace stays for the dump; the runner takes it away.
pub(super) fn within<T>(cluster: &Cluster, name: &str, body: impl FnOnce(&Place<'_>) -> Result<T>) -> Result<T> {
    let before = traces(cluster)?;
    let answer = in_namespace(cluster, name, body)?;
    wait_for("nothing of the pods to be left on the hosts", Duration::from_secs(30), || {
        let left: Vec<_> = traces(cluster)?.difference(&before).cloned().collect();
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(Some(()))
    })?;
    Ok(answer)
}

/// The same, where other pods come to new machines meanwhile: what is left on the hosts is not looked at.
pub(super) fn in_namespace<T>(cluster: &Cluster, name: &str, body: impl FnOnce(&Place<'_>) -> Result<T>) -> Result<T> {
    cluster.create_namespace(name)?;
    let place = Place {
        cluster,
        name: name.into(),
    };
    let answer = body(&place)?;
    place.kubectl(&["delete", "pods", "--all", "--timeout=110s"])?;
    cluster.kubectl(&["delete", "namespace", name, "--wait=false"])?;
    Ok(answer)
}

fn traces(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for host in &cluster.hosts {
        all.extend(host.sh(TRACES)?.lines().map(|line| format!("{}: {line}", host.name)));
    }
    Ok(all)
}

/// A pod of one container `main`.
pub(super) fn pod(name: &str, container: Value) -> Value {
    pod_of(name, json!([container]))
}

/// A pod that the scheduler brings to a host of ours and that needs no patience to end. Containers without a name or image are `main`,
/// of busybox.
pub(super) fn pod_of(name: &str, containers: Value) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeSelector": {"type": "virtual-kubelet", "kubernetes.io/hostname": HERE},
        "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 1, "containers": containers}});
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        for (key, value) in [("name", "main"), ("image", "busybox")] {
            if container.get(key).is_none() {
                container[key] = value.into();
            }
        }
    }
    pod
}

/// A container that runs a shell script.
pub(super) fn sh(script: &str) -> Value {
    json!({"command": ["sh", "-c", script]})
}

/// A script's end for a container that stays until it is told to end.
pub(super) const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

/// What a container says that is told to leave.
pub(super) const GOODBYE: &str = "leaving in order";

/// A script for a container that stays until it is told to end, and then says [`GOODBYE`] and takes a second.
pub(super) fn says_goodbye() -> String {
    format!("trap 'echo {GOODBYE}; sleep 1; exit 0' TERM; while :; do sleep 1 & wait $!; done")
}

/// The same value with some fields set, by their paths (`/spec/restartPolicy`); parents are made.
pub(super) fn with(mut value: Value, fields: &[(&str, Value)]) -> Value {
    for (path, field) in fields {
        let mut at = &mut value;
        for key in path.trim_start_matches('/').split('/') {
            at = match key.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[key],
            };
        }
        *at = field.clone();
    }
    value
}

impl Place<'_> {
    /// The UID of a pod that is there.
    pub(super) fn uid(&self, pod: &str) -> Result<String> {
        let found = self.get(pod)?;
        Ok(found["metadata"]["uid"].as_str().context("the pod has no UID")?.to_owned())
    }

    /// Makes objects, all in one call.
    pub(super) fn create(&self, objects: &[Value]) -> Result<()> {
        let mut items = objects.to_vec();
        for item in &mut items {
            item["metadata"]["namespace"] = self.name.as_str().into();
            if let Some(host) = item
                .pointer_mut("/spec/nodeSelector/kubernetes.io~1hostname")
                .filter(|host| **host == HERE)
            {
                *host = self.cluster.host(0)?.name.as_str().into();
            }
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.cluster.apply(&list.to_string())
    }

    /// kubectl in this namespace; its standard output, or an error with what it said.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", self.name.as_str()], arguments].concat())
    }

    /// What kubectl says when it must fail.
    pub(super) fn kubectl_fails(&self, arguments: &[&str]) -> Result<String> {
        let output = self.cluster.kubectl_output(&[&["-n", self.name.as_str()], arguments].concat())?;
        let said = crate::command::text(&output.stderr);
        ensure!(!output.status.success(), "kubectl {} succeeded", arguments.join(" "));
        Ok(said)
    }

    /// The pod as the API server has it.
    pub(super) fn get(&self, pod: &str) -> Result<Value> {
        self.cluster.pod(&self.name, pod)
    }

    /// Waits until the pod is as `condition` says.
    pub(super) fn until(&self, pod: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(&format!("{pod} to {what}"), PATIENCE, || {
            let found = self.get(pod)?;
            ensure!(condition(&found), "its status is {}", found["status"]);
            Ok(Some(found))
        })
    }

    /// Waits until the pod and all its containers are ready.
    pub(super) fn until_ready(&self, pod: &str) -> Result<Value> {
        let ended = |found: &Value| ["Failed", "Succeeded"].iter().any(|phase| found["status"]["phase"] == *phase);
        wait_while(
            &format!("{pod} to be ready"),
            PATIENCE,
            || {
                let found = self.get(pod)?;
                ensure!(!ended(&found), "it has ended: {}", found["status"]);
                Ok(())
            },
            || {
                let found = self.get(pod)?;
                ensure!(condition(&found, "Ready")["status"] == "True", "its status is {}", found["status"]);
                Ok(Some(found))
            },
        )
    }

    /// Waits until the pod has reached a phase it stays in; any other such phase is an error at once.
    pub(super) fn until_phase(&self, pod: &str, phase: &str) -> Result<Value> {
        let found = self.until(pod, &format!("be {phase}"), |found| {
            found["status"]["phase"] == phase || ["Failed", "Succeeded"].iter().any(|end| found["status"]["phase"] == *end)
        })?;
        ensure!(found["status"]["phase"] == phase, "{pod} is not {phase}: {}", found["status"]);
        Ok(found)
    }

    /// What a pod that ends with success has written.
    pub(super) fn output(&self, pod: &str) -> Result<String> {
        if let Err(error) = self.until_phase(pod, "Succeeded") {
            let logs = self.kubectl(&["logs", pod, "--all-containers"]).unwrap_or_default();
            bail!("{error:#}; it wrote: {logs}");
        }
        self.kubectl(&["logs", pod])
    }

    /// Waits until the log of a running pod is `text`: a container is ready before it has said anything.
    pub(super) fn until_logs(&self, pod: &str, text: &str) -> Result<()> {
        wait_for(&format!("{pod} to write {text:?}"), PATIENCE, || {
            let logs = self.kubectl(&["logs", pod])?;
            ensure!(logs == text, "it has written {logs:?}");
            Ok(Some(()))
        })
    }

    /// Waits until a pod's first container has written something with this in it.
    pub(super) fn until_says(&self, pod: &str, text: &str) -> Result<()> {
        wait_for(&format!("{pod} to write something with {text:?}"), PATIENCE, || {
            let logs = self.kubectl(&["logs", pod])?;
            ensure!(logs.contains(text), "it has written {logs:?}");
            Ok(Some(()))
        })
    }

    /// What a shell script writes in a running container.
    pub(super) fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    /// The pod's events, as (type, reason, field path, message), in the order they came about.
    pub(super) fn events(&self, pod: &str) -> Result<Vec<(String, String, String, String)>> {
        let selector = format!("involvedObject.name={pod}");
        let events = self
            .cluster
            .kubectl_json(&["-n", &self.name, "get", "events", "--field-selector", &selector])?;
        let mut items = events["items"].as_array().cloned().unwrap_or_default();
        items.sort_by_key(|event| event["metadata"]["creationTimestamp"].as_str().map(str::to_owned));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(items
            .iter()
            .map(|event| {
                (
                    text(&event["type"]),
                    text(&event["reason"]),
                    text(&event["involvedObject"]["fieldPath"]),
                    text(&event["message"]),
                )
            })
            .collect())
    }

    /// Waits for an event of this reason whose message contains `words`.
    pub(super) fn until_event(&self, pod: &str, reason: &str, words: &str) -> Result<()> {
        wait_for(
            &format!("an event {reason} on {pod} with {words:?}"),
            Duration::from_secs(60),
            || {
                let events = self.events(pod)?;
                let found = events.iter().any(|event| event.1 == reason && event.3.contains(words));
                ensure!(found, "its events are {events:?}");
                Ok(Some(()))
            },
        )
    }
}

/// A kubectl that runs beside the test and writes into a file, until it is dropped.
pub(super) struct Follower {
    child: Child,
    output: PathBuf,
}

impl Follower {
    pub(super) fn begin(place: &Place<'_>, name: &str, arguments: &[&str]) -> Result<Self> {
        let output = place.cluster.state.root.join(format!("follower-{}-{name}", place.name));
        let mut command = place.cluster.kubectl_command();
        command.args(["-n", &place.name]).args(arguments);
        command.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(Stdio::null());
        let child = command.spawn().context("run kubectl")?;
        Ok(Self { child, output })
    }

    pub(super) fn said(&self) -> Result<String> {
        fs::read_to_string(&self.output).context("read what kubectl said")
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill().and_then(|()| self.child.wait().map(drop));
        let _ = fs::remove_file(&self.output);
    }
}

/// A condition of a pod or node; null without one.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().find(|one| one["type"] == kind).unwrap_or(&Value::Null)
}

/// The status of a container (also of an init container) of a pod.
pub(super) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let lists = ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array());
    let mut all = lists.into_iter().flatten().flatten();
    all.find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

/// The lines of `text` of the form `key=value`, of this key.
pub(super) fn line<'a>(text: &'a str, key: &str) -> Result<&'a str> {
    let mut lines = text.lines();
    lines
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        .with_context(|| format!("no line {key}= in {text:?}"))
}
