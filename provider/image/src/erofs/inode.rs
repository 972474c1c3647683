//! The 64-byte extended inode.

use super::tree::{Kind, Node};
use super::xattr;

/// Bytes of an inode, and what inodes are aligned to: so none straddles a block.
pub(super) const SIZE: u64 = 64;
/// A node's number counts units of this many bytes from the metadata's start.
pub(super) const SLOT: u64 = 32;

/// Where an inode's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// In whole blocks from this address of the device.
    Blocks(u32),
    /// Right behind the inode and its attributes.
    Inline,
    /// There is none, or it is a device number.
    None,
}

/// What an inode says that its node does not know.
pub(super) struct Placed {
    pub(super) content: Content,
    pub(super) size: u64,
    pub(super) ino: u32,
    pub(super) nlink: u32,
}

/// The Linux encoding of a device number.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// Appends the inode with its attributes.
pub(super) fn encode(node: &Node, placed: &Placed, out: &mut Vec<u8>) {
    let layout: u16 = if placed.content == Content::Inline { 2 } else { 0 };
    let (kind, device) = match &node.kind {
        Kind::File { .. } => (0o100_000, 0),
        Kind::Dir(_) => (0o040_000, 0),
        Kind::Symlink(_) => (0o120_000, 0),
        Kind::Fifo => (0o010_000, 0),
        Kind::Char { major, minor } => (0o020_000, device(*major, *minor)),
        Kind::Block { major, minor } => (0o060_000, device(*major, *minor)),
    };
    let address = match placed.content {
        Content::Blocks(block) => block,
        Content::Inline | Content::None => device,
    };
    let xattrs = xattr::encoded_len(&node.meta.xattrs);
    out.extend_from_slice(&(1 | layout << 1).to_le_bytes());
    out.extend_from_slice(&xattr::icount(xattrs).to_le_bytes());
    out.extend_from_slice(&(kind | (node.meta.mode & 0o7777)).to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&placed.size.to_le_bytes());
    out.extend_from_slice(&address.to_le_bytes());
    out.extend_from_slice(&placed.ino.to_le_bytes());
    out.extend_from_slice(&node.meta.uid.to_le_bytes());
    out.extend_from_slice(&node.meta.gid.to_le_bytes());
    out.extend_from_slice(&node.meta.mtime.secs.to_le_bytes());
    out.extend_from_slice(&node.meta.mtime.nanos.to_le_bytes());
    out.extend_from_slice(&placed.nlink.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    xattr::encode(&node.meta.xattrs, out);
}
