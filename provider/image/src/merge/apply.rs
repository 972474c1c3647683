//! One layer applied after the other: what it removes from the layers below first, then its entries in the order of its tar.

use super::resolve::{Missing, Unresolvable, directory};
use crate::erofs::{DataAt, Kind, Meta, NodeId, Tree};
use crate::layer::{Entry, EntryKind, LayerIndex};

/// Why layers do not make an image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeError {
    #[error("entry {path:?}: {reason}")]
    BadEntry { path: String, reason: String },
    #[error("more than {max} files in an image")]
    TooManyEntries { max: u64 },
}

/// Lays the layers over one another, the lowest first. `extents` gives the data extent of each layer's files.
pub(crate) fn merge<'a>(layers: impl IntoIterator<Item = (&'a LayerIndex, usize)>, max_entries: u64) -> Result<Tree, MergeError> {
    let mut tree = Tree::new();
    for (layer, extent) in layers {
        for path in &layer.opaques {
            if let Some(dir) = find_directory(&mut tree, path)
                && let Some(children) = tree.children_mut(dir)
            {
                children.clear();
            }
        }
        for path in &layer.whiteouts {
            let (parent, name) = split(path);
            if let Some(dir) = find_directory(&mut tree, parent)
                && let Some(children) = tree.children_mut(dir)
            {
                children.remove(name);
            }
        }
        for entry in &layer.entries {
            apply(&mut tree, entry, extent)?;
            if tree.len() as u64 > max_entries {
                return Err(MergeError::TooManyEntries { max: max_entries });
            }
        }
    }
    Ok(tree)
}

