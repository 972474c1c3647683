//! Paths inside a tree, with symlinks among their directories followed, at most forty of them as in Linux.

use crate::erofs::{Kind, Meta, NAME_MAX, NodeId, Tree};

const MAX_LINKS: usize = 40;

/// Why a path names nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unresolvable {
    #[error("its directory is a symlink that leads through too many others")]
    Links,
    #[error("its directory is a symlink to a name longer than 255 bytes")]
    Name,
}

/// What to do about directories that are missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Say that there is no such path.
    Fail,
    /// Make them, also in place of a file.
    Create,
}

/// The directory that `path` names, itself followed if it is a symlink.
pub(super) fn directory(tree: &mut Tree, path: &[u8], missing: Missing) -> Result<Option<NodeId>, Unresolvable> {
    // Components still to walk, the next one last; targets of symlinks are pushed on top.
    let mut todo: Vec<Vec<u8>> = components(path);
    let mut trail = vec![Tree::ROOT];
    let mut links = 0;
    while let Some(name) = todo.pop() {
        let dir = *trail.last().expect("the root is never popped");
        if name == b".." {
            if trail.len() > 1 {
                trail.pop();
            }
            continue;
        }
        let children = tree.children(dir).expect("only directories are on the trail");
        let child = children.get(&*name).copied();
        match child.map(|id| (id, &tree.node(id).kind)) {
            Some((id, Kind::Dir(_))) => trail.push(id),
            Some((_, Kind::Symlink(target))) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Unresolvable::Links);
                }
                if target.starts_with(b"/") {
                    trail.truncate(1);
                }
                todo.extend(components(target));
            }
            _ if missing == Missing::Fail => return Ok(None),
            _ if name.len() > NAME_MAX => return Err(Unresolvable::Name),
            _ => {
                let made = tree.add(
                    Meta {
                        mode: 0o755,
                        ..Meta::default()
                    },
                    Kind::Dir(Default::default()),
                );
                let children = tree.children_mut(dir).expect("only directories are on the trail");
                children.insert(name.into(), made);
                trail.push(made);
            }
        }
    }
    Ok(trail.last().copied())
}

/// Components in reverse, without those that name the directory itself.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(tree: &mut Tree, dir: NodeId, name: &str, target: &str) {
        let id = tree.add(Meta::default(), Kind::Symlink(target.into()));
        tree.children_mut(dir).unwrap().insert(name.as_bytes().into(), id);
    }

    #[test]
    fn symlinks_never_lead_out_of_the_root() {
        let mut tree = Tree::new();
        let usr = directory(&mut tree, b"usr/lib", Missing::Create).unwrap().unwrap();
        link(&mut tree, Tree::ROOT, "lib", "../../usr/./lib");
        link(&mut tree, Tree::ROOT, "abs", "/usr/lib");
        assert_eq!(directory(&mut tree, b"lib", Missing::Fail), Ok(Some(usr)));
        assert_eq!(directory(&mut tree, b"abs", Missing::Fail), Ok(Some(usr)));
        assert_eq!(directory(&mut tree, b"nope/x", Missing::Fail), Ok(None));
    }

    #[test]
    fn symlinks_that_lead_to_themselves_are_an_error() {
        let mut tree = Tree::new();
        link(&mut tree, Tree::ROOT, "a", "b");
        link(&mut tree, Tree::ROOT, "b", "a");
        assert_eq!(directory(&mut tree, b"a/x", Missing::Create), Err(Unresolvable::Links));
    }

    #[test]
    fn names_too_long_for_a_directory_cannot_come_from_a_link() {
        let mut tree = Tree::new();
        link(&mut tree, Tree::ROOT, "a", &"x".repeat(300));
        assert_eq!(directory(&mut tree, b"a", Missing::Create), Err(Unresolvable::Name));
    }
}
