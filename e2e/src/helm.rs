//! helm, as the cluster's administrator.

use anyhow::{Context, Result};

use crate::{Cluster, artifacts, command};

/// Runs helm for at most three minutes; its standard output, or an error with what it said. It keeps what it knows beside the cluster.
///
/// # Errors
/// What helm said, or that it cannot be had.
pub fn run(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let home = cluster.state.root.join("helm");
    let mut command = cluster.inside("timeout");
    command.args(["-k", "5", "180"]).arg(artifacts::helm()?).args(arguments);
    command.env("KUBECONFIG", cluster.state.kubeconfig());
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, &home);
    }
    let output = command::run(&mut command).with_context(|| format!("helm {}", arguments.join(" ")))?;
    Ok(command::text(&output.stdout))
}
