//! Directory content: blocks of 12-byte entries followed by their names, sorted over the whole directory.

use super::BLOCK;
use super::tree::{Kind, NodeId, Tree};

const ENTRY: usize = 12;

/// The file type a directory entry names.
fn file_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Dir(_) => 2,
        Kind::Char { .. } => 3,
        Kind::Block { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// All names of a directory with `.` and `..` in their sorted place.
fn names(tree: &Tree, dir: NodeId, parent: NodeId) -> Vec<(&[u8], NodeId)> {
    let children = tree.children(dir).into_iter().flatten();
    let mut all: Vec<(&[u8], NodeId)> = children.map(|(name, id)| (&**name, *id)).collect();
    for (name, id) in [(&b"."[..], dir), (b"..", parent)] {
        let place = all.partition_point(|(other, _)| *other < name);
        all.insert(place, (name, id));
    }
    all
}

/// How many of `names` go into the next block, and how many bytes of it they take.
fn fill(names: &[(&[u8], NodeId)]) -> (usize, usize) {
    let mut used = 0;
    let mut count = 0;
    for (name, _) in names {
        let with = used + ENTRY + name.len();
        if with > BLOCK as usize {
            break;
        }
        used = with;
        count += 1;
    }
    (count, used)
}

/// The size of a directory's content.
pub(super) fn encoded_len(tree: &Tree, dir: NodeId) -> u64 {
    let all = names(tree, dir, dir);
    let mut rest = &all[..];
    let mut len = 0;
    loop {
        let (count, used) = fill(rest);
        rest = &rest[count..];
        if rest.is_empty() {
            return len + used as u64;
        }
        len += BLOCK;
    }
}

/// Appends a directory's content; `nid` tells each node's number on disk.
pub(super) fn encode(tree: &Tree, dir: NodeId, parent: NodeId, nid: impl Fn(NodeId) -> u64, out: &mut Vec<u8>) {
    let all = names(tree, dir, parent);
    let mut rest = &all[..];
    while !rest.is_empty() {
        let (count, used) = fill(rest);
        let (here, later) = rest.split_at(count);
        let mut name_at = count * ENTRY;
        for (name, id) in here {
            out.extend_from_slice(&nid(*id).to_le_bytes());
            out.extend_from_slice(&(name_at as u16).to_le_bytes());
            out.extend_from_slice(&[file_type(&tree.node(*id).kind), 0]);
            name_at += name.len();
        }
        for (name, _) in here {
            out.extend_from_slice(name);
        }
        if !later.is_empty() {
            out.resize(out.len() + BLOCK as usize - used, 0);
        }
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::Meta;

    #[test]
    fn names_are_sorted_with_the_dots_among_them_and_the_length_is_foretold() {
        let mut tree = Tree::new();
        for name in ["!first", "-second", "a", "zz"].map(str::as_bytes) {
            let id = tree.add(Meta::default(), Kind::Fifo);
            tree.children_mut(Tree::ROOT).unwrap().insert(name.into(), id);
        }
        let sorted: Vec<&[u8]> = names(&tree, Tree::ROOT, Tree::ROOT).into_iter().map(|(name, _)| name).collect();
        assert_eq!(sorted, [&b"!first"[..], b"-second", b".", b"..", b"a", b"zz"]);

        for i in 0..5000 {
            let id = tree.add(Meta::default(), Kind::Fifo);
            tree.children_mut(Tree::ROOT)
                .unwrap()
                .insert(format!("file-{i}").into_bytes().into(), id);
        }
        let mut out = Vec::new();
        encode(&tree, Tree::ROOT, Tree::ROOT, |id| id as u64, &mut out);
        assert_eq!(out.len() as u64, encoded_len(&tree, Tree::ROOT));
    }
}
