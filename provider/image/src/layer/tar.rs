//! The tar format: headers, and the entries that only describe the next one (PAX and GNU long names).
//!
//! Read by hand over the `tar` crate's header type, since its own reader takes extension records of any size into memory and cuts
//! binary attributes at newlines.

use tar::{EntryType, Header};

use super::error::LayerError;
use super::path::shown;
use super::pax::Pax;
use super::pipe::TarStream;
use crate::erofs::Time;

const SECTOR: u64 = 512;
/// Longest extension record, as other readers have it.
const EXTENSION_MAX: u64 = 1 << 20;

/// A header with all that came before it applied; its content follows in the stream.
pub(super) struct FileHeader {
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Bytes of content, zero for kinds that have none.
    pub(super) size: u64,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a tar from a stream of bytes.
pub(super) struct TarReader<'a> {
    stream: TarStream<'a>,
    /// Content and padding of the current entry that nobody read yet.
    content: u64,
    padding: u64,
    at: u64,
}

impl<'a> TarReader<'a> {
    pub(super) fn new(stream: TarStream<'a>) -> Self {
        Self {
            stream,
            content: 0,
            padding: 0,
            at: 0,
        }
    }

    /// The next entry, or none at the archive's end.
    pub(super) fn next(&mut self) -> Result<Option<FileHeader>, LayerError> {
        let mut pax = Pax::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip_entry()?;
            let Some(sector) = self.sector()? else { return Ok(None) };
            if sector.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&sector);
            self.verify(header)?;
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => {
                    let data = self.extension(header)?;
                    pax.read(&data).map_err(|reason| self.not_a_tar(reason))?;
                }
                EntryType::GNULongName => long_path = Some(cut(self.extension(header)?)),
                EntryType::GNULongLink => long_link = Some(cut(self.extension(header)?)),
                // What describes the whole archive describes no file.
                EntryType::XGlobalHeader => drop(self.extension(header)?),
                _ => return self.entry(header, pax, long_path, long_link).map(Some),
            }
        }
    }

    /// Hands all content of the current entry to `sink`, as it comes.
    pub(super) fn content(&mut self, mut sink: impl FnMut(&[u8]) -> Result<(), LayerError>) -> Result<(), LayerError> {
        while self.content > 0 {
            let bytes = self.stream.fill()?;
            if bytes.is_empty() {
                return Err(self.truncated());
            }
            let count = usize::try_from(self.content).map_or(bytes.len(), |left| left.min(bytes.len()));
            sink(&bytes[..count])?;
            self.advance(count);
            self.content -= count as u64;
        }
        Ok(())
    }

    /// The stream, when the archive ended or was refused.
    pub(super) fn into_stream(self) -> TarStream<'a> {
        self.stream
    }

    fn advance(&mut self, count: usize) {
        self.stream.consume(count);
        self.at += count as u64;
    }

    fn not_a_tar(&self, reason: &str) -> LayerError {
        LayerError::NotATar {
            reason: format!("{reason} at byte {}", self.at),
        }
    }

    fn truncated(&self) -> LayerError {
        self.not_a_tar("it ends within an entry")
    }

    fn skip_entry(&mut self) -> Result<(), LayerError> {
        self.content(|_| Ok(()))?;
        self.content = std::mem::take(&mut self.padding);
        self.content(|_| Ok(()))
    }

    /// Notes the content that follows a header.
    fn expect_content(&mut self, size: u64) -> Result<(), LayerError> {
        let whole = size
            .checked_next_multiple_of(SECTOR)
            .ok_or_else(|| self.not_a_tar("impossible size of an entry"))?;
        self.content = size;
        self.padding = whole - size;
        Ok(())
    }

    /// One header's bytes; none where the archive ends without its end mark, which all readers accept.
    fn sector(&mut self) -> Result<Option<[u8; SECTOR as usize]>, LayerError> {
        let mut sector = [0; SECTOR as usize];
        let mut filled = 0;
        while filled < sector.len() {
            let bytes = self.stream.fill()?;
            if bytes.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(self.truncated()) };
            }
            let count = bytes.len().min(sector.len() - filled);
            sector[filled..filled + count].copy_from_slice(&bytes[..count]);
            self.advance(count);
            filled += count;
        }
        Ok(Some(sector))
    }

    fn verify(&self, header: &Header) -> Result<(), LayerError> {
        let bytes = header.as_bytes();
        let sum: u32 = bytes
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        match header.cksum() {
            Ok(cksum) if cksum == sum => Ok(()),
            _ => Err(self.not_a_tar("no valid header")),
        }
    }

    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let size = self.number(header.entry_size())?;
        if size > EXTENSION_MAX {
            return Err(self.not_a_tar("extension header of more than 1 MiB"));
        }
        self.expect_content(size)?;
        let mut data = Vec::new();
        self.content(|bytes| {
            data.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(data)
    }

    fn number<T>(&self, field: std::io::Result<T>) -> Result<T, LayerError> {
        field.map_err(|_| self.not_a_tar("malformed number in a header"))
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<FileHeader, LayerError> {
        let path = pax.path.or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax
            .link
            .or(long_link)
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        let bad = |reason: &str| LayerError::BadEntry {
            path: shown(&path),
            reason: reason.to_owned(),
        };
        let mut kind = header.entry_type();
        if pax.sparse || kind == EntryType::GNUSparse {
            return Err(bad("sparse files are not supported in layers"));
        }
        // Before there was a type for directories, a slash at the end told.
        if matches!(kind, EntryType::Regular | EntryType::Continuous) {
            kind = if path.ends_with(b"/") {
                EntryType::Directory
            } else {
                EntryType::Regular
            };
        }
        // Some writers give links a size without content; kinds other than files never have any.
        let size = if kind == EntryType::Regular {
            pax.size.map_or_else(|| self.number(header.entry_size()), Ok)?
        } else {
            0
        };
        self.expect_content(size)?;
        let id = |number: u64| u32::try_from(number).map_err(|_| bad("its owner's number is larger than 32 bits"));
        let uid = id(pax.uid.map_or_else(|| self.number(header.uid()), Ok)?)?;
        let gid = id(pax.gid.map_or_else(|| self.number(header.gid()), Ok)?)?;
        let mtime = match pax.mtime {
            Some(time) => time,
            // Numbers in base 256 are signed, and the crate hands their bits over.
            None => Time {
                secs: self.number(header.mtime())? as i64,
                nanos: 0,
            },
        };
        let device = if matches!(kind, EntryType::Char | EntryType::Block) {
            (
                self.number(header.device_major())?.unwrap_or(0),
                self.number(header.device_minor())?.unwrap_or(0),
            )
        } else {
            (0, 0)
        };
        if device.0 >= 1 << 12 || device.1 >= 1 << 20 {
            return Err(bad("its device number is larger than Linux has"));
        }
        let mode = (self.number(header.mode())? & 0o7777) as u16;
        Ok(FileHeader {
            kind,
            path,
            link,
            size,
            mode,
            uid,
            gid,
            mtime,
            device,
            xattrs: pax.xattrs,
        })
    }
}

/// GNU long names end at the first NUL.
fn cut(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    name
}
