//! What the KvmletRuntime says of pods' scratch disks: a part of the test of it, as nodes look for its kind again after half a minute only.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::workload::{PATIENCE, Place, STAY, container, pod, sh, with};
use crate::{node, wait_for};

/// The first bytes of a qcow2 image.
const MAGIC: &str = "51 46 49 fb";
/// Mebibytes that a pod writes, and its disk's.
const WRITES: u64 = 24;
const DISK: u64 = 1024;

/// Waits until the first host's node last heard of this format.
fn followed(place: &Place<'_>, format: &str) -> Result<()> {
    let last = format!("grep 'scratch disks of new machines' {} | tail -n 1", node::KVMLET_LOG);
    wait_for(&format!("the node to hear of {format}"), PATIENCE, || {
        let said = place.cluster.host(0)?.sh(&last)?;
        ensure!(said.contains(&format!("format={format}")), "it last heard {said:?}");
        Ok(Some(()))
    })
}

/// Waits until the first host was checked for this format, and has made such a disk.
fn checked(place: &Place<'_>, format: &str) -> Result<()> {
    let node = &place.cluster.host(0)?.name;
    wait_for(&format!("{node} to be checked for {format}"), PATIENCE, || {
        let all = place.cluster.kubectl_json(&["get", "preflightchecks"])?;
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let of_this = |one: &&Value| one["spec"]["nodeName"] == **node && one["spec"]["imageFormat"] == format;
        let asked: Vec<_> = items
            .iter()
            .filter(of_this)
            .filter(|one| one["spec"]["reason"] == "FeaturesChanged")
            .collect();
        let made = asked
            .iter()
            .flat_map(|one| one["status"]["checks"].as_array().cloned().unwrap_or_default());
        let said: Vec<_> = made.filter(|one| one["name"] == "scratch-disk").collect();
        let is_made = |one: &Value| one["passed"] == true && one["message"].to_string().contains(&format!("format {format}"));
        ensure!(said.iter().any(is_made), "checks of it say {said:?}, of {asked:?}");
        Ok(Some(()))
    })
}

fn says(place: &Place<'_>, format: &str) -> Result<()> {
    let change = json!({"spec": {"imageFormat": format}}).to_string();
    let patch = ["patch", "kvmletruntime", "kvmlet", "--type=merge", "-p", &change];
    place.cluster.kubectl(&patch).map(drop)
}

/// A pod that writes to its disk, and reads that again.
fn writer(name: &str) -> Value {
    let script = format!(
        "dd if=/dev/urandom of=/written bs=1M count={WRITES} 2>/dev/null; sync; md5sum < /written > /sum; \
         md5sum < /written | cmp - /sum && echo same; {STAY}"
    );
    let limits = json!({"limits": {"memory": "64Mi", "ephemeral-storage": format!("{DISK}Mi")}});
    with(pod(name, sh(&script)), &[("/spec/containers/0/resources", limits)])
}

/// The first bytes of a pod's disk, and the length of its file.
fn disk(place: &Place<'_>, pod: &str) -> Result<(String, u64)> {
    let file = format!("/var/lib/kvmlet/pods/{}/machine/scratch.img", place.uid(pod)?);
    let host = place.cluster.host(0)?;
    let first = host.sh(&format!("head -c 4 {file} | od -An -tx1"))?.trim().to_owned();
    let length = host.sh(&format!("stat -c %s {file}"))?.parse().context("read a length")?;
    Ok((first, length))
}

/// New pods' disks are as it says, and those that are there stay as they are.
pub(super) fn formats(place: &Place<'_>) -> Result<()> {
    place.create(&[writer("before")])?;
    place.until_says("before", "same")?;
    says(place, "qcow2")?;
    followed(place, "Qcow2")?;
    checked(place, "qcow2")?;
    place.create(&[writer("image")])?;
    place.until_says("image", "same")?;
    let (first, length) = disk(place, "image")?;
    ensure!(first == MAGIC, "it begins with {first}");
    ensure!(
        length > WRITES << 20 && length < DISK << 19,
        "a disk of {DISK} MiB with {WRITES} MiB on it has a file of {length} bytes"
    );
    let kibibytes = place.exec("image", "df -k / | tail -n 1 | awk '{print $2}'")?;
    let seen: u64 = kibibytes.trim().parse().with_context(|| format!("read {kibibytes:?}"))?;
    ensure!(seen > DISK << 9, "the pod sees a disk of {seen} KiB");
    let (first, length) = disk(place, "before")?;
    ensure!(
        first != MAGIC && length >= DISK << 20,
        "a pod that ran has another disk: {first}, {length}"
    );
    let before = place.get("before")?;
    ensure!(container(&before, "main")["restartCount"] == 0, "{}", before["status"]);
    says(place, "raw")?;
    followed(place, "Raw")?;
    place.create(&[writer("after")])?;
    place.until_says("after", "same")?;
    let (first, _) = disk(place, "after")?;
    ensure!(first != MAGIC, "it is an image yet");
    place
        .kubectl(&["delete", "pods", "before", "image", "after", "--timeout=110s"])
        .map(drop)
}
