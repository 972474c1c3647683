//! Images read back through fsck.erofs and a kernel mount, against what umoci makes of the same layers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::Path;

use kvmlet_image::{PulledImage, StoreConfig};
use support::tree::{Mounted, concatenate, run, walk};
use support::{Image, Layer, gzip, sha256};
use tar::EntryType;

async fn import(image: &Image, dir: &Path) -> PulledImage {
    image.write_layout(&dir.join("layout"));
    let store = support::store(&dir.join("store"), StoreConfig::default());
    store.import("test/image", &dir.join("layout")).await.unwrap()
}

/// Compares an image with what umoci unpacks of it.
async fn same_as_umoci(tars: &[Vec<u8>]) {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::new(tars);
    let pulled = import(&image, dir.path()).await;
    let layout = format!("{}:latest", dir.path().join("layout").display());
    let bundle = dir.path().join("bundle");
    run(
        "umoci",
        &["unpack", "--keep-dirlinks", "--image", &layout, bundle.to_str().unwrap()],
    );
    let mounted = Mounted::new(&pulled.device, dir.path());
    let ours = walk(&mounted.root);
    let theirs = walk(&bundle.join("rootfs"));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, ours) in &ours {
        assert_eq!(ours, &theirs[path], "{path}");
    }
}

fn noise(len: usize, mut seed: u64) -> Vec<u8> {
    std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 56) as u8
    })
    .take(len)
    .collect()
}

#[tokio::test]
async fn every_kind_of_file_comes_back_as_umoci_unpacks_it() {
    let long = format!("long/{}/{}", "d".repeat(200), "f".repeat(255));
    let deep = (0..60).map(|at| format!("level-{at}")).collect::<Vec<_>>();
    let mut base = Layer::default()
        .dir("./")
        .dir("bin")
        .dir("long")
        .dir(&format!("long/{}", "d".repeat(200)));
    base = base.dir("dev").dir("empty").dir("links");
    base = base
        .file("bin/exact-block", noise(4096, 1))
        .file("bin/more", noise(4097, 2))
        .file("bin/less", noise(100, 3))
        .file("bin/none", b"")
        .file("bin/large", noise(3 << 20, 4))
        .file("bin/zeros", vec![0; 5 << 20])
        .file(&long, b"long")
        .entry(EntryType::Regular, "bin/suid", "", 0o4755, (0, 0), b"x")
        .entry(EntryType::Regular, "bin/owned", "", 0o640, (70_000, 1_999_999), b"y")
        .entry(EntryType::Directory, "tmp", "", 0o1777, (0, 0), b"")
        .entry(EntryType::Char, "dev/char", "", 0o666, (0, 5), b"")
        .entry(EntryType::Block, "dev/block", "", 0o660, (0, 6), b"")
        .entry(EntryType::Fifo, "dev/fifo", "", 0o600, (0, 0), b"")
        .symlink("links/abs", "/bin/less")
        .symlink("links/up", "../../../../../../etc/passwd")
        .symlink("links/long", &"../".repeat(700))
        .hardlink("links/hard", "bin/more")
        .hardlink("links/hard-symlink", "links/abs")
        .xattr("user.small", b"v")
        .xattr("security.capability", b"\x01\0\0\x02\0\x04\0\n\0\0\0\0\0\0\0\0\0\0\0\0")
        .file("bin/capable", b"c")
        .xattr("user.big", &noise(3000, 5))
        .dir("with-xattr")
        .pax("mtime", b"1234567890.123456789")
        .file("bin/nanos", b"n")
        .pax("mtime", b"-86400.5")
        .file("bin/old", b"o");
    for depth in 1..=deep.len() {
        base = base.dir(&deep[..depth].join("/"));
    }
    base = base.file(&format!("{}/bottom", deep.join("/")), b"bottom");
    same_as_umoci(&[base.tar()]).await;
}

