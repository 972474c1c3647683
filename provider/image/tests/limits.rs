//! Layers that are wrong, hostile or too large, and disks that are too small.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use kvmlet_image::{ImageStore, Limit, PullError, StoreConfig};
use support::tree::{Mounted, run};
use support::{Image, Layer, gzip, sha256};
use tar::EntryType;

async fn import(store: &ImageStore, dir: &Path, image: &Image) -> Result<kvmlet_image::PulledImage, PullError> {
    let layout = dir.join(&image.digest()[7..]);
    image.write_layout(&layout);
    store.import("test/image", &layout).await
}

fn assert_nothing_left(store: &ImageStore) {
    for dir in ["tmp", "layers", "images"] {
        let left: Vec<_> = fs::read_dir(store.dir().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn refused(blob: Vec<u8>, diff_id: String, config: StoreConfig) -> PullError {
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(&dir.path().join("store"), config);
    let error = import(&store, dir.path(), &Image::of_blobs(vec![(blob, diff_id)]))
        .await
        .unwrap_err();
    assert_nothing_left(&store);
    error
}

async fn tar_refused(tar: Vec<u8>) -> PullError {
    refused(gzip(&tar), sha256(&tar), StoreConfig::default()).await
}

#[tokio::test]
async fn layers_that_are_no_tar_are_named_so() {
    let text = b"this is no tar archive".repeat(100);
    let mut cut = Layer::default().file("a", [1; 5000]).tar();
    cut.truncate(3000);
    for tar in [text, cut] {
        let error = tar_refused(tar).await;
        assert!(matches!(error, PullError::NotATar { .. }), "{error:?}");
    }
    let tar = Layer::default().file("a", [1; 5000]).tar();
    let mut torn = gzip(&tar);
    torn.truncate(torn.len() / 2);
    let error = refused(torn, sha256(&tar), StoreConfig::default()).await;
    assert!(error.to_string().contains("cannot decompress"), "{error}");
}

#[tokio::test]
async fn paths_that_leave_the_image_are_refused() {
    let layers = [
        Layer::default().file("../evil", b"x"),
        Layer::default().file("a/../../evil", b"x"),
        Layer::default().file("/../evil", b"x"),
        Layer::default().hardlink("a", "../../etc/passwd"),
        Layer::default().file(".wh...", b""),
        Layer::default().file("a/.wh..", b""),
    ];
    for layer in layers {
        let error = tar_refused(layer.tar()).await;
        assert!(matches!(error, PullError::EscapingPath { .. }), "{error:?}");
        assert!(error.to_string().contains("leaves the image"));
    }
}

#[tokio::test]
async fn absolute_links_stay_within_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = support::store(&dir.path().join("store"), StoreConfig::default());
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let outside = outside.to_str().unwrap();
    let tar = Layer::default()
        .symlink("link", outside)
        .file("link/evil", b"x")
        .file("/abs", b"y")
        .hardlink("hard", "/abs")
        .tar();
    let pulled = import(&store, dir.path(), &Image::new(&[tar])).await.unwrap();
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    let mounted = Mounted::new(&pulled.device, dir.path());
    assert_eq!(
        fs::read(mounted.root.join(outside.trim_start_matches('/')).join("evil")).unwrap(),
        b"x"
    );
    assert_eq!(fs::read(mounted.root.join("hard")).unwrap(), b"y");
}

#[tokio::test]
async fn entries_no_file_system_can_hold_are_refused() {
    let layers = [
        Layer::default().file(&"n".repeat(256), b"x"),
        Layer::default().hardlink("a", "nowhere"),
        Layer::default().symlink("a", ""),
        Layer::default().symlink(".", "x"),
        Layer::default().pax("GNU.sparse.major", b"1").file("sparse", b"x"),
        Layer::default().entry(EntryType::GNUSparse, "sparse", "", 0o644, (0, 0), b"x"),
        Layer::default().entry(EntryType::new(b'Z'), "odd", "", 0o644, (0, 0), b""),
        Layer::default().symlink("loop", "loop").file("loop/x", b"x"),
    ];
    for layer in layers {
        let tar = layer.tar();
        let dir = tempfile::tempdir().unwrap();
        let store = support::store(&dir.path().join("store"), StoreConfig::default());
        let error = import(&store, dir.path(), &Image::new(&[tar])).await.unwrap_err();
        assert!(matches!(error, PullError::BadEntry { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn bombs_end_at_the_limit_they_exceed() {
    let tar = Layer::default().file("a", vec![0; 3 << 20]).file("b", b"b").tar();
    let mut config = StoreConfig::default();
    let limits = config.limits.clone();
    let small = [
        (
            Limit::LayerBytes,
            kvmlet_image::Limits {
                layer_bytes: 1 << 20,
                ..limits.clone()
            },
        ),
        (
            Limit::ImageBytes,
            kvmlet_image::Limits {
                image_bytes: 1 << 20,
                ..limits.clone()
            },
        ),
        (
            Limit::LayerEntries,
            kvmlet_image::Limits {
                layer_entries: 1,
                ..limits.clone()
            },
        ),
        (
            Limit::ImageEntries,
            kvmlet_image::Limits {
                image_entries: 1,
                ..limits.clone()
            },
        ),
        (
            Limit::LayerMetadataBytes,
            kvmlet_image::Limits {
                layer_metadata_bytes: 200,
                ..limits.clone()
            },
        ),
        (
            Limit::PathBytes,
            kvmlet_image::Limits {
                path_bytes: 0,
                ..limits.clone()
            },
        ),
        (Limit::Layers, kvmlet_image::Limits { layers: 0, ..limits }),
    ];
    for (want, limits) in small {
        config.limits = limits;
        let dir = tempfile::tempdir().unwrap();
        let store = support::store(&dir.path().join("store"), config.clone());
        match import(&store, dir.path(), &Image::new(std::slice::from_ref(&tar)))
            .await
            .unwrap_err()
        {
            PullError::TooLarge { limit, .. } => assert_eq!(limit, want),
            error => panic!("{want:?}: {error:?}"),
        }
        assert_eq!(fs::read_dir(store.dir().join("tmp")).unwrap().count(), 0);
    }
}

/// A file system of its own, a few MiB large.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(dir: &Path, size: &str) -> Self {
        let path = dir.join("small");
        fs::create_dir(&path).unwrap();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", path.to_str().unwrap()],
        );
        Self(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        run("umount", &[self.0.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_half_made_stays_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(dir.path(), "4m");
    let store = support::store(&disk.0.join("store"), StoreConfig::default());
    let large = Layer::default().file("large", vec![7; 8 << 20]).tar();
    let error = import(&store, dir.path(), &Image::new(&[large])).await.unwrap_err();
    assert!(matches!(error, PullError::DiskFull { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"));
    assert_nothing_left(&store);
    let small = Layer::default().file("small", vec![7; 1 << 20]).tar();
    import(&store, dir.path(), &Image::new(&[small])).await.unwrap();
    drop(store);
}
