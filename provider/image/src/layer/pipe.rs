//! The two threads of a conversion: one decompresses and hashes what was transferred, the other hashes and reads the tar.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest, Sha256};

use super::error::LayerError;
use super::limits::{Limit, Limits};

/// Bytes that travel at once, and how many such parcels wait at most.
const PARCEL: usize = 256 << 10;
const PARCELS: usize = 8;
/// From here on the compression ratio tells something.
const RATIO_FLOOR: u64 = 1 << 30;

type Parcel = Result<Vec<u8>, LayerError>;

/// Writes a digest as references do.
pub(crate) fn sha256_text(digest: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in digest {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
    }
    text
}

/// Counts and hashes all that passes.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    count: u64,
    failed: bool,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf).inspect_err(|_| self.failed = true)?;
        self.hash.update(&buf[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// A source whose first bytes were looked at already.
type Sniffed<R> = BufReader<Chain<Cursor<Vec<u8>>, Hashing<R>>>;

/// The compressions a layer may have.
enum Format {
    Gzip,
    Zstd,
    Plain,
}

/// Looks at the first bytes, as media types were seen to lie.
fn sniff<R: Read>(mut input: Hashing<R>) -> (Format, Sniffed<R>, io::Result<()>) {
    let mut head = Vec::new();
    let read = input.by_ref().take(4).read_to_end(&mut head).map(drop);
    let format = if head.starts_with(&[0x1f, 0x8b]) {
        Format::Gzip
    } else if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Format::Zstd
    } else {
        Format::Plain
    };
    (format, BufReader::with_capacity(PARCEL, Cursor::new(head).chain(input)), read)
}

/// What the transfer turned out to be.
pub(super) struct Transferred {
    pub(super) digest: String,
    /// The source itself failed; the digest means nothing then.
    pub(super) failed: bool,
}

/// The sending half, for a thread of its own.
pub(super) struct Decompressor<'a> {
    parcels: SyncSender<Parcel>,
    empties: Receiver<Vec<u8>>,
    /// Set when the rest of the transfer is of no interest any more.
    abandoned: &'a AtomicBool,
}

/// Makes both halves.
pub(super) fn pipe<'a>(abandoned: &'a AtomicBool, limits: &'a Limits) -> (Decompressor<'a>, TarStream<'a>) {
    let (parcels, incoming) = sync_channel(PARCELS);
    let (back, empties) = channel();
    let stream = TarStream {
        incoming,
        back,
        current: Vec::new(),
        read: 0,
        hash: Sha256::new(),
        count: 0,
        ended: false,
        limits,
    };
    (
        Decompressor {
            parcels,
            empties,
            abandoned,
        },
        stream,
    )
}

impl Decompressor<'_> {
    /// Reads `input` to its end, whatever becomes of the tar in it, so that the digest of the whole can be told.
    pub(super) fn run(self, input: impl Read, limits: &Limits) -> Transferred {
        let (format, mut input, read) = sniff(Hashing {
            inner: input,
            hash: Sha256::new(),
            count: 0,
            failed: false,
        });
        if let Err(error) = read.and_then(|()| self.decompress(&format, &mut input, limits)) {
            let error = if input.get_ref().get_ref().1.failed {
                LayerError::Source(error)
            } else {
                LayerError::Corrupt { reason: error.to_string() }
            };
            // Nobody listens when the tar was refused already.
            let _ = self.parcels.send(Err(error));
        }
        drop(self.parcels);
        while !self.abandoned.load(Ordering::Relaxed) && !input.get_ref().get_ref().1.failed {
            match input.fill_buf().map(<[u8]>::len) {
                Ok(0) | Err(_) => break,
                Ok(count) => input.consume(count),
            }
        }
        let Hashing { hash, failed, .. } = input.into_inner().into_inner().1;
        Transferred {
            digest: sha256_text(&hash.finalize()),
            failed,
        }
    }

    fn decompress(&self, format: &Format, input: &mut Sniffed<impl Read>, limits: &Limits) -> io::Result<()> {
        match format {
            Format::Gzip => {
                let source = flate2::bufread::MultiGzDecoder::new(input);
                self.forward(source, |source| source.get_ref().get_ref().get_ref().1.count, limits)
            }
            Format::Zstd => {
                let source = zstd::stream::read::Decoder::with_buffer(input)?;
                self.forward(source, |source| source.get_ref().get_ref().get_ref().1.count, limits)
            }
            Format::Plain => self.forward(input, |source| source.get_ref().get_ref().1.count, limits),
        }
    }

    /// Sends all of `source`; `taken` tells how much was transferred for it.
    fn forward<S: Read>(&self, mut source: S, taken: impl Fn(&S) -> u64, limits: &Limits) -> io::Result<()> {
        let mut total = 0u64;
        loop {
            let mut parcel = self.empties.try_recv().unwrap_or_default();
            parcel.resize(PARCEL, 0);
            let mut filled = 0;
            while filled < PARCEL {
                match source.read(&mut parcel[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            parcel.truncate(filled);
            total += filled as u64;
            let bomb = total > RATIO_FLOOR && total / taken(&source).max(1) > limits.ratio;
            let message = if bomb {
                Err(LayerError::TooLarge {
                    limit: Limit::Ratio,
                    max: limits.ratio,
                })
            } else {
                Ok(parcel)
            };
            // No receiver: the tar was refused, the caller drains the rest.
            if filled == 0 || self.parcels.send(message).is_err() || bomb {
                return Ok(());
            }
        }
    }
}

/// The receiving half: the decompressed bytes, hashed and counted.
pub(super) struct TarStream<'a> {
    incoming: Receiver<Parcel>,
    back: Sender<Vec<u8>>,
    current: Vec<u8>,
    read: usize,
    hash: Sha256,
    count: u64,
    ended: bool,
    limits: &'a Limits,
}

impl TarStream<'_> {
    /// The bytes at hand, none at the end.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        while self.read == self.current.len() && !self.ended {
            let Ok(parcel) = self.incoming.recv() else {
                self.ended = true;
                break;
            };
            let old = std::mem::replace(&mut self.current, parcel?);
            self.read = 0;
            // The other side may have ended already.
            let _ = self.back.send(old);
            self.hash.update(&self.current);
            self.count += self.current.len() as u64;
            if self.count > self.limits.layer_bytes {
                return Err(LayerError::TooLarge {
                    limit: Limit::LayerBytes,
                    max: self.limits.layer_bytes,
                });
            }
        }
        Ok(&self.current[self.read..])
    }

    /// Marks bytes that `fill` showed as read.
    pub(super) fn consume(&mut self, count: usize) {
        self.read += count;
    }

    /// Reads what is left and tells the digest and length of the whole.
    pub(super) fn finish(mut self) -> Result<(String, u64), LayerError> {
        loop {
            let count = self.fill()?.len();
            if count == 0 {
                return Ok((sha256_text(&self.hash.finalize()), self.count));
            }
            self.consume(count);
        }
    }
}
