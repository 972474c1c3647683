//! Pulls from registries that work and registries that do not.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use kvmlet_image::{Credential, ImageStore, PullError, PullProgress, StoreConfig};
use support::registry::{Behaviour, Registry, mirrors};
use support::{Image, Layer, sha256};

fn config(registry: &Registry) -> StoreConfig {
    StoreConfig {
        registries: registry.as_mirror(),
        ..StoreConfig::default()
    }
}

fn nginx() -> Image {
    let noise: Vec<u8> = (0..200_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    Image::new(&[
        Layer::default().dir("bin").file("bin/nginx", noise).tar(),
        Layer::default().dir("etc").file("etc/conf", b"x").tar(),
    ])
}

async fn registry(behaviour: Behaviour) -> (Registry, Image) {
    let registry = Registry::start(behaviour).await;
    let image = nginx();
    registry.add("library/nginx:latest", &image);
    (registry, image)
}

async fn pull(store: &ImageStore, name: &str) -> Result<kvmlet_image::PulledImage, PullError> {
    tokio::time::timeout(Duration::from_secs(120), store.pull(name, &[], |_| {}))
        .await
        .expect("a pull ends")
}

/// Nothing of a pull that failed is on disk.
fn assert_nothing_left(store: &Path) {
    for dir in ["tmp", "layers", "images"] {
        let left: Vec<_> = fs::read_dir(store.join(dir)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn a_short_name_comes_through_the_mirror_and_a_second_pull_transfers_no_blob() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, image) = registry(Behaviour::default()).await;
    let store = support::store(dir.path(), config(&registry));
    assert_eq!(store.get("nginx"), None);

    let events = Mutex::new(Vec::new());
    let pulled = store.pull("nginx", &[], |event| events.lock().unwrap().push(event)).await.unwrap();
    assert_eq!(pulled.reference, "docker.io/library/nginx:latest");
    assert_eq!(pulled.image_id, format!("docker.io/library/nginx@{}", image.digest()));
    assert_eq!((&pulled.digest, &pulled.id), (&image.digest(), &image.config));
    assert_eq!(
        (&pulled.config.cmd[..], &pulled.config.env[..]),
        (&["/bin/true".to_owned()][..], &["A=b".to_owned()][..])
    );
    assert_eq!(pulled.device.extents.len(), 3);
    let events = events.into_inner().unwrap();
    assert!(matches!(events[0], PullProgress::Resolved { layers: 2, .. }));
    assert!(events.contains(&PullProgress::LayerDone { layer: 1, cached: false }));

    assert_eq!((registry.asked(&image.layers[0]), registry.asked(&image.config)), (1, 1));
    let blobs = registry.asked("/blobs/");
    assert_eq!(pull(&store, "nginx:latest").await.unwrap(), pulled);
    assert_eq!(registry.asked("/blobs/"), blobs);
    // Another repository has to show that it has the image.
    registry.add("library/other:latest", &image);
    assert_eq!(pull(&store, "other").await.unwrap().id, pulled.id);
    assert_eq!((registry.asked(&image.layers[0]), registry.asked(&image.config)), (1, 2));
    for name in ["nginx", &pulled.image_id, &pulled.id] {
        assert_eq!(store.get(name).unwrap().device, pulled.device, "{name}");
    }
    assert_eq!(store.list().len(), 4);
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_not_found() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = registry(Behaviour::default()).await;
    let store = support::store(dir.path(), config(&registry));
    let error = pull(&store, "nothing").await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("failed to pull image \"docker.io/library/nothing:latest\": not found")
    );
    assert!(matches!(pull(&store, "No Name").await, Err(PullError::InvalidImageName { .. })));
}

#[tokio::test]
async fn other_bytes_than_the_digest_says_are_refused_and_leave_nothing() {
    for which in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let (registry, image) = registry(Behaviour::default()).await;
        let wrong = if which == 0 {
            image.layers[0].clone()
        } else {
            image.config.clone()
        };
        registry.behave(Behaviour {
            corrupt: Some(wrong.clone()),
            ..Behaviour::default()
        });
        let store = support::store(dir.path(), config(&registry));
        match pull(&store, "nginx").await.unwrap_err() {
            PullError::DigestMismatch { expected, .. } => assert_eq!(expected, wrong),
            error => panic!("{error:?}"),
        }
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "a half-made file is left");
        assert!(!dir.path().join("layers").join(format!("{}.data", &image.layers[0][7..])).exists());
        // A mirror that has the right bytes mends it.
        registry.behave(Behaviour::default());
        pull(&store, "nginx").await.unwrap();
    }
}

