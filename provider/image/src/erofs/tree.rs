//! The file system tree an image's metadata is made from: an arena of nodes, where two names of one node are a hard link.

use std::collections::BTreeMap;

/// A node's place in its tree.
pub(crate) type NodeId = usize;

/// A moment, as tar and EROFS keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Time {
    /// Seconds since 1970, negative before.
    pub(crate) secs: i64,
    /// Nanoseconds past `secs`, below one thousand million.
    pub(crate) nanos: u32,
}

/// What every kind of file has.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Meta {
    /// Permission bits with setuid, setgid and sticky; no file type.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Whole names (`user.x`) and values, only such that `xattr::supported` accepts.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where a file's bytes lie: a block of one of the data extents that follow the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataAt {
    pub(crate) extent: usize,
    pub(crate) block: u64,
}

/// The kinds of file, each with its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Dir(BTreeMap<Box<[u8]>, NodeId>),
    File { size: u64, at: DataAt },
    Symlink(Vec<u8>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}

/// A tree under one root directory. Nodes that no name reaches any more stay in the arena and are not written.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// The root directory's id.
    pub(crate) const ROOT: NodeId = 0;

    /// A tree of one empty directory.
    pub(crate) fn new() -> Self {
        Self {
            nodes: vec![Node {
                meta: Meta {
                    mode: 0o755,
                    ..Meta::default()
                },
                kind: Kind::Dir(BTreeMap::new()),
            }],
        }
    }

    /// Adds a node that no name reaches yet.
    pub(crate) fn add(&mut self, meta: Meta, kind: Kind) -> NodeId {
        self.nodes.push(Node { meta, kind });
        self.nodes.len() - 1
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    /// How many nodes were ever added; ids are below it.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The children of a directory, or nothing where `id` is another kind of file.
    pub(crate) fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, NodeId>> {
        match &self.nodes[id].kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }

    /// The children of a directory, to change.
    pub(crate) fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, NodeId>> {
        match &mut self.nodes[id].kind {
            Kind::Dir(children) => Some(children),
            _ => None,
        }
    }
}
