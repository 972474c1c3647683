//! BurstProfiles: their kind on the cluster, and objects of it.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{Cluster, paths::manifest, wait_for};

/// A BurstProfile.
pub(crate) fn object(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "kvmlet.io/v1alpha1", "kind": "BurstProfile", "metadata": {"name": name}, "spec": spec})
}

/// Installs the kind, does what `body` does and takes it away.
pub(crate) fn with_kind<T>(cluster: &Cluster, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let file = manifest("webhook/burst-profile.yaml");
    cluster.kubectl(&["apply", "-f", &file])?;
    wait_for("the kind to be served", Duration::from_secs(60), || {
        cluster.kubectl(&["get", "burstprofiles"]).map(Some)
    })?;
    let done = body();
    cluster.kubectl(&["delete", "-f", &file, "--timeout=60s"])?;
    done
}
