//! The EROFS metadata of one image: a tree in, one block-aligned metadata area out.
//!
//! Only what a read-only container root needs: 4 KiB blocks, extended inodes, regular files laid out plainly at block addresses
//! of the device (never tail-packed, DAX refuses those), directories and symlinks packed behind their inode where they fit.
//! Compression, chunks, shared extended attributes and 32-byte inodes are deliberately absent.

mod dirent;
mod inode;
mod layout;
mod superblock;
mod tree;
pub(crate) mod xattr;

pub(crate) use layout::Encoder;
pub(crate) use tree::{DataAt, Kind, Meta, NodeId, Time, Tree};

/// Bytes in a block.
pub(crate) const BLOCK: u64 = 4096;
/// What every part of a device is padded to, so that it can be mapped with huge pages.
pub(crate) const ALIGN: u64 = 2 << 20;
/// Longest name in a directory.
pub(crate) const NAME_MAX: usize = 255;

/// Blocks that `bytes` take.
pub(crate) const fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}
