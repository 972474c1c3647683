//! How fast a pod's network is, as its annotations say.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Test,
    workload::{Place, STAY, pod, sh, with, within},
};
use crate::Cluster;

pub(super) const TESTS: &[Test] = &[Test {
    name: "a pod's transfers are held to its bandwidth annotations in each direction, and nonsense in them is refused",
    hosts: 1,
    kvmlet: true,
    run: held,
}];

/// Bytes of a transfer.
const LENGTH: f64 = 3_000_000.0;
/// Bytes per second, as the annotations say in bits.
const INGRESS: f64 = 500_000.0;
const EGRESS: f64 = 250_000.0;
/// Bytes that go at once.
const BUCKET: f64 = 65_536.0;

fn held(cluster: &Cluster) -> Result<()> {
    within(cluster, "bandwidth", |place| {
        let serve = format!(
            "mkdir /tmp/www && cd /tmp/www && head -c {LENGTH} /dev/zero >file && httpd -p 8000 -h /tmp/www && echo listening; {STAY}"
        );
        let annotations = |ingress: &str, egress: &str| {
            let all = json!({"kubernetes.io/ingress-bandwidth": ingress, "kubernetes.io/egress-bandwidth": egress});
            ("/metadata/annotations", all)
        };
        place.create(&[
            with(pod("held", sh(&serve)), &[annotations("4M", "2000k")]),
            pod("free", sh(&serve)),
            pod("other", sh(STAY)),
            with(pod("nonsense", sh(STAY)), &[annotations("fast", "1G")]),
        ])?;
        for name in ["held", "free", "other"] {
            place.until_ready(name)?;
        }
        for name in ["held", "free"] {
            place.until_says(name, "listening")?;
        }
        // However slow the host is: less time than this is above the rate.
        let (to, from) = (seconds(place, "held", "free")?, seconds(place, "other", "held")?);
        for (what, seconds, rate) in [("to", to, INGRESS), ("from", from, EGRESS)] {
            let least = (LENGTH - BUCKET) / rate;
            ensure!(
                seconds >= least * 0.98,
                "{LENGTH} bytes {what} the pod in {seconds} s, above its rate ({least} s)"
            );
        }
        let refused = place.until_phase("nonsense", "Failed")?;
        let message = refused["status"]["message"].as_str().unwrap_or_default();
        ensure!(
            refused["status"]["reason"] == "InvalidBandwidth"
                && message.contains("metadata.annotations[kubernetes.io/ingress-bandwidth]: \"fast\" is not a quantity"),
            "{}",
            refused["status"]
        );
        Ok(())
    })
}

/// How long `pod` takes to get the file of another one.
fn seconds(place: &Place<'_>, pod: &str, of: &str) -> Result<f64> {
    let found = place.get(of)?;
    let ip = found["status"]["podIP"].as_str().context("no IP")?;
    let get = format!("wget -q -O /dev/null http://{ip}:8000/file");
    let said = place.exec(
        pod,
        &format!("read before rest </proc/uptime; {get} || exit 1; read after rest </proc/uptime; echo $before $after"),
    )?;
    let (before, after) = said.trim().split_once(' ').with_context(|| format!("no times: {said}"))?;
    Ok(after.parse::<f64>()? - before.parse::<f64>()?)
}
