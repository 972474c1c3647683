//! Copies against real directories.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use kvmlet_image::{Extent, ImageDevice};
use tempfile::TempDir;
use vmm_lib::spec::{FileSource, MachineSpec, Restore};

use super::Copies;
use crate::{
    config::{Guest, Machines, Sharing, SharingPolicy},
    template::{Start, original},
};

struct Node {
    state: TempDir,
    copies: Copies,
}

impl Node {
    fn new(images: Sharing, templates: Sharing) -> Self {
        let state = tempfile::tempdir().unwrap();
        let at = |name: &str| state.path().join(name);
        let copies = Copies {
            policy: SharingPolicy { images, templates },
            directory: at("copies"),
            places: [("images", at("images")), ("templates", at("templates"))],
            making: Default::default(),
        };
        Self { state, copies }
    }

    /// A layer of 3 MiB, of which the middle is a hole.
    fn layer(&self, name: &str) -> PathBuf {
        let path = self.state.path().join("images/layers").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(name.as_bytes(), 0).unwrap();
        file.write_all_at(b"end", (3 << 20) - 3).unwrap();
        path
    }

    async fn image(&self, namespace: &str, machine: &str, layer: &Path) -> Result<PathBuf, String> {
        let device = ImageDevice {
            extents: vec![Extent {
                path: layer.to_owned(),
                offset: 0,
                length: 3 << 20,
            }],
            size: 3 << 20,
        };
        let machine = self.state.path().join("machines").join(machine);
        let own = self.copies.image(namespace, &machine, &device).await?;
        assert_eq!((own.extents[0].offset, own.extents[0].length, own.size), (0, 3 << 20, 3 << 20));
        Ok(own.extents[0].path.clone())
    }
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

#[tokio::test]
async fn a_host_shares_files_a_namespace_those_of_its_pods_and_nobody_none() {
    for (policy, same_namespace, other_namespace) in [
        (Sharing::Host, true, true),
        (Sharing::Namespace, true, false),
        (Sharing::None, false, false),
    ] {
        let node = Node::new(policy, Sharing::Host);
        let layer = node.layer("one");
        let first = node.image("a", "1", &layer).await.unwrap();
        assert_eq!(inode(&first) == inode(&layer), policy == Sharing::Host, "{policy:?}");
        let (second, third) = (
            node.image("a", "2", &layer).await.unwrap(),
            node.image("b", "3", &layer).await.unwrap(),
        );
        assert_eq!(inode(&first) == inode(&second), same_namespace, "{policy:?}");
        assert_eq!(inode(&first) == inode(&third), other_namespace, "{policy:?}");
        for copy in [first, second, third] {
            assert!(fs::read(&copy).unwrap() == fs::read(&layer).unwrap(), "{policy:?}");
        }
        let template = node.state.path().join("templates/key/memory");
        let machine = node.state.path().join("machines/1");
        let place = ("a", machine.as_path());
        let (found, start) = node.copies.own_template(place, &booted(), offered(&template)).await;
        assert_eq!((memory(&found), start), (Some(template.as_path()), Start::Copy(7)));
    }
}

fn booted() -> MachineSpec {
    original(&Guest::default(), &Machines::default(), Path::new("/m/vsock.sock"))
}

/// A machine as a copy of a template with this memory.
fn offered(memory: &Path) -> (MachineSpec, Start) {
    let restore = Restore {
        state: FileSource::Path(memory.with_file_name("state")),
        memory: FileSource::Path(memory.to_owned()),
        working_set: None,
        verify: false,
    };
    let spec = MachineSpec {
        restore: Some(restore),
        ..booted()
    };
    (spec, Start::Copy(7))
}

fn memory(spec: &MachineSpec) -> Option<&Path> {
    match &spec.restore.as_ref()?.memory {
        FileSource::Path(path) => Some(path),
        FileSource::Passed(_) => None,
    }
}

#[tokio::test]
async fn a_template_that_cannot_be_copied_leaves_the_machine_to_boot_and_says_why() {
    let node = Node::new(Sharing::Host, Sharing::Namespace);
    let template = node.state.path().join("templates/key/memory");
    let machine = node.state.path().join("machines/1");
    let place = ("a", machine.as_path());
    let (found, start) = node.copies.own_template(place, &booted(), offered(&template)).await;
    assert_eq!(found, booted());
    assert!(
        matches!(&start, Start::Boot(why) if why.contains("key/memory, which this pod may not share: No such file")),
        "{start:?}"
    );
    fs::create_dir_all(template.parent().unwrap()).unwrap();
    fs::write(&template, "all of it").unwrap();
    let (found, start) = node.copies.own_template(place, &booted(), offered(&template)).await;
    let own = memory(&found).unwrap();
    assert!(start == Start::Copy(7) && own != template && fs::read(own).unwrap() == b"all of it");
    let (found, start) = node
        .copies
        .own_template(place, &booted(), (booted(), Start::Boot("so".into())))
        .await;
    assert_eq!((found, start), (booted(), Start::Boot("so".into())));
}

#[tokio::test]
async fn holes_stay_holes_and_one_copy_is_made_for_all_who_ask_at_once() {
    let node = Node::new(Sharing::Namespace, Sharing::Namespace);
    let layer = node.layer("one");
    let asked = (0..8).map(|machine| {
        let (machine, node, layer) = (machine.to_string(), &node, &layer);
        async move { node.image("a", &machine, layer).await.unwrap() }
    });
    let copies: BTreeSet<_> = futures_util::future::join_all(asked).await.into_iter().collect();
    assert_eq!(copies.len(), 1);
    let copy = copies.first().unwrap();
    assert!(fs::metadata(copy).unwrap().blocks() * 512 < 1 << 20, "a hole was filled");
    assert_eq!(fs::read_dir(copy.parent().unwrap()).unwrap().count(), 1, "nothing is left over");
}

#[tokio::test]
async fn what_cannot_be_copied_is_named_and_leaves_no_copy() {
    let node = Node::new(Sharing::Namespace, Sharing::Namespace);
    let missing = node.state.path().join("images/layers/none");
    let error = node.image("a", "1", &missing).await.unwrap_err();
    assert!(
        error.starts_with("copy ") && error.contains("layers/none, which this pod may not share: No such file"),
        "{error}"
    );
    let elsewhere = node.image("a", "1", Path::new("/etc/hostname")).await.unwrap_err();
    assert_eq!(elsewhere, "/etc/hostname is neither an image's nor a template's");
    // One that fails while it is written.
    let unreadable = node.state.path().join("images/layers/directory");
    fs::create_dir_all(unreadable.join("inside")).unwrap();
    assert!(node.image("a", "1", &unreadable).await.is_err());
    let left = fs::read_dir(node.state.path().join("copies/a/images/layers")).unwrap();
    assert_eq!(left.count(), 0, "a part of a copy is left");
    let layer = node.layer("late");
    let copy = node.image("a", "1", &layer).await.unwrap();
    assert_eq!(fs::read(copy).unwrap(), fs::read(layer).unwrap());
}

#[tokio::test]
async fn copies_go_with_the_last_pod_of_their_namespace_and_with_their_original() {
    let node = Node::new(Sharing::Namespace, Sharing::Namespace);
    node.copies.sweep(&BTreeSet::new());
    let (layer, other) = (node.layer("one"), node.layer("two"));
    let (ours, theirs) = (
        node.image("a", "1", &layer).await.unwrap(),
        node.image("b", "2", &layer).await.unwrap(),
    );
    let gone = node.image("a", "1", &other).await.unwrap();
    fs::remove_file(other).unwrap();
    node.copies.sweep(&["a".to_owned()].into());
    assert!(ours.exists() && !theirs.exists() && !gone.exists());
    assert_eq!(fs::read_dir(node.state.path().join("copies")).unwrap().count(), 1);
}

#[test]
fn a_node_without_shared_templates_says_why_machines_boot() {
    assert_eq!(Node::new(Sharing::None, Sharing::Namespace).copies.no_template(), None);
    let why = Node::new(Sharing::Host, Sharing::None).copies.no_template().unwrap();
    assert!(why.contains("sharing.templates"), "{why}");
}
