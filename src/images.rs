//! What the configuration says of images, in the image store's words.

use kvmlet_image::{Limits, Mirror, RegistryConfig, RegistryHost, StoreConfig};
use kvmlet_provider::config::Config;

pub(crate) fn config(config: &Config) -> StoreConfig {
    let hosts = config
        .registries
        .iter()
        .map(|(name, registry)| {
            let mirrors = registry
                .mirrors
                .iter()
                .map(|endpoint| Mirror {
                    endpoint: endpoint.clone(),
                    skip_verify: false,
                    send_credentials: false,
                })
                .collect();
            (
                name.clone(),
                RegistryHost {
                    mirrors,
                    plain_http: registry.insecure,
                    ..RegistryHost::default()
                },
            )
        })
        .collect();
    let limits = Limits {
        layer_bytes: config.images.max_layer_size.value(),
        layer_entries: config.images.max_layer_files,
        ..Limits::default()
    };
    StoreConfig {
        registries: RegistryConfig { hosts },
        limits,
        ..StoreConfig::default()
    }
}
