//! Images: converting a large one beside `umoci unpack` of it, in turn on this machine; and what a second pod of an image still fetches.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Options, Row, median};
use crate::{
    Cluster, command,
    paths::{repository, target},
    progress::say,
    registry,
    suite::in_place::{Pages, pages},
};

const PEER: &str = "umoci unpack";
const ROUNDS: usize = 3;
const NAMESPACE: &str = "bench-image";
/// Of an image's pages, what all who read it have together: what one of the two alone has read in between is its own.
const MOST_PAGES: f64 = 1.05;
/// From emulation's first byte to a running container, with some 400 MB in between.
const DEADLINE: Duration = Duration::from_secs(400);

pub(super) fn conversion(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    let kind = cluster.host(0)?.kind;
    let convert = build()?;
    let layout = format!("{}:gzip", cluster.images.join("layout/library/large").display());
    let folder = cluster.state.root.join("bench-image");
    let (mut ours, mut theirs, mut bytes) = (Vec::new(), Vec::new(), 0.0);
    for _ in 0..ROUNDS {
        empty(&folder)?;
        let answer = command::run(Command::new(&convert).arg(&layout).arg(folder.join("store")))?;
        let answer: Value = serde_json::from_slice(&answer.stdout).context("read the converter's answer")?;
        bytes = answer["device"].as_f64().context("the converter says no size")?;
        ours.push(answer["seconds"].as_f64().context("the converter says no time")?);
        empty(&folder)?;
        let begun = Instant::now();
        command::run(
            Command::new("umoci")
                .args(["unpack", "--image", &layout])
                .arg(folder.join("bundle")),
        )?;
        theirs.push(begun.elapsed().as_secs_f64());
        say(format_args!(
            "{:.2} s, umoci {:.2} s",
            ours[ours.len() - 1],
            theirs[theirs.len() - 1]
        ));
    }
    fs::remove_dir_all(&folder).context("remove what was unpacked")?;
    Ok(vec![
        Row::new(kind, "image conversion", "s", median(ours))
            .beside(PEER, median(theirs))
            .at_most(1.0),
        Row::new(kind, "image conversion, resulting device", "bytes", bytes),
    ])
}

/// The image crate's own converter, built as the rest of the workspace is.
fn build() -> Result<PathBuf> {
    let target = target()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(repository())
        .args(["build", "--release", "--workspace", "--example", "convert", "--target-dir"])
        .arg(&target);
    let status = cargo.status().context("run cargo")?;
    ensure!(status.success(), "cargo build --example convert: {status}");
    Ok(target.join("release/examples/convert"))
}

fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

pub(super) fn second_pod(cluster: &Cluster, _: &Options) -> Result<Vec<Row>> {
    cluster.create_namespace(NAMESPACE)?;
    let measured = pods(cluster);
    cluster.delete_namespace(NAMESPACE)?;
    let mut rows = measured?;
    let Pages { image, shares } = pages(cluster, "bench-image-pages")?;
    let row = Row::new(
        cluster.host(0)?.kind,
        "host's memory for the image that two pods have read",
        "bytes",
        shares as f64,
    );
    rows.push(row.beside("the image's pages", image as f64).at_most(MOST_PAGES));
    Ok(rows)
}

fn pods(cluster: &Cluster) -> Result<Vec<Row>> {
    let host = cluster.host(0)?;
    let store = || -> Result<f64> {
        let text = host.sh("du -s -B1 /var/lib/kvmlet/images | cut -f1")?;
        text.parse().with_context(|| format!("read {text}"))
    };
    let blobs = || -> Result<usize> {
        let log = cluster.state.logs().join(format!("{}.log", registry::PUBLIC));
        let text = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        Ok(text.lines().filter(|line| line.contains("GET /v2/library/large/blobs/")).count())
    };
    let start = |name: &str| -> Result<f64> {
        let begun = Instant::now();
        cluster.apply(&pod(name).to_string())?;
        cluster.wait_for_phase(NAMESPACE, name, "Running", DEADLINE)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    let blobs_before = blobs()?;
    let first = start("first")?;
    let (bytes_between, blobs_between) = (store()?, blobs()?);
    ensure!(
        blobs_between > blobs_before,
        "the registry's log has no request for a blob of the first pod"
    );
    let second = start("second")?;
    let row = |name: &str, unit, value| Row::new(host.kind, name, unit, value);
    Ok(vec![
        row("first pod of a 400 MB image, create to Running seen", "s", first),
        row(
            "first pod of a 400 MB image, blobs fetched",
            "requests",
            (blobs_between - blobs_before) as f64,
        ),
        row("second pod of the image, create to Running seen", "s", second),
        row(
            "second pod of the image, blobs fetched",
            "requests",
            (blobs()? - blobs_between) as f64,
        )
        .at_most(0.0),
        row(
            "second pod of the image, bytes added to the store",
            "bytes",
            store()? - bytes_between,
        )
        .at_most(0.0),
    ])
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeSelector": {"type": "virtual-kubelet"},
            "tolerations": [{"key": "virtual-kubelet.io/provider", "operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "large", "command": ["sleep", "1000000"]}]
        }
    })
}
