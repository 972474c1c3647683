//! Gives every reachable node its place in the metadata area, then writes the area front to back.
//!
//! Block 0 holds the superblock, inodes follow from block 1 (the root first, as its number has sixteen bits), then the blocks of
//! directories and symlinks too large to sit behind their inode. The data extents follow the padded area in the order given.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::inode::{self, Content, Placed};
use super::superblock::Superblock;
use super::tree::{Kind, NodeId, Tree};
use super::{ALIGN, BLOCK, blocks, dirent, xattr};

/// Content up to this size sits behind its inode; more would waste the rest of too many blocks.
const INLINE_MAX: u64 = 2048;
/// The first block of inodes.
const META_BLOCK: u64 = 1;

/// Why a tree cannot become a file system.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    /// Block addresses have 32 bits.
    #[error("the image has more than 16 TiB")]
    TooManyBlocks,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// Offset of the inode in the device; 0 says unreachable.
    at: u64,
    size: u64,
    content: Content,
    nlink: u32,
    parent: NodeId,
}

/// A tree with every node placed.
pub(crate) struct Encoder<'a> {
    tree: &'a Tree,
    places: Vec<Place>,
    /// Reachable nodes in the order of their inodes.
    order: Vec<NodeId>,
    meta_len: u64,
    extent_blocks: Vec<u64>,
    total_blocks: u32,
}

impl<'a> Encoder<'a> {
    /// Lays out `tree`, whose files lie in extents of these lengths in bytes (multiples of 2 MiB).
    pub(crate) fn new(tree: &'a Tree, extents: &[u64]) -> Result<Self, EncodeError> {
        let unplaced = Place {
            at: 0,
            size: 0,
            content: Content::None,
            nlink: 0,
            parent: Tree::ROOT,
        };
        let mut this = Self {
            tree,
            places: vec![unplaced; tree.len()],
            order: Vec::new(),
            meta_len: 0,
            extent_blocks: Vec::new(),
            total_blocks: 0,
        };
        let end = this.place_inodes();
        let end = this.place_blocks(end);
        this.meta_len = end.next_multiple_of(ALIGN);
        let mut next = blocks(this.meta_len);
        for extent in extents {
            this.extent_blocks.push(next);
            next += blocks(*extent);
        }
        this.total_blocks = u32::try_from(next).map_err(|_| EncodeError::TooManyBlocks)?;
        Ok(this)
    }

    /// Length of the padded metadata area.
    pub(crate) fn meta_len(&self) -> u64 {
        self.meta_len
    }

    /// Walks breadth first, so that the root comes first and neighbours in a directory stay neighbours.
    fn place_inodes(&mut self) -> u64 {
        let mut at = META_BLOCK * BLOCK;
        let mut queue = VecDeque::from([(Tree::ROOT, Tree::ROOT)]);
        while let Some((id, parent)) = queue.pop_front() {
            let place = &mut self.places[id];
            place.nlink += 1;
            if place.at != 0 {
                continue;
            }
            let node = self.tree.node(id);
            let head = inode::SIZE + xattr::encoded_len(&node.meta.xattrs) as u64;
            let (size, packable) = match &node.kind {
                Kind::Dir(_) => (dirent::encoded_len(self.tree, id), true),
                Kind::Symlink(target) => (target.len() as u64, true),
                Kind::File { size, .. } => (*size, false),
                _ => (0, false),
            };
            place.size = size;
            place.parent = parent;
            at = at.next_multiple_of(inode::SIZE);
            if packable && size <= INLINE_MAX {
                place.content = Content::Inline;
                // Packed content must not cross a block.
                if (at + head) % BLOCK + size > BLOCK {
                    at = ((at + head).next_multiple_of(BLOCK) - head).next_multiple_of(inode::SIZE);
                }
                place.at = at;
                at += head + size;
            } else {
                place.at = at;
                at += head;
            }
            self.order.push(id);
            if let Kind::Dir(children) = &node.kind {
                // The directory's own `.`, and one `..` of each directory in it.
                let subdirs = children.values().filter(|child| self.tree.children(**child).is_some()).count();
                self.places[id].nlink += 1 + u32::try_from(subdirs).unwrap_or(u32::MAX - 2);
                queue.extend(children.values().map(|child| (*child, id)));
            }
        }
        at.next_multiple_of(BLOCK)
    }

    /// Addresses for directories and symlinks that were not packed.
    fn place_blocks(&mut self, start: u64) -> u64 {
        let mut at = start;
        for id in &self.order {
            let packable = matches!(self.tree.node(*id).kind, Kind::Dir(_) | Kind::Symlink(_));
            let place = &mut self.places[*id];
            if packable && place.content != Content::Inline {
                // An address beyond 32 bits ends the whole layout with an error later.
                place.content = Content::Blocks(u32::try_from(at / BLOCK).unwrap_or(u32::MAX));
                at += place.size.next_multiple_of(BLOCK);
            }
        }
        at
    }