#[tokio::test]
async fn a_manifest_of_another_digest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, image) = registry(Behaviour::default()).await;
    let other = sha256(b"other");
    registry.add_manifest(&format!("library/nginx:{other}"), &image.manifest);
    let store = support::store(dir.path(), config(&registry));
    let error = pull(&store, &format!("nginx@{other}")).await.unwrap_err();
    assert!(matches!(error, PullError::DigestMismatch { .. }), "{error:?}");
    pull(&store, &format!("nginx@{}", image.digest())).await.unwrap();
}

#[tokio::test]
async fn a_diff_id_that_does_not_match_its_layer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(Behaviour::default()).await;
    let tar = Layer::default().file("a", b"a").tar();
    registry.add(
        "library/odd:latest",
        &Image::of_blobs(vec![(support::gzip(&tar), sha256(b"other"))]),
    );
    let store = support::store(dir.path(), config(&registry));
    let error = pull(&store, "odd").await.unwrap_err();
    assert!(matches!(error, PullError::DigestMismatch { .. }), "{error:?}");
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn cut_connections_are_taken_up_where_they_ended() {
    for no_ranges in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (registry, image) = registry(Behaviour::default()).await;
        let size = image.blobs[0].1.len();
        // Without ranges each repetition starts over, so one cut must suffice.
        let cut_after = Some(if no_ranges { size - 1 } else { size / 3 });
        registry.behave(Behaviour {
            cut_after,
            no_ranges,
            ..Behaviour::default()
        });
        let store = support::store(dir.path(), config(&registry));
        if no_ranges {
            let whole = async {
                while registry.asked(&image.layers[0]) == 0 {
                    tokio::task::yield_now().await;
                }
                registry.behave(Behaviour {
                    no_ranges,
                    ..Behaviour::default()
                });
            };
            let (pulled, ()) = tokio::join!(pull(&store, "nginx"), whole);
            pulled.unwrap();
        } else {
            pull(&store, "nginx").await.unwrap();
            assert!(registry.asked(&image.layers[0]) >= 3);
        }
    }
}

#[tokio::test]
async fn a_registry_that_always_cuts_at_once_is_unavailable_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = registry(Behaviour {
        cut_after: Some(0),
        ..Behaviour::default()
    })
    .await;
    let store = support::store(
        dir.path(),
        StoreConfig {
            attempts: 2,
            ..config(&registry)
        },
    );
    let error = pull(&store, "nginx").await.unwrap_err();
    assert_eq!(error.waiting_reason(), "RegistryUnavailable", "{error:?}");
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = registry(Behaviour {
        hang: true,
        ..Behaviour::default()
    })
    .await;
    let read_timeout = Duration::from_millis(300);
    let store = support::store(
        dir.path(),
        StoreConfig {
            attempts: 1,
            read_timeout,
            ..config(&registry)
        },
    );
    let error = pull(&store, "nginx").await.unwrap_err();
    assert!(matches!(error, PullError::Unreachable { .. }), "{error:?}");
    assert_nothing_left(dir.path());
}

