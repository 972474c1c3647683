//! Answers PreflightChecks of this node: what `kvmlet preflight` shows, the canary at last. Without the kind in the cluster, or the right to see it, the
//! node does its work as ever, and looks for it now and then; with it, a watch says when there is something to do.

use std::{pin::pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use kvmlet_admission::{
    refused::unless_gone,
    runtime::{
        CheckResult, CheckStatus, PreflightCheck,
        keep::{ABSENT, is_absent},
    },
};
use kvmlet_preflight::{Check, canary};
use kvmlet_provider::config::Config;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use vmm_lib::spec::DiskFormat;

use crate::{machine, runtime::disk_format};

/// How long the end of a canary may take when the daemon ends.
pub(crate) const END: Duration = Duration::from_secs(5);
/// The pause after a failure, and while somebody else's canary is under way.
pub(crate) const PAUSE: Duration = Duration::from_secs(5);

/// Answers until `stop` is told. What the canary of a nested host took is added to what `nesting` says; `scratch` is what disks of pods are.
pub(crate) async fn answer(
    client: Client,
    config: Arc<Config>,
    nesting: watch::Sender<Option<String>>,
    scratch: watch::Receiver<DiskFormat>,
    stop: CancellationToken,
) {
    let cost = nesting.borrow().clone();
    let node = Node {
        client,
        config,
        cost,
        nesting,
        scratch,
        stop,
    };
    loop {
        let pause = match node.follow().await {
            Ok(()) => return,
            Err(error) => match error.downcast_ref() {
                Some(error) if is_absent(error) => {
                    debug!(%error, "this cluster has no PreflightChecks for this node");
                    ABSENT
                }
                _ => {
                    warn!("answer checks: {error:#}");
                    PAUSE
                }
            },
        };
        if node.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

struct Node {
    client: Client,
    config: Arc<Config>,
    /// What nesting costs, without the canary's word.
    cost: Option<String>,
    nesting: watch::Sender<Option<String>>,
    scratch: watch::Receiver<DiskFormat>,
    stop: CancellationToken,
}

impl Node {
    /// Answers one check after another; comes to its end only when it is told to stop.
    async fn follow(&self) -> anyhow::Result<()> {
        let checks: Api<PreflightCheck> = Api::all(self.client.clone());
        let of_this_node = watcher::Config::default().fields(&format!("spec.nodeName={}", self.config.node_name));
        let mut events = pin!(watcher::watcher(checks.clone(), of_this_node));
        while let Some(event) = self.stop.run_until_cancelled(events.next()).await {
            let check = match event.context("the watch of checks has ended")?? {
                Event::Apply(check) | Event::InitApply(check) if !check.is_answered() => check,
                _ => continue,
            };
            let format = check.spec.image_format.map_or(*self.scratch.borrow(), disk_format);
            let Some(status) = self.look(check.spec.use_emulation.unwrap_or(true), format).await? else {
                break;
            };
            let name = check.name_any();
            info!(check = name, passed = status.passed, "this host was checked");
            let patch = Patch::Merge(json!({ "status": status }));
            // If it is gone, nobody wants to know any more.
            unless_gone(checks.patch_status(&name, &PatchParams::default(), &patch).await).context("write the checks")?;
        }
        Ok(())
    }

    /// All checks of this host; nothing if the daemon ends before that.
    async fn look(&self, use_emulation: bool, format: DiskFormat) -> anyhow::Result<Option<CheckStatus>> {
        while canary::is_under_way(&self.config.state_dir) {
            if self.stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return Ok(None);
            }
        }
        let program = machine::path()?;
        let mut checks = tokio::task::spawn_blocking({
            let (config, program) = (self.config.clone(), program.clone());
            move || kvmlet_preflight::look(&config, &program, use_emulation)
        })
        .await
        .context("look at the host")?;
        let booted = canary::boot(&self.config, &program, &checks, format, |_| {}, self.stop.cancelled()).await;
        let canary = booted.iter().find(|check| check.name == canary::NAME && check.passed);
        if let Some((cost, canary)) = self.cost.as_ref().zip(canary) {
            self.nesting
                .send_replace(Some(format!("{cost}. The last canary: {}", canary.message)));
        }
        checks.extend(booted);
        Ok((!self.stop.is_cancelled()).then(|| status(checks, Timestamp::now())))
    }
}

/// The answer.
fn status(checks: Vec<Check>, now: Timestamp) -> CheckStatus {
    CheckStatus {
        passed: checks.iter().all(|check| check.passed),
        observed_time: Some(Time(now)),
        version: env!("CARGO_PKG_VERSION").into(),
        checks: checks.into_iter().map(result).collect(),
    }
}

fn result(check: Check) -> CheckResult {
    CheckResult {
        name: check.name.into(),
        passed: check.passed,
        message: check.message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_passes_when_every_check_does_and_each_is_told_with_its_words() {
        let checks = |tun: Result<String, String>| vec![Check::new("kernel", Ok("Linux 6.1".into())), Check::new("tun", tun)];
        let now = Timestamp::UNIX_EPOCH;
        assert!(status(checks(Ok("there".into())), now).passed);
        let failed = status(checks(Err("modprobe tun".into())), now);
        assert!(!failed.passed && failed.observed_time == Some(Time(now)));
        let told = json!({"name": "tun", "passed": false, "message": "modprobe tun"});
        assert_eq!(json!(failed.checks[1]), told);
    }
}
