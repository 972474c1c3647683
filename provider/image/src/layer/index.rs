//! A layer's index: every entry of its tar, and how that is kept in a file.
//!
//! The file is a magic number with a version, a CRC-32C and postcard. A file that does not check out is no index: the layer is
//! fetched again.

use serde::{Deserialize, Serialize};

use crate::erofs::Meta;

const MAGIC: &[u8; 8] = b"KVMLIDX\x01";

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EntryKind {
    Dir,
    /// Content from `block` of the layer's data on.
    File {
        size: u64,
        block: u64,
    },
    Symlink(Vec<u8>),
    /// Another name of the file at this path.
    Hardlink(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// One entry, its path normalised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) kind: EntryKind,
}

/// All that is known of a layer but the bytes of its files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LayerIndex {
    /// In the order of the tar.
    pub(crate) entries: Vec<Entry>,
    /// Paths of lower layers that are gone.
    pub(crate) whiteouts: Vec<Vec<u8>>,
    /// Directories whose content in lower layers is gone.
    pub(crate) opaques: Vec<Vec<u8>>,
    /// Length of the data file, a multiple of 2 MiB.
    pub(crate) data_len: u64,
    /// Bytes of the decompressed tar.
    pub(crate) tar_len: u64,
}

impl LayerIndex {
    /// The file's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let body = postcard::to_allocvec(self).expect("plain data always serialises into memory");
        let mut file = Vec::with_capacity(body.len() + 12);
        file.extend_from_slice(MAGIC);
        file.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        file.extend_from_slice(&body);
        file
    }

    /// Reads such bytes back, or says that they are none.
    pub(crate) fn decode(file: &[u8]) -> Option<Self> {
        let rest = file.strip_prefix(MAGIC)?;
        let (crc, body) = rest.split_first_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        postcard::from_bytes(body).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_comes_back_as_it_was_and_a_damaged_one_not_at_all() {
        let index = LayerIndex {
            entries: vec![Entry {
                path: b"a/b".to_vec(),
                meta: Meta {
                    mode: 0o4755,
                    uid: 70_000,
                    ..Meta::default()
                },
                kind: EntryKind::File { size: 5, block: 3 },
            }],
            whiteouts: vec![b"x".to_vec()],
            opaques: vec![],
            data_len: 2 << 20,
            tar_len: 10240,
        };
        let mut file = index.encode();
        assert_eq!(LayerIndex::decode(&file), Some(index));
        *file.last_mut().unwrap() ^= 1;
        assert_eq!(LayerIndex::decode(&file), None);
        assert_eq!(LayerIndex::decode(b"KVM"), None);
    }
}
