//! Images that are changed while their pod runs (`kubectl set image`).

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    Test, daemon,
    workload::{Place, STAY, condition, container, pod_of, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[Test {
    name: "a container whose image is changed runs again of the other one in the same machine, and one that cannot be had is mended by another change",
    hosts: 1,
    kvmlet: true,
    run: changed,
}];

fn changed(cluster: &Cluster) -> Result<()> {
    within(cluster, "changed-image", |place| {
        let main = json!({"name": "main", "image": "users:latest"});
        let beside = with(sh(STAY), &[("/name", json!("beside"))]);
        place.create(&[pod_of("web", json!([main, beside]))])?;
        let first = place.until_ready("web")?;
        let uid = first["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let host = cluster.host(0)?;
        let machine = daemon::process(host, &uid)?;

        set(place, "nginx")?;
        let found = runs(place, "nginx", 1)?;
        ensure!(
            container(&found, "main")["imageID"] != container(&first, "main")["imageID"],
            "{}",
            found["status"]
        );
        let said = place.kubectl(&["logs", "web", "-c", "main", "--previous"])?;
        ensure!(said.ends_with("got TERM"), "it was not asked to end: {said:?}");
        place.until_event("web", "Killing", "Container main definition changed, will be restarted")?;

        // The daemon learns of it when it is back.
        host.stop_daemon()?;
        set(place, "users:stop")?;
        daemon::restart(cluster)?;
        runs(place, "users:stop", 2)?;

        set(place, "no-such-image")?;
        let found = place.until("web", "wait for an image that is not there", |found| {
            let reason = &container(found, "main")["state"]["waiting"]["reason"];
            reason == "ErrImagePull" || reason == "ImagePullBackOff"
        })?;
        ensure!(
            condition(&found, "Ready")["status"] == "False" && found["status"]["phase"] == "Running",
            "{}",
            found["status"]
        );
        set(place, "users:latest")?;
        let found = runs(place, "users:latest", 3)?;
        ensure!(
            container(&found, "beside")["containerID"] == container(&first, "beside")["containerID"],
            "the other container was disturbed: {}",
            found["status"]
        );
        ensure!(daemon::process(host, &uid)? == machine, "the pod has another machine");
        Ok(())
    })
}

fn set(place: &Place<'_>, image: &str) -> Result<()> {
    place.kubectl(&["set", "image", "pod/web", &format!("main={image}")]).map(drop)
}

/// Waits until the container runs of this image, after so many restarts, and the pod is ready.
fn runs(place: &Place<'_>, image: &str, restarts: u64) -> Result<Value> {
    place.until("web", &format!("run of {image}"), |found| {
        let main = container(found, "main");
        let running = !main["state"]["running"].is_null() && main["image"] == image && main["restartCount"] == restarts;
        running && condition(found, "Ready")["status"] == "True"
    })
}
