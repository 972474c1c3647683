//! What the KvmletRuntime says of a node's pods: what their scratch disks are. Whether the node takes pods at all is the webhook's to see to.

use std::pin::pin;

use futures_util::StreamExt as _;
use kube::{Api, Client, runtime::watcher::watch_object};
use kvmlet_admission::runtime::{
    ImageFormat, KvmletRuntime, NAME,
    keep::{ABSENT, is_absent},
};
use tokio::sync::watch;
use tracing::{debug, info, warn};
use vmm_lib::spec::DiskFormat;

use crate::checks::PAUSE;

/// Follows it for ever. What was last known counts while it cannot be seen.
pub(crate) async fn follow(client: Client, scratch: watch::Sender<DiskFormat>) {
    let runtimes: Api<KvmletRuntime> = Api::all(client);
    let mut seen = pin!(watch_object(runtimes, NAME));
    while let Some(seen) = seen.next().await {
        match seen {
            Ok(runtime) => know(runtime.as_ref(), &scratch),
            Err(error) if is_absent(&error) => {
                debug!(%error, "this cluster has no KvmletRuntime for this node");
                tokio::time::sleep(ABSENT).await;
            }
            Err(error) => {
                warn!(%error, "watch the KvmletRuntime");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The same as machines know it.
pub(crate) fn disk_format(format: ImageFormat) -> DiskFormat {
    match format {
        ImageFormat::Raw => DiskFormat::Raw,
        ImageFormat::Qcow2 => DiskFormat::Qcow2,
    }
}

/// Without one, disks are raw.
fn know(runtime: Option<&KvmletRuntime>, scratch: &watch::Sender<DiskFormat>) {
    let format = disk_format(runtime.map(|runtime| runtime.spec.image_format).unwrap_or_default());
    scratch.send_if_modified(|known| {
        let is_news = *known != format;
        if is_news {
            info!(?format, "scratch disks of new machines");
            *known = format;
        }
        is_news
    });
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn disks_are_as_the_switch_says_and_raw_without_a_word() {
        let (scratch, seen) = watch::channel(DiskFormat::Raw);
        let runtime = |spec: Value| serde_json::from_value::<KvmletRuntime>(json!({"metadata": {"name": NAME}, "spec": spec})).unwrap();
        know(Some(&runtime(json!({"enabled": true, "imageFormat": "qcow2"}))), &scratch);
        assert_eq!(*seen.borrow(), DiskFormat::Qcow2);
        know(Some(&runtime(json!({"enabled": true}))), &scratch);
        assert_eq!(*seen.borrow(), DiskFormat::Raw);
        know(Some(&runtime(json!({"enabled": false, "imageFormat": "qcow2"}))), &scratch);
        assert_eq!(*seen.borrow(), DiskFormat::Qcow2);
        know(None, &scratch);
        assert_eq!(*seen.borrow(), DiskFormat::Raw);
    }
}
