//! BurstProfiles: their kind on the cluster, and objects of it.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{Cluster, paths::repository, wait_for};

/// A file of the webhook's manifests.
pub(crate) fn manifest(name: &str) -> String {
    repository().join("manifests/webhook").join(name).to_string_lossy().into_owned()
}

/// A BurstProfile.
pub(crate) fn object(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "BurstProfile", "metadata": {"name": name}, "spec": spec})
}

/// Installs the kind, does what `body` does and takes it away.
pub(crate) fn with_kind<T>(cluster: &Cluster, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let file = manifest("burst-profile.yaml");
    cluster.kubectl(&["apply", "-f", &file])?;
    wait_for("the kind to be served", Duration::from_secs(60), || {
        cluster.kubectl(&["get", "burstprofiles"]).map(Some)
    })?;
    let done = body();
    cluster.kubectl(&["delete", "-f", &file, "--timeout=60s"])?;
    done
}
