//! What counts on a host that has no configuration.

use std::path::Path;

use super::Config;

/// The keys that have no default.
const ASSUMED: &str = "{apiVersion: kvmlet.io/v1alpha1, kind: KvmletConfiguration, nodeName: unknown, nodeIP: 192.0.2.1, kubeconfig: /none, \
    tls: {certFile: /none, keyFile: /none, clientCAFile: /none}}";

impl Config {
    /// The defaults. The keys that have none mean nothing here.
    ///
    /// # Panics
    /// Never: its text has them.
    pub fn assumed() -> Self {
        Self::parse(Path::new("defaults"), ASSUMED).expect("it has the keys that have no default")
    }
}