/// A directory of the layers below; what cannot be found needs no removal.
fn find_directory(tree: &mut Tree, path: &[u8]) -> Option<NodeId> {
    directory(tree, path, Missing::Fail).ok().flatten()
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn bad(entry: &Entry, reason: impl Into<String>) -> MergeError {
    MergeError::BadEntry {
        path: String::from_utf8_lossy(&entry.path).into_owned(),
        reason: reason.into(),
    }
}

fn apply(tree: &mut Tree, entry: &Entry, extent: usize) -> Result<(), MergeError> {
    if entry.path.is_empty() {
        tree.node_mut(Tree::ROOT).meta = entry.meta.clone();
        return Ok(());
    }
    let unresolvable = |error: Unresolvable| bad(entry, error.to_string());
    let (parent, name) = split(&entry.path);
    let dir = directory(tree, parent, Missing::Create).map_err(unresolvable)?;
    let dir = dir.expect("missing directories were made");
    let there = tree.children(dir).and_then(|children| children.get(name)).copied();
    let kind = match &entry.kind {
        EntryKind::Dir => {
            // A directory over a directory only renews what is said of it.
            if let Some(there) = there
                && tree.children(there).is_some()
            {
                tree.node_mut(there).meta = entry.meta.clone();
                return Ok(());
            }
            Kind::Dir(Default::default())
        }
        EntryKind::Hardlink(target) => {
            let linked = find_file(tree, target).map_err(unresolvable)?;
            let linked = linked.ok_or_else(|| bad(entry, format!("it links to {:?}, which is not there", show(target))))?;
            if tree.children(linked).is_some() {
                return Err(bad(entry, format!("it links to {:?}, which is a directory", show(target))));
            }
            insert(tree, dir, name, linked);
            return Ok(());
        }
        EntryKind::File { size, block } => Kind::File {
            size: *size,
            at: DataAt { extent, block: *block },
        },
        EntryKind::Symlink(target) => Kind::Symlink(target.clone()),
        EntryKind::Char { major, minor } => Kind::Char {
            major: *major,
            minor: *minor,
        },
        EntryKind::Block { major, minor } => Kind::Block {
            major: *major,
            minor: *minor,
        },
        EntryKind::Fifo => Kind::Fifo,
    };
    let meta: Meta = entry.meta.clone();
    let made = tree.add(meta, kind);
    insert(tree, dir, name, made);
    Ok(())
}

/// Gives a node a name, in place of whatever had it.
fn insert(tree: &mut Tree, dir: NodeId, name: &[u8], node: NodeId) {
    let children = tree.children_mut(dir).expect("`directory` answers with directories");
    children.insert(name.into(), node);
}

fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// A file by its path; a symlink at the end is the file itself.
fn find_file(tree: &mut Tree, path: &[u8]) -> Result<Option<NodeId>, Unresolvable> {
    let (parent, name) = split(path);
    if name.is_empty() {
        return Ok(Some(Tree::ROOT));
    }
    let Some(dir) = directory(tree, parent, Missing::Fail)? else {
        return Ok(None);
    };
    Ok(tree.children(dir).and_then(|children| children.get(name)).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path.into(),
            meta: Meta {
                mode: 0o644,
                ..Meta::default()
            },
            kind,
        }
    }

    fn file(path: &str, block: u64) -> Entry {
        entry(path, EntryKind::File { size: 1, block })
    }

    fn layer(entries: Vec<Entry>, whiteouts: &[&str], opaques: &[&str]) -> LayerIndex {
        let paths = |list: &[&str]| list.iter().map(|path| path.as_bytes().to_vec()).collect();
        LayerIndex {
            entries,
            whiteouts: paths(whiteouts),
            opaques: paths(opaques),
            ..LayerIndex::default()
        }
    }

    fn merged(layers: &[LayerIndex]) -> Result<Tree, MergeError> {
        merge(layers.iter().enumerate().map(|(extent, layer)| (layer, extent)), 1000)
    }

    fn paths(tree: &mut Tree) -> Vec<String> {
        let mut all = Vec::new();
        let mut todo = vec![(String::new(), Tree::ROOT)];
        while let Some((path, id)) = todo.pop() {
            for (name, child) in tree.children(id).into_iter().flatten() {
                let path = format!("{path}/{}", show(name));
                all.push(path.clone());
                todo.push((path, *child));
            }
        }
        all.sort();
        all
    }

    #[test]
    fn whiteouts_remove_only_what_lies_below() {
        let lower = layer(vec![file("a", 0), file("d/x", 1), file("d/y", 2), file("e/z", 3)], &[], &[]);
        let upper = layer(vec![file("a", 0), file("d/new", 1)], &["a", "e", "nowhere/b"], &["d"]);
        let mut tree = merged(&[lower, upper]).unwrap();
        assert_eq!(paths(&mut tree), ["/a", "/d", "/d/new"]);
        let a = find_file(&mut tree, b"a").unwrap().unwrap();
        assert_eq!(
            tree.node(a).kind,
            Kind::File {
                size: 1,
                at: DataAt { extent: 1, block: 0 }
            }
        );
    }

    #[test]
    fn files_and_directories_replace_each_other() {
        let one = layer(vec![entry("a", EntryKind::Dir), file("a/x", 0), file("b", 1)], &[], &[]);
        let two = layer(vec![file("a", 0), entry("b", EntryKind::Dir), file("b/y", 1)], &[], &[]);
        let three = layer(vec![file("a/z", 0)], &[], &[]);
        assert_eq!(paths(&mut merged(&[one.clone(), two.clone()]).unwrap()), ["/a", "/b", "/b/y"]);
        assert_eq!(paths(&mut merged(&[one, two, three]).unwrap()), ["/a", "/a/z", "/b", "/b/y"]);
    }

    #[test]
    fn a_directory_over_a_directory_keeps_its_children() {
        let one = layer(vec![file("d/x", 0)], &[], &[]);
        let two = layer(vec![entry("d", EntryKind::Dir)], &[], &[]);
        let mut tree = merged(&[one, two]).unwrap();
        assert_eq!(paths(&mut tree), ["/d", "/d/x"]);
        let dir = find_file(&mut tree, b"d").unwrap().unwrap();
        assert_eq!(tree.node(dir).meta.mode, 0o644);
    }

    #[test]
    fn hard_links_reach_files_of_lower_layers_and_outlive_their_other_name() {
        let one = layer(vec![file("a", 7)], &[], &[]);
        let two = layer(vec![entry("b", EntryKind::Hardlink(b"a".to_vec()))], &[], &[]);
        let three = layer(vec![file("a", 9)], &[], &[]);
        let mut tree = merged(&[one, two, three]).unwrap();
        let b = find_file(&mut tree, b"b").unwrap().unwrap();
        assert_eq!(
            tree.node(b).kind,
            Kind::File {
                size: 1,
                at: DataAt { extent: 0, block: 7 }
            }
        );
    }

    #[test]
    fn hard_links_to_nothing_or_to_directories_are_errors() {
        for target in ["gone", "d", ""] {
            let bad = layer(
                vec![entry("d", EntryKind::Dir), entry("b", EntryKind::Hardlink(target.into()))],
                &[],
                &[],
            );
            assert!(matches!(merged(&[bad]), Err(MergeError::BadEntry { .. })), "{target:?}");
        }
    }

    #[test]
    fn entries_below_a_symlink_land_where_it_leads() {
        let one = layer(
            vec![file("usr/lib/a", 0), entry("lib", EntryKind::Symlink(b"usr/lib".to_vec()))],
            &[],
            &[],
        );
        let two = layer(vec![file("lib/b", 0)], &["lib/a"], &[]);
        assert_eq!(paths(&mut merged(&[one, two]).unwrap()), ["/lib", "/usr", "/usr/lib", "/usr/lib/b"]);
    }

    #[test]
    fn directories_only_named_in_paths_count_too() {
        let deep = vec!["d"; 1500].join("/");
        let bomb = layer(vec![file(&deep, 0)], &[], &[]);
        assert!(matches!(merged(&[bomb]), Err(MergeError::TooManyEntries { max: 1000 })));
    }
}