#[tokio::test]
async fn credentials_are_tried_in_order_and_anonymous_access_last() {
    let dir = tempfile::tempdir().unwrap();
    let basic = Some("dXNlcjpyaWdodA==".to_owned());
    let (registry, _) = registry(Behaviour {
        basic,
        ..Behaviour::default()
    })
    .await;
    let store = support::store(dir.path(), config(&registry));
    let user = |password: &str| Credential {
        username: "user".to_owned(),
        password: password.to_owned(),
    };
    for credentials in [&[][..], &[user("wrong")]] {
        let error = store.pull("nginx", credentials, |_| {}).await.unwrap_err();
        assert!(matches!(error, PullError::Unauthorized { .. }), "{error:?}");
        assert!(!error.to_string().contains("wrong"));
    }
    store.pull("nginx", &[user("wrong"), user("right")], |_| {}).await.unwrap();
    assert!(store.may_use("nginx", &[user("right")]));
    assert!(
        !store.may_use("nginx", &[]) && !store.may_use("nginx", &[user("wrong")]),
        "the image is here, and not for all"
    );
    drop(store);
    let store = support::store(dir.path(), config(&registry));
    assert!(
        store.may_use("nginx", &[user("right")]) && !store.may_use("nginx", &[]),
        "nor after a restart"
    );
    registry.behave(Behaviour::default());
    store.pull("nginx", &[user("wrong")], |_| {}).await.unwrap();
    store.pull("nginx", &[], |_| {}).await.unwrap();
    assert!(store.may_use("nginx", &[]));
}

#[tokio::test]
async fn bearer_tokens_are_fetched_and_monstrous_ones_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = registry(Behaviour {
        token: Some("good".to_owned()),
        ..Behaviour::default()
    })
    .await;
    let store = support::store(dir.path(), config(&registry));
    pull(&store, "nginx").await.unwrap();
    let (bad, _) = self::registry(Behaviour {
        token: Some("bad\n\0token".to_owned()),
        ..Behaviour::default()
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(dir.path(), config(&bad));
    let error = pull(&store, "nginx").await.unwrap_err();
    assert!(matches!(error, PullError::InvalidImage { .. }), "{error:?}");
}

#[tokio::test]
async fn mirrors_that_are_down_are_passed_over_and_all_down_is_unavailable() {
    let dir = tempfile::tempdir().unwrap();
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (broken, _) = registry(Behaviour {
        status: Some(503),
        ..Behaviour::default()
    })
    .await;
    let (good, _) = registry(Behaviour::default()).await;
    let of = |addresses: &[_]| StoreConfig {
        registries: mirrors(addresses),
        attempts: 1,
        ..StoreConfig::default()
    };
    let store = support::store(&dir.path().join("a"), of(&[gone, broken.address, good.address]));
    pull(&store, "nginx").await.unwrap();
    let store = support::store(&dir.path().join("b"), of(&[gone, broken.address]));
    let error = pull(&store, "nginx").await.unwrap_err();
    assert_eq!(error.waiting_reason(), "RegistryUnavailable");
    let text = error.to_string();
    assert!(text.contains("503") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn an_index_is_resolved_for_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, image) = registry(Behaviour::default()).await;
    let entry = |architecture: &str| {
        serde_json::json!({"digest": image.digest(), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = |entries: &[serde_json::Value]| {
        serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries})
            .to_string()
            .into_bytes()
    };
    let many = index(&[entry("arm64"), entry("amd64")]);
    registry.add_manifest("library/nginx:many", &many);
    registry.add_manifest("library/nginx:arm", &index(&[entry("arm64")]));
    let store = support::store(
        dir.path(),
        StoreConfig {
            architecture: "amd64".to_owned(),
            ..config(&registry)
        },
    );
    assert_eq!(pull(&store, "nginx:many").await.unwrap().digest, sha256(&many));
    let error = pull(&store, "nginx:arm").await.unwrap_err();
    assert!(matches!(error, PullError::NoMatchingPlatform { .. }), "{error:?}");
    assert!(
        error
            .to_string()
            .contains("no match for platform in manifest: linux/amd64 is not among linux/arm64")
    );
}

#[tokio::test]
async fn pulls_at_once_convert_each_layer_once() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, image) = registry(Behaviour::default()).await;
    let store = support::store(dir.path(), config(&registry));
    let pulls = (0..10).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { pull(&store, "nginx").await })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(registry.asked(&image.layers[0]), 1);
}

#[tokio::test]
async fn a_pull_given_up_leaves_nothing_and_the_next_one_works() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, _) = registry(Behaviour {
        hang: true,
        ..Behaviour::default()
    })
    .await;
    let store = support::store(dir.path(), config(&registry));
    let task = tokio::spawn({
        let store = store.clone();
        async move { store.pull("nginx", &[], |_| {}).await }
    });
    registry.hangs().await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    registry.behave(Behaviour::default());
    pull(&store, "nginx").await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
}
