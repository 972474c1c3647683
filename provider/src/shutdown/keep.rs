//! Waits for the host's shutdown, and ends the pods before it.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{
    TERMINATED,
    logind::{Logind, LogindError},
    plan,
};
use crate::{
    act::chain,
    config::ShutdownGracePeriod,
    context::Context,
    driver::{self, Handle},
    events::Note,
    eviction::Eviction,
    kubelet::Pods,
    priority::priority,
};

/// How long it takes until somebody who does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// Ends pods before each shutdown, for ever; at once nothing where the configuration gives them no time.
pub async fn keep(context: Arc<Context>, pods: Pods) {
    let periods = context.config.shutdown_grace_periods();
    if periods.is_empty() {
        return;
    }
    let mut told = String::new();
    loop {
        let why = match follow(&context, &pods, &periods).await {
            Ok(()) => "the connection has ended".to_owned(),
            Err(error) => chain(&error),
        };
        if told != why {
            warn!(why, "shutdowns are not waited for; asking again every {AGAIN:?}");
            told = why;
        }
        sleep(AGAIN).await;
    }
}

/// Follows logind until the connection ends.
async fn follow(context: &Context, pods: &Pods, periods: &[ShutdownGracePeriod]) -> Result<(), LogindError> {
    let mut logind = Logind::connect().await?;
    logind.allow(plan::whole(periods)).await?;
    let mut lock = Some(logind.inhibit().await?);
    info!(whole = ?plan::whole(periods), "pods have time to end when the host shuts down");
    while let Some(begins) = logind.next().await {
        let what = if begins { "shutdown event" } else { "shutdown cancellation" };
        info!(begins, "logind tells of a shutdown");
        let note = Note::normal("NodeShutdown", None, format!("Shutdown manager detected {what}"));
        context.recorder.node(&context.config.node_name, note);
        context.shutdown.set(begins);
        if begins {
            end_pods(pods, periods).await;
            info!("pods have ended, or had their time: the host may shut down");
            drop(lock.take());
        } else {
            lock = Some(logind.inhibit().await?);
        }
    }
    Ok(())
}

async fn end_pods(pods: &Pods, periods: &[ShutdownGracePeriod]) {
    for group in plan::groups(periods, running(pods)) {
        let ended = driver::end(&group.pods, group.seconds, |grace| Eviction::by_node(TERMINATED, grace));
        if timeout(Duration::from_secs(group.seconds), ended).await.is_err() {
            warn!(seconds = group.seconds, "pods have not ended in their time");
        }
    }
}

/// Pods that have something to end, and their priorities.
fn running(pods: &Pods) -> Vec<(Arc<Handle>, i32)> {
    let pods = pods.lock().expect("no holder panics");
    let running = pods.values().filter(|handle| handle.view.borrow().lives());
    running
        .map(|handle| (handle.clone(), priority(&handle.view.borrow().desired.pod)))
        .collect()
}
