//! `kvmlet webhook --withdraw`: what the chart does before it is uninstalled. The KvmletRuntime goes while its controller is still there, which takes
//! away what it did to nodes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kube::{Api, Client, api::DeleteParams};
use kvmlet_admission::{
    refused::unless_gone,
    runtime::{KvmletRuntime, NAME},
};

/// How long the controller may take: less than the Job's deadline, so that this says why.
const PATIENCE: Duration = Duration::from_secs(120);

/// Deletes the KvmletRuntime and waits until it is gone. Nothing is to be done where there is none, or not even its kind.
pub(crate) async fn run() -> anyhow::Result<()> {
    let client = Client::try_default().await.context("find the API server")?;
    let runtimes: Api<KvmletRuntime> = Api::all(client);
    let deleted = runtimes.delete(NAME, &DeleteParams::default()).await;
    if unless_gone(deleted).context("delete the KvmletRuntime")?.is_none() {
        println!("there is no KvmletRuntime");
        return Ok(());
    }
    let until = Instant::now() + PATIENCE;
    while runtimes.get_opt(NAME).await.context("read the KvmletRuntime")?.is_some() {
        if Instant::now() > until {
            bail!(
                "the KvmletRuntime is still there after {} s: no replica of the webhook leads, which would take away what it did to nodes. By hand: \
                 docs/troubleshooting.md, \"Removing\"",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    println!("the KvmletRuntime is gone, and nodes have nothing of it any more");
    Ok(())
}
