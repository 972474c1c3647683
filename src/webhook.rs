//! `kvmlet webhook`: the admission webhook, as a pod of a Deployment.

use std::process::ExitCode;

use anyhow::Context as _;
use kvmlet_admission::{Config, Webhook};
use kvmlet_provider::supported::unsupported;
use serde_json::Value;

use crate::{cli::WebhookArguments, ending::Signals};

/// Runs the webhook until SIGTERM or SIGINT.
pub(crate) fn run(arguments: &WebhookArguments) -> anyhow::Result<ExitCode> {
    crate::node::log_to_stderr();
    if arguments.withdraw {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(crate::withdraw::run())?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = match &arguments.config {
        Some(path) => Config::load(path).with_context(|| path.display().to_string())?,
        None => Config::default(),
    };
    // One processor's work, and less memory.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(serve(arguments, config))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &WebhookArguments, config: Config) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context("find the API server")?;
    let webhook = Webhook {
        client,
        address: arguments.listen,
        name: arguments.name.clone(),
        me: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        certificates: config.cert_config,
        unfit,
    };
    let mut signals = Signals::new()?;
    let stop = async move {
        signals.next().await;
    };
    webhook.run(stop).await.with_context(|| format!("listen on {}", arguments.listen))
}

/// What the node would refuse, in its words.
fn unfit(spec: &Value) -> Vec<String> {
    unsupported(spec).into_iter().map(|one| one.to_string()).collect()
}