    fn nid(&self, id: NodeId) -> u64 {
        (self.places[id].at - META_BLOCK * BLOCK) / inode::SLOT
    }

    fn content(&self, id: NodeId) -> Content {
        match &self.tree.node(id).kind {
            Kind::File { size: 1.., at } => {
                let block = self.extent_blocks[at.extent] + at.block;
                Content::Blocks(u32::try_from(block).expect("the device's block count was checked"))
            }
            _ => self.places[id].content,
        }
    }

    /// The bytes of a directory or a symlink.
    fn body(&self, id: NodeId, out: &mut Vec<u8>) {
        match &self.tree.node(id).kind {
            Kind::Dir(_) => dirent::encode(self.tree, id, self.places[id].parent, |child| self.nid(child), out),
            Kind::Symlink(target) => out.extend_from_slice(target),
            _ => {}
        }
    }

    /// Writes the metadata up to its last byte used; the padding behind it is the caller's, as a hole.
    pub(crate) fn write(&self, uuid: [u8; 16], out: impl Write) -> io::Result<()> {
        let mut out = Positioned { out, at: 0 };
        let superblock = Superblock {
            root_nid: u16::try_from(self.nid(Tree::ROOT)).expect("the root is placed first"),
            inodes: self.order.len() as u64,
            blocks: self.total_blocks,
            meta_block: META_BLOCK as u32,
            uuid,
        };
        out.put(&superblock.encode())?;
        let mut buf = Vec::new();
        for (ino, id) in self.order.iter().enumerate() {
            let place = &self.places[*id];
            out.pad_to(place.at)?;
            buf.clear();
            let placed = Placed {
                content: self.content(*id),
                size: place.size,
                ino: u32::try_from(ino + 1).unwrap_or(u32::MAX),
                nlink: place.nlink,
            };
            inode::encode(self.tree.node(*id), &placed, &mut buf);
            if place.content == Content::Inline {
                self.body(*id, &mut buf);
            }
            out.put(&buf)?;
        }
        for id in &self.order {
            if let Content::Blocks(block) = self.places[*id].content {
                out.pad_to(u64::from(block) * BLOCK)?;
                buf.clear();
                self.body(*id, &mut buf);
                out.put(&buf)?;
            }
        }
        out.out.flush()
    }
}

/// A writer that knows how far it is.
struct Positioned<W> {
    out: W,
    at: u64,
}

impl<W: Write> Positioned<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad_to(&mut self, at: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        while self.at < at {
            let count = (at - self.at).min(BLOCK) as usize;
            self.put(&ZEROS[..count])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use super::*;
    use crate::erofs::{DataAt, Meta};

    #[test]
    fn a_file_of_more_than_four_gib_keeps_its_end() {
        let size = (5u64 << 30) + 3;
        let mut tree = Tree::new();
        let at = DataAt { extent: 1, block: 1 };
        let file = tree.add(
            Meta {
                mode: 0o644,
                ..Meta::default()
            },
            Kind::File { size, at },
        );
        tree.children_mut(Tree::ROOT)
            .unwrap()
            .extend(BTreeMap::from([(b"huge"[..].into(), file)]));
        let extents = [ALIGN, 6 << 30];
        let encoder = Encoder::new(&tree, &extents).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let (device, root) = (dir.path().join("device"), dir.path().join("root"));
        let out = OpenOptions::new().create_new(true).write(true).open(&device).unwrap();
        encoder.write([1; 16], &out).unwrap();
        out.set_len(encoder.meta_len() + extents.iter().sum::<u64>()).unwrap();
        out.write_all_at(b"end", encoder.meta_len() + ALIGN + BLOCK + (5 << 30)).unwrap();
        fs::create_dir(&root).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "erofs", "-o", "loop,ro"])
            .arg(&device)
            .arg(&root)
            .status()
            .unwrap();
        assert!(mounted.success());
        let huge = File::open(root.join("huge")).unwrap();
        let mut end = [1; 8];
        let read = huge.read_exact_at(&mut end, size - 8);
        let len = huge.metadata().unwrap().len();
        drop(huge);
        assert!(Command::new("umount").arg(&root).status().unwrap().success());
        read.unwrap();
        assert_eq!((len, &end), (size, b"\0\0\0\0\0end"));
    }

    #[test]
    fn more_blocks_than_addresses_are_an_error() {
        assert!(Encoder::new(&Tree::new(), &[16 << 40]).is_err());
    }
}
