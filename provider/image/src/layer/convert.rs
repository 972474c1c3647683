//! The conversion itself: tar entries to index entries and data, with digests, limits and whiteout names looked after.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType;

use super::data::DataWriter;
use super::error::LayerError;
use super::index::{Entry, EntryKind, LayerIndex};
use super::limits::{Limit, Limits};
use super::path::{normalize, shown, split};
use super::pipe::{TarStream, pipe};
use super::tar::{FileHeader, TarReader};
use crate::erofs::{Meta, xattr};

/// What the image says of the layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expected {
    /// Digest of what is transferred.
    pub(crate) digest: Option<String>,
    /// Digest of the tar.
    pub(crate) diff_id: Option<String>,
}

/// A layer whose data was written, with its digests found or proved.
#[derive(Debug)]
pub(crate) struct Converted {
    pub(crate) index: LayerIndex,
    pub(crate) diff_id: String,
}

/// Reads a layer and writes its data. Blocks; `data` is durable when it answers.
pub(crate) fn convert(input: impl Read + Send, expected: &Expected, limits: &Limits, data: File) -> Result<Converted, LayerError> {
    let abandoned = AtomicBool::new(false);
    let (sender, stream) = pipe(&abandoned, limits);
    let (transferred, result) = std::thread::scope(|scope| {
        let decompressor = std::thread::Builder::new()
            .name("layer-decompress".to_owned())
            .spawn_scoped(scope, || sender.run(input, limits))
            .map_err(LayerError::Write)?;
        let result = read(stream, limits, data);
        // Only bad content is worth the rest of the transfer: its digest tells whose fault it was.
        if result.as_ref().is_err_and(|error| !error.blames_content()) {
            abandoned.store(true, Ordering::Relaxed);
        }
        Ok((decompressor.join().expect("the decompressor does not panic"), result))
    })?;
    let judged = result.as_ref().err().is_none_or(LayerError::blames_content) && !transferred.failed;
    if let Some(want) = expected.digest.as_ref().filter(|want| judged && **want != transferred.digest) {
        return Err(LayerError::Digest {
            expected: want.clone(),
            actual: transferred.digest,
        });
    }
    let converted = result?;
    match &expected.diff_id {
        Some(want) if *want != converted.diff_id => Err(LayerError::Digest {
            expected: want.clone(),
            actual: converted.diff_id,
        }),
        _ => Ok(converted),
    }
}

fn read(stream: TarStream<'_>, limits: &Limits, data: File) -> Result<Converted, LayerError> {
    let mut tar = TarReader::new(stream);
    let mut builder = Builder {
        limits,
        index: LayerIndex::default(),
        data: DataWriter::new(data),
        count: 0,
        bytes: 0,
    };
    while let Some(header) = tar.next()? {
        builder.entry(header, &mut tar)?;
    }
    let (diff_id, tar_len) = tar.into_stream().finish()?;
    let mut index = builder.index;
    index.data_len = builder.data.finish().map_err(LayerError::write)?;
    index.tar_len = tar_len;
    Ok(Converted { index, diff_id })
}

struct Builder<'a> {
    limits: &'a Limits,
    index: LayerIndex,
    data: DataWriter,
    count: u64,
    bytes: u64,
}

impl Builder<'_> {
    fn entry(&mut self, header: FileHeader, tar: &mut TarReader<'_>) -> Result<(), LayerError> {
        let path = normalize(&header.path, self.limits)?;
        self.charge(&path, &header)?;
        if self.whiteout(&path)? {
            return Ok(());
        }
        let bad = |reason: &str| LayerError::BadEntry {
            path: shown(&header.path),
            reason: reason.to_owned(),
        };
        let kind = match header.kind {
            EntryType::Directory => EntryKind::Dir,
            EntryType::Regular => {
                let block = self.data.begin();
                tar.content(|bytes| self.data.write(bytes).map_err(LayerError::write))?;
                self.data.end().map_err(LayerError::write)?;
                EntryKind::File { size: header.size, block }
            }
            EntryType::Symlink => {
                // A link's target is data for the guest to resolve, wherever it points.
                if header.link.is_empty() || header.link.len() >= 4096 || header.link.contains(&0) {
                    return Err(bad("its link target is empty, too long or has a NUL byte"));
                }
                EntryKind::Symlink(header.link)
            }
            EntryType::Link => EntryKind::Hardlink(normalize(&header.link, self.limits)?),
            EntryType::Char => EntryKind::Char {
                major: header.device.0,
                minor: header.device.1,
            },
            EntryType::Block => EntryKind::Block {
                major: header.device.0,
                minor: header.device.1,
            },
            EntryType::Fifo => EntryKind::Fifo,
            other => return Err(bad(&format!("its type {:?} is not supported", other.as_byte() as char))),
        };
        if path.is_empty() && kind != EntryKind::Dir {
            return Err(bad("the image's root is not a directory"));
        }
        let xattrs: Vec<_> = header.xattrs.into_iter().filter(|(name, _)| xattr::supported(name)).collect();
        if !xattr::fit(&xattrs) {
            return Err(bad("its extended attributes are too large"));
        }
        let meta = Meta {
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            mtime: header.mtime,
            xattrs,
        };
        self.index.entries.push(Entry { path, meta, kind });
        Ok(())
    }

    /// Counts an entry against the limits.
    fn charge(&mut self, path: &[u8], header: &FileHeader) -> Result<(), LayerError> {
        let xattrs: usize = header.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.count += 1;
        // What an entry takes in memory besides its names.
        self.bytes += (128 + path.len() + header.link.len() + xattrs) as u64;
        if self.count > self.limits.layer_entries {
            return Err(LayerError::TooLarge {
                limit: Limit::LayerEntries,
                max: self.limits.layer_entries,
            });
        }
        if self.bytes > self.limits.layer_metadata_bytes {
            return Err(LayerError::TooLarge {
                limit: Limit::LayerMetadataBytes,
                max: self.limits.layer_metadata_bytes,
            });
        }
        Ok(())
    }

    /// Notes what a name beginning with `.wh.` removes; the answer is whether it was such a name.
    fn whiteout(&mut self, path: &[u8]) -> Result<bool, LayerError> {
        let (dir, name) = split(path);
        if name == b".wh..wh..opq" {
            self.index.opaques.push(dir.to_vec());
            return Ok(true);
        }
        // AUFS keeps its own books under such names.
        if path.split(|byte| *byte == b'/').any(|component| component.starts_with(b".wh..wh.")) {
            return Ok(true);
        }
        let Some(gone) = name.strip_prefix(b".wh.") else { return Ok(false) };
        match gone {
            b"" => Err(LayerError::BadEntry {
                path: shown(path),
                reason: "a whiteout of nothing".to_owned(),
            }),
            b"." | b".." => Err(LayerError::EscapingPath { path: shown(path) }),
            _ => {
                let mut target = dir.to_vec();
                if !target.is_empty() {
                    target.push(b'/');
                }
                target.extend_from_slice(gone);
                self.index.whiteouts.push(target);
                Ok(true)
            }
        }
    }
}
