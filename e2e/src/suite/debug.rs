//! `kubectl debug`: ephemeral containers beside those of a pod that runs.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Test,
    attached::under_script,
    workload::{Place, STAY, condition, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[Test {
    name: "kubectl debug joins a pod that runs with an image of its own, sees a container's processes, changes nothing of the pod, and is asked to end with it",
    hosts: 1,
    kvmlet: true,
    run: debug,
}];

fn ephemeral<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let mut all = pod["status"]["ephemeralContainerStatuses"].as_array().into_iter().flatten();
    all.find(|one| one["name"] == name).unwrap_or(&Value::Null)
}

fn debug(cluster: &Cluster) -> Result<()> {
    within(cluster, "debug", |place| {
        // `main` is of another image than what looks at it.
        let main = with(json!({"image": "nginx"}), &[("/name", json!("main"))]);
        let second = with(sh(STAY), &[("/name", json!("second"))]);
        place.create(&[
            pod_of("web", json!([main])),
            pod_of("both", json!([with(sh(STAY), &[("/name", json!("first"))]), second])),
        ])?;
        place.until_ready("web")?;
        let script = "read word; ps -o pid,args; ls -d /proc/1/root/etc/nginx; echo heard $word; exit 3";
        let line = format!("debug web -it -c looks --image=busybox --target=main -- sh -c '{script}'");
        let output = under_script(cluster, place, &line, "magic\n")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(said.contains("heard magic") && said.contains("nginx: master"), "{said:?}");
        let found = place.until("web", "show how the ephemeral container ended", |found| {
            !ephemeral(found, "looks")["state"]["terminated"].is_null()
        })?;
        let looks = ephemeral(&found, "looks");
        ensure!(
            looks["state"]["terminated"]["exitCode"] == 3 && looks["restartCount"] == 0 && looks["ready"] == false,
            "{looks}"
        );
        ensure!(condition(&found, "Ready")["status"] == "True", "{}", found["status"]);
        ensure!(found["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", found["status"]);
        let log = place.kubectl(&["logs", "web", "-c", "looks"])?;
        ensure!(log.contains("heard magic"), "{log:?}");

        waits(place)?;
        // Of an image that the machine has, without a target: its processes are its own.
        place.until_ready("both")?;
        let own = [
            "debug",
            "both",
            "-q",
            "-c",
            "own",
            "--image=busybox",
            "--",
            "readlink",
            "/proc/self",
        ];
        place.kubectl(&own)?;
        place.until("both", "show that the ephemeral container has ended", |found| {
            ephemeral(found, "own")["state"]["terminated"]["exitCode"] == 0
        })?;
        let log = place.kubectl(&["logs", "both", "-c", "own"])?;
        ensure!(log == "1", "{log:?}");
        place.until_ready("both")?;
        ends(place)
    })
}

/// One that still runs when its pod is deleted is asked to end, and has the time for it.
fn ends(place: &Place<'_>) -> Result<()> {
    let script = "trap 'echo was asked; sleep 2; echo has ended; exit 0' TERM; echo waits; while :; do sleep 1; done";
    place.kubectl(&["debug", "both", "-q", "-c", "ends", "--image=busybox", "--", "sh", "-c", script])?;
    place.until("both", "run the ephemeral container", |found| {
        !ephemeral(found, "ends")["state"]["running"].is_null()
    })?;
    let mut follower = place.cluster.kubectl_command();
    follower.args(["-n", &place.name, "logs", "-f", "both", "-c", "ends"]);
    let mut follower = follower
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("follow the log")?;
    let mut lines = BufReader::new(follower.stdout.take().context("kubectl has no output")?).lines();
    let mut next = || lines.next().transpose().context("read the log");
    ensure!(next()?.as_deref() == Some("waits"));
    place.kubectl(&["delete", "pod", "both", "--grace-period=60", "--timeout=110s"])?;
    let rest: Vec<_> = std::iter::from_fn(|| next().transpose()).collect::<Result<_>>()?;
    ensure!(rest == ["was asked", "has ended"], "{rest:?}");
    follower.wait().context("wait for the follower").map(drop)
}

/// What cannot be stays waiting and says why; the pod goes on.
fn waits(place: &Place<'_>) -> Result<()> {
    place.kubectl(&["debug", "web", "-q", "-c", "none", "--image=no-such-image", "--", "true"])?;
    place.until("web", "show that there is no such image", |found| {
        let reason = &ephemeral(found, "none")["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    })?;
    let custom = place.cluster.state.root.join("debug-custom.json");
    crate::paths::write(
        &custom,
        json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}).to_string(),
    )?;
    let custom = custom.to_string_lossy().into_owned();
    let refused = [
        "debug",
        "web",
        "-q",
        "-c",
        "refused",
        "--image=busybox",
        "--custom",
        &custom,
        "--",
        "true",
    ];
    place.kubectl(&refused)?;
    let found = place.until("web", "show that the ephemeral container is refused", |found| {
        ephemeral(found, "refused")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    let message = &ephemeral(&found, "refused")["state"]["waiting"]["message"];
    ensure!(
        message.as_str().is_some_and(
            |text| text.starts_with("This node does not support: spec.ephemeralContainers[2].securityContext.appArmorProfile.type")
        ),
        "{message}"
    );
    place.until_ready("web").map(drop)
}
