//! Which template machines are offered, and when there is none.

use super::*;
use crate::{
    config::{Guest, Machines, tests::GOOD},
    template::original,
};

#[test]
fn what_could_not_be_made_is_tried_again_soon_and_then_less_and_less_often() {
    let seconds = [1, 2, 3, 6, 7, 8, 1_000].map(|missed| again(missed).as_secs());
    assert_eq!(seconds, [10, 20, 40, 320, 600, 600, 600]);
}

/// A template of its own in a directory of this name.
fn template(root: &Path, name: &str) -> Template {
    let (kernel, directory) = (root.join("kernel"), root.join("templates").join(name));
    if !kernel.exists() {
        fs::write(&kernel, "one").unwrap();
    }
    fs::create_dir_all(&directory).unwrap();
    let of = vec![(kernel.clone(), Stamp::of(&kernel))];
    Template { directory, of }
}

fn config(root: &Path, more: &str) -> Config {
    let text = format!("{GOOD}stateDir: {}\n{more}", root.display());
    Config::parse(Path::new("config.yaml"), &text).unwrap()
}

/// Those of a node that has made its first.
fn templates(root: &Path) -> Templates {
    let templates = Templates::new(&config(root, ""));
    templates.put(Ok(template(root, "key")));
    templates
}

/// The number of the template that a machine is offered.
fn copied(templates: &Templates) -> u64 {
    match templates.offer(machine()).1 {
        Start::Copy(number) => number,
        Start::Boot(why) => panic!("{why}"),
    }
}

fn machine() -> MachineSpec {
    MachineSpec {
        comb: None,
        ..original(&Guest::default(), &Machines::default(), Path::new("/m/vsock.sock"))
    }
}

#[test]
fn a_replaced_guest_is_booted() {
    let root = tempfile::tempdir().unwrap();
    let templates = templates(root.path());
    copied(&templates);
    fs::write(root.path().join("kernel"), "another").unwrap();
    let (spec, start) = templates.offer(machine());
    assert_eq!((spec.restore, spec.comb), (None, None));
    assert!(matches!(start, Start::Boot(why) if why.contains("replaced")));
}

#[test]
fn a_template_whose_copy_failed_is_gone_and_after_some_there_are_no_more() {
    let root = tempfile::tempdir().unwrap();
    let templates = templates(root.path());
    let first = copied(&templates);
    templates.failed(first, "it was cold");
    templates.failed(first, "so was its sibling");
    assert!(!root.path().join("templates/key").exists());
    let (_, start) = templates.offer(machine());
    assert!(matches!(start, Start::Boot(why) if why.contains("it was cold") && why.contains("another is being made")));
    for name in ["second", "third"] {
        templates.put(Ok(template(root.path(), name)));
        templates.failed(copied(&templates), "and again");
    }
    let (_, start) = templates.offer(machine());
    assert!(matches!(start, Start::Boot(why) if why.contains("3 templates") && why.contains("and again")));
}

#[test]
fn a_copy_of_an_old_template_that_fails_late_takes_nothing_from_the_new_one() {
    let root = tempfile::tempdir().unwrap();
    let templates = templates(root.path());
    let old = copied(&templates);
    templates.put(Ok(template(root.path(), "new")));
    templates.failed(old, "it was slow");
    assert!(copied(&templates) != old && root.path().join("templates/new").exists());
}

#[test]
fn only_the_template_of_the_key_is_left() {
    let root = tempfile::tempdir().unwrap();
    let templates = templates(root.path());
    fs::create_dir_all(templates.machine_dir()).unwrap();
    templates.clear(Some("key")).unwrap();
    let left: Vec<_> = fs::read_dir(&templates.directory)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["key"]);
    templates.clear(None).unwrap();
    assert!(fs::read_dir(&templates.directory).unwrap().next().is_none());
}

#[test]
fn a_template_that_was_cut_short_is_not_whole() {
    let root = tempfile::tempdir().unwrap();
    assert!(!is_whole(root.path()));
    for name in ["state", "memory", WORKING_SET] {
        fs::write(root.path().join(name), "kvmsnap\n").unwrap();
    }
    assert!(!is_whole(root.path()));
}
