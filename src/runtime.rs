//! What the KvmletRuntime says of a node: what its pods' scratch disks are, and whether it makes a Node where there is none. Whether a Node takes pods is the
//! webhook's to see to.

use std::{pin::pin, sync::Arc};

use futures_util::{StreamExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Taint;
use kube::{Api, Client, api::ListParams, runtime::watcher::watch_object};
use kvmlet_admission::runtime::{
    ImageFormat, KvmletRuntime, NAME, TAINT,
    decide::{Mode, Why},
    keep::{ABSENT, is_absent},
};
use kvmlet_provider::node::{Entry, Gate};
use tokio::sync::watch;
use tracing::{debug, info, warn};
use vmm_lib::spec::DiskFormat;

use crate::checks::PAUSE;

/// Who is told what it says.
pub(crate) struct Told {
    /// What scratch disks are.
    pub(crate) scratch: watch::Sender<DiskFormat>,
    /// Whether a Node is made.
    pub(crate) entry: watch::Sender<Entry>,
}

/// Whether a node makes its Node, by what there is of the switch. One that is to be checked first has the taint from its first moment on: its controller, who
/// takes it away, comes to know of the Node later than the scheduler.
fn entry(runtime: Option<&KvmletRuntime>) -> Entry {
    let taint = Taint {
        key: TAINT.into(),
        value: Some(Why::Checking.value().into()),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    match Mode::of(runtime) {
        Mode::Free => Entry::Open(None),
        Mode::Enabled { .. } => Entry::Open(Some(taint)),
        Mode::Disabled => Entry::Closed,
    }
}

/// Asks what it says now. A cluster that has no such kind, or does not show it to this node, says nothing.
pub(crate) fn gate(client: Client, told: watch::Receiver<Entry>) -> Gate {
    let ask = move || -> BoxFuture<'static, kube::Result<Entry>> {
        let runtimes: Api<KvmletRuntime> = Api::all(client.clone());
        Box::pin(async move {
            // Nodes may list this one, and not get it.
            let this_one = ListParams::default().fields(&format!("metadata.name={NAME}"));
            match runtimes.list(&this_one).await {
                Ok(found) => Ok(entry(found.items.first())),
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => Ok(entry(None)),
                Err(error) => Err(error),
            }
        })
    };
    Gate { ask: Arc::new(ask), told }
}

/// Follows it for ever. What was last known counts while it cannot be seen.
pub(crate) async fn follow(client: Client, told: Told) {
    let runtimes: Api<KvmletRuntime> = Api::all(client);
    let mut seen = pin!(watch_object(runtimes, NAME));
    while let Some(seen) = seen.next().await {
        match seen {
            Ok(runtime) => {
                know(runtime.as_ref(), &told.scratch);
                let entry = entry(runtime.as_ref());
                told.entry
                    .send_if_modified(|known| std::mem::replace(known, entry.clone()) != entry);
            }
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

    fn switch(object: Value) -> KvmletRuntime {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_node_that_is_to_be_checked_comes_with_the_taint_and_one_that_is_switched_off_does_not_come() {
        let on = json!({"metadata": {"name": NAME}, "spec": {"enabled": true}});
        let Entry::Open(Some(taint)) = entry(Some(&switch(on.clone()))) else {
            panic!("no taint")
        };
        assert_eq!(
            (taint.key.as_str(), taint.value.as_deref(), taint.effect.as_str()),
            ("kvmlet.io/preflight", Some("checking"), "NoSchedule")
        );
        let off = json!({"metadata": {"name": NAME}, "spec": {"enabled": false}});
        assert_eq!(entry(Some(&switch(off.clone()))), Entry::Closed);
        for mut going in [on, off] {
            going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            assert_eq!(entry(Some(&switch(going))), Entry::Open(None), "nobody would take the taint away");
        }
        assert_eq!(entry(None), Entry::Open(None));
    }

    #[tokio::test]
    async fn a_cluster_without_the_switch_or_that_does_not_show_it_lets_nodes_in_and_one_that_fails_is_asked_again() {
        let asked = async |code: u16, body: Value| {
            let service = tower::service_fn(move |request: hyper::Request<kube::client::Body>| {
                assert!(
                    request
                        .uri()
                        .query()
                        .unwrap_or_default()
                        .contains("fieldSelector=metadata.name%3Dkvmlet")
                );
                let answer = hyper::Response::builder().status(code);
                let answer = answer.body(kube::client::Body::from(body.to_string().into_bytes()));
                async move { Ok::<_, kube::Error>(answer.expect("an answer")) }
            });
            let told = watch::channel(Entry::Open(None)).1;
            (gate(Client::new(service, "default"), told).ask)().await
        };
        let failure = |code: u16| json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "No", "code": code});
        for code in [403, 404] {
            assert_eq!(asked(code, failure(code)).await.unwrap(), Entry::Open(None));
        }
        assert!(asked(500, failure(500)).await.is_err());
        let off = json!({"metadata": {"name": NAME}, "spec": {"enabled": false}});
        assert_eq!(asked(200, json!({"metadata": {}, "items": [off]})).await.unwrap(), Entry::Closed);
        assert_eq!(asked(200, json!({"metadata": {}, "items": []})).await.unwrap(), Entry::Open(None));
    }

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
