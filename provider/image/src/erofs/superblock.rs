//! The superblock: 128 bytes at offset 1024 of block 0, with the checksum over the rest of that block.

use super::BLOCK;

const MAGIC: u32 = 0xE0F5_E1E2;
/// Where the superblock lies in its block.
const OFFSET: usize = 1024;
/// The superblock's block carries a CRC-32C.
const COMPAT_CHECKSUM: u32 = 0x1;
/// The inodes' times are modification times.
const COMPAT_MTIME: u32 = 0x2;

/// What varies between two superblocks of ours.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0 of the device.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut block = vec![0u8; BLOCK as usize];
        let mut put = |at: usize, bytes: &[u8]| block[OFFSET + at..OFFSET + at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[BLOCK.trailing_zeros() as u8]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.meta_block.to_le_bytes());
        put(48, &self.uuid);
        // The kernel's CRC starts from all ones and is not inverted at the end, the crate's is.
        let checksum = !crc32c::crc32c(&block[OFFSET..]);
        block[OFFSET + 4..OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
        block
    }
}
