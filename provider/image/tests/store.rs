//! The store over time: reopened, cleaned, collected.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use kvmlet_image::{ImageStore, OpenError, PulledImage, StoreConfig};
use support::{Image, Layer};

async fn import(store: &ImageStore, dir: &Path, name: &str, contents: &[&str]) -> PulledImage {
    let layers: Vec<_> = contents
        .iter()
        .map(|content| Layer::default().file(content, content).tar())
        .collect();
    let layout = dir.join(name.replace([':', '/'], "-"));
    Image::new(&layers).write_layout(&layout);
    store.import(name, &layout).await.unwrap()
}

fn count(store: &ImageStore, dir: &str) -> usize {
    fs::read_dir(store.dir().join(dir)).unwrap().count()
}

#[tokio::test]
async fn a_store_reopened_knows_its_images_and_drops_what_was_half_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = support::store(&path, StoreConfig::default());
    let pulled = import(&store, dir.path(), "a:1", &["one", "two"]).await;
    let broken = import(&store, dir.path(), "b:1", &["three"]).await;
    assert!(matches!(ImageStore::open(&path, StoreConfig::default()), Err(OpenError::InUse(_))));
    drop(store);
    fs::write(path.join("tmp/17"), b"half").unwrap();
    fs::write(path.join(format!("layers/{}.data", "0".repeat(64))), b"no index").unwrap();
    fs::remove_file(&broken.device.extents[1].path).unwrap();

    let store = support::store(&path, StoreConfig::default());
    assert_eq!(store.get("a:1"), Some(pulled));
    assert_eq!(store.get("b:1"), None);
    assert_eq!(count(&store, "tmp"), 0);
    assert!(!path.join(format!("layers/{}.data", "0".repeat(64))).exists());
    let again = import(&store, dir.path(), "b:1", &["three"]).await;
    assert_eq!(again, broken);
}

#[test]
fn a_store_whose_process_died_opens_when_what_that_left_behind_lets_it_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(support::store(&path, StoreConfig::default()));
    // As a child does that has been started and is not its program yet: it has the dead process's lock.
    let dies = "exec 9> lock && flock -n 9 && { sleep 1 & } && ! flock -n lock true";
    let shell = Command::new("sh").args(["-c", dies]).current_dir(&path).status().unwrap();
    assert!(shell.success());
    support::store(&path, StoreConfig::default());
}

#[tokio::test]
async fn what_images_share_and_what_has_two_names_takes_its_bytes_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(&dir.path().join("store"), StoreConfig::default());
    let one = import(&store, dir.path(), "a:1", &["shared", "one"]).await;
    assert_eq!(store.bytes(), one.device.size);
    import(&store, dir.path(), "a:2", &["shared", "one"]).await;
    // Two tags, and the digest of both.
    assert_eq!((store.list().len(), store.bytes()), (3, one.device.size));
    let two = import(&store, dir.path(), "b:1", &["shared", "two"]).await;
    let shared = two
        .device
        .extents
        .iter()
        .find(|extent| one.device.extents.contains(extent))
        .unwrap();
    assert_eq!(store.bytes(), one.device.size + two.device.size - shared.length);
}

#[tokio::test]
async fn what_no_name_means_and_no_pod_uses_is_collected() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(&dir.path().join("store"), StoreConfig::default());
    let one = import(&store, dir.path(), "a:1", &["shared", "one"]).await;
    let two = import(&store, dir.path(), "a:2", &["shared", "two"]).await;
    assert_eq!(store.gc(&[]).await.unwrap(), kvmlet_image::Collected::default());
    assert!(store.remove("a:1").await.unwrap());
    assert!(!store.remove("a:1").await.unwrap());
    assert_eq!(store.get("a:1"), None);
    let collected = store.gc(&[]).await.unwrap();
    assert_eq!((collected.images, collected.layers), (0, 1));
    assert!(collected.bytes > 0);
    assert!(two.device.extents.iter().all(|extent| extent.path.exists()));
    assert!(!one.device.extents[2].path.exists());
    assert!(store.remove(&two.id).await.unwrap());
    store.gc(&[]).await.unwrap();
    assert_eq!((count(&store, "layers"), count(&store, "images")), (0, 0));
}

#[tokio::test]
async fn an_image_in_use_outlives_its_tag() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(&dir.path().join("store"), StoreConfig::default());
    let old = import(&store, dir.path(), "a:1", &["old"]).await;
    fs::remove_dir_all(dir.path().join("a-1")).unwrap();
    let new = import(&store, dir.path(), "a:1", &["new"]).await;
    assert_ne!(old.id, new.id);
    assert_eq!(store.get("a:1"), Some(new.clone()));
    // The old one still has its name by digest.
    assert_eq!(store.get(&old.image_id).map(|image| image.device), Some(old.device.clone()));
    let in_use = [old.id.clone()];
    store.gc(&in_use).await.unwrap();
    assert!(old.device.extents.iter().all(|extent| extent.path.exists()));
}
