//! What a guest has: files that it knows, by number, and files that it has open. Both are bounded. A file's number is never used again; the
//! guest counts how often it was told it, and says when it has forgotten it.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{fs::FileType, io::Errno};

/// Number of the directory itself (`FUSE_ROOT_ID`).
pub(crate) const ROOT: u64 = 1;

/// A file that the guest knows.
#[derive(Debug)]
pub(crate) struct Node {
    /// Opened with O_PATH: a name for the file, not a way to its content.
    pub(crate) fd: OwnedFd,
    pub(crate) kind: FileType,
    /// Device and inode number.
    pub(crate) key: (u64, u64),
}

/// A file or directory that the guest has open.
#[derive(Debug)]
pub(crate) enum Handle {
    File(File),
    /// Whoever reads it moves its place.
    Directory(Mutex<OwnedFd>),
}

#[derive(Debug, Default)]
struct Nodes {
    /// With how often the guest was told of each.
    by_number: HashMap<u64, (Arc<Node>, u64)>,
    by_key: HashMap<(u64, u64), u64>,
    last: u64,
}

#[derive(Debug, Default)]
struct Handles {
    by_number: HashMap<u64, Arc<Handle>>,
    last: u64,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Table {
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    most_nodes: usize,
    most_handles: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// One that knows nothing but the directory.
    pub(crate) fn new(root: Node, most_nodes: usize, most_handles: usize) -> Self {
        let table = Self {
            nodes: Mutex::default(),
            handles: Mutex::default(),
            most_nodes,
            most_handles,
        };
        {
            let mut nodes = lock(&table.nodes);
            nodes.last = ROOT;
            nodes.by_key.insert(root.key, ROOT);
            nodes.by_number.insert(ROOT, (Arc::new(root), 1));
        }
        table
    }

    /// Forgets everything but the directory.
    pub(crate) fn clear(&self) {
        let mut nodes = lock(&self.nodes);
        nodes.by_number.retain(|number, _| *number == ROOT);
        nodes.by_key.retain(|_, number| *number == ROOT);
        lock(&self.handles).by_number.clear();
    }

    /// A file that the guest knows.
    pub(crate) fn node(&self, number: u64) -> Result<Arc<Node>, Errno> {
        let nodes = lock(&self.nodes);
        nodes.by_number.get(&number).map(|(node, _)| Arc::clone(node)).ok_or(Errno::STALE)
    }

    /// The number of a file that the guest is told of, which may be the one that it knows already.
    pub(crate) fn learn(&self, node: Node) -> Result<u64, Errno> {
        let mut nodes = lock(&self.nodes);
        if let Some(number) = nodes.by_key.get(&node.key).copied() {
            if let Some((_, told)) = nodes.by_number.get_mut(&number) {
                *told += 1;
            }
            return Ok(number);
        }
        if nodes.by_number.len() >= self.most_nodes {
            return Err(Errno::NFILE);
        }
        nodes.last += 1;
        let number = nodes.last;
        nodes.by_key.insert(node.key, number);
        nodes.by_number.insert(number, (Arc::new(node), 1));
        Ok(number)
    }

    /// The guest has forgotten so many of the times that it was told.
    pub(crate) fn forget(&self, number: u64, times: u64) {
        let mut nodes = lock(&self.nodes);
        if number == ROOT {
            return;
        }
        let Some((node, told)) = nodes.by_number.get_mut(&number) else {
            return;
        };
        *told = told.saturating_sub(times);
        if *told == 0 {
            let key = node.key;
            nodes.by_number.remove(&number);
            nodes.by_key.remove(&key);
        }
    }

    /// The number of what the guest opens.
    pub(crate) fn open(&self, handle: Handle) -> Result<u64, Errno> {
        let mut handles = lock(&self.handles);
        if handles.by_number.len() >= self.most_handles {
            return Err(Errno::NFILE);
        }
        handles.last += 1;
        let number = handles.last;
        handles.by_number.insert(number, Arc::new(handle));
        Ok(number)
    }

    /// What the guest has open.
    pub(crate) fn handle(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        lock(&self.handles).by_number.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// The guest closes it.
    pub(crate) fn close(&self, number: u64) -> Result<(), Errno> {
        lock(&self.handles).by_number.remove(&number).map(drop).ok_or(Errno::BADF)
    }
}