#[tokio::test]
async fn layers_cover_each_other_as_umoci_lays_them() {
    let one = Layer::default()
        .dir("./")
        .dir("a")
        .file("a/gone", b"1")
        .file("a/stays", b"2")
        .file("a/linked", b"3")
        .dir("opaque")
        .file("opaque/old", b"4")
        .dir("opaque/sub")
        .file("opaque/sub/old", b"5")
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/x", b"6")
        .symlink("lib", "usr/lib")
        .dir("dir-to-file")
        .file("dir-to-file/child", b"7")
        .file("file-to-dir", b"8")
        .file("replaced", b"9")
        .dir("gone-dir")
        .file("gone-dir/child", b"10");
    let two = Layer::default()
        .dir("a")
        .file("a/.wh.gone", b"")
        .hardlink("a/link", "a/linked")
        .dir("opaque")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"11")
        .file(".wh.gone-dir", b"")
        .file("dir-to-file", b"12")
        .dir("file-to-dir")
        .file("file-to-dir/child", b"13")
        .entry(EntryType::Regular, "replaced", "", 0o600, (1, 2), b"14");
    let three = Layer::default()
        .dir("dir-to-file")
        .file("dir-to-file/again", b"15")
        .file("a/linked", b"16")
        .entry(EntryType::Directory, "opaque", "", 0o700, (3, 4), b"")
        .file("gone-dir", b"17");
    same_as_umoci(&[one.tar(), two.tar(), three.tar()]).await;
}

#[tokio::test]
async fn directories_of_twenty_thousand_names_are_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut layer = Layer::default().dir("./").dir("many");
    for at in 0..20_000 {
        layer = layer.file(&format!("many/file-{at}"), at.to_string());
    }
    let pulled = import(&Image::new(&[layer.tar()]), dir.path()).await;
    let mounted = Mounted::new(&pulled.device, dir.path());
    assert_eq!(fs::read_dir(mounted.root.join("many")).unwrap().count(), 20_000);
    for at in (0..20_000).step_by(7) {
        assert_eq!(
            fs::read_to_string(mounted.root.join(format!("many/file-{at}"))).unwrap(),
            at.to_string()
        );
    }
    assert!(!mounted.root.join("many/file-20000").exists());
}

#[tokio::test]
async fn an_image_of_nothing_is_an_empty_root() {
    let dir = tempfile::tempdir().unwrap();
    let pulled = import(&Image::new(&[Layer::default().tar()]), dir.path()).await;
    assert_eq!(pulled.device.extents.len(), 1);
    let mounted = Mounted::new(&pulled.device, dir.path());
    assert_eq!(walk(&mounted.root).len(), 1);
}

#[tokio::test]
async fn the_same_layer_twice_has_its_data_once() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::default().file("a", b"same").tar();
    let between = Layer::default().file("a", b"other").tar();
    let pulled = import(&Image::new(&[layer.clone(), between, layer]), dir.path()).await;
    assert_eq!(pulled.device.extents.len(), 3);
    let mounted = Mounted::new(&pulled.device, dir.path());
    assert_eq!(fs::read(mounted.root.join("a")).unwrap(), b"same");
}

#[tokio::test]
async fn the_same_image_gives_the_same_bytes_however_it_is_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let tar = Layer::default()
        .dir("d")
        .file("d/a", noise(9000, 1))
        .xattr("user.x", b"y")
        .file("b", b"2")
        .tar();
    let mut devices = Vec::new();
    for (name, blob) in [
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("zstd", zstd::encode_all(&tar[..], 3).unwrap()),
    ] {
        let dir = dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let pulled = import(&Image::of_blobs(vec![(blob, sha256(&tar))]), &dir).await;
        concatenate(&pulled.device, &dir.join("device"));
        devices.push(fs::read(dir.join("device")).unwrap());
    }
    assert!(devices[0] == devices[1] && devices[1] == devices[2]);
}
