//! Header blocks of SPDY/3: name and value pairs inside one zlib stream a direction, which is primed with a dictionary
//! that both sides know.
//!
//! Owns compression state and its limits. A block that inflates to more than [`MAX_BLOCK`] bytes, or names more than
//! [`MAX_PAIRS`] headers, is refused before it is stored.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// The most bytes one header block may inflate to.
pub const MAX_BLOCK: usize = 32 * 1024;
/// The most headers one block may name.
pub const MAX_PAIRS: usize = 64;

/// Names of the dictionary's first part, each preceded by its length, in the order of the protocol's draft 3.
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The dictionary's second part: text without lengths.
const DICTIONARY_TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1423);
    for word in DICTIONARY_WORDS.split_ascii_whitespace() {
        // The one word with a space in it is written with an underscore above.
        let word = word.replace('_', " ");
        push_text(&mut bytes, word.as_bytes());
    }
    bytes.extend_from_slice(DICTIONARY_TEXT.as_bytes());
    bytes
});

/// Why a header block cannot be read or written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The zlib stream is damaged, or asks for another dictionary.
    #[error("header block is not the SPDY/3 zlib stream")]
    Corrupt,
    /// More than [`MAX_BLOCK`] bytes after inflation.
    #[error("header block inflates to more than {MAX_BLOCK} bytes")]
    TooLarge,
    /// More than [`MAX_PAIRS`] headers.
    #[error("header block names more than {MAX_PAIRS} headers")]
    TooMany,
    /// Lengths inside the block do not agree with its size.
    #[error("header block's lengths exceed it")]
    Truncated,
    /// A name or a value is not UTF-8.
    #[error("header block is not text")]
    NotText,
}

/// Names and values of one block. Names compare without case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        pair.map(|(_, value)| value.as_str())
    }

    /// All pairs in the order of the wire.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into().to_ascii_lowercase(), value.into()))
                .collect(),
        )
    }
}

/// The receiving direction's zlib state. After an error it must not be used again.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// Reads one block.
    pub fn read(&mut self, mut input: &[u8]) -> Result<Headers, HeaderError> {
        let mut block = Vec::with_capacity(1024);
        loop {
            if block.len() > MAX_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            block.reserve(1024);
            let before = (self.0.total_in(), block.len());
            let outcome = self.0.decompress_vec(input, &mut block, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - before.0).map_err(|_| HeaderError::Corrupt)?;
            input = input.get(consumed..).ok_or(HeaderError::Corrupt)?;
            match outcome {
                Ok(Status::StreamEnd) => return Err(HeaderError::Corrupt),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| HeaderError::Corrupt)?;
                    continue;
                }
                Err(_) => return Err(HeaderError::Corrupt),
            }
            let progressed = consumed > 0 || block.len() > before.1;
            if input.is_empty() && block.len() < block.capacity() {
                return parse(&block);
            }
            if !progressed {
                return Err(HeaderError::Corrupt);
            }
        }
    }
}

/// The sending direction's zlib state.
#[derive(Debug)]
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&DICTIONARY).expect("a fresh zlib stream accepts a dictionary");
        Self(zlib)
    }
}

impl Deflater {
    /// Writes one block.
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut plain = Vec::new();
        push_length(&mut plain, headers.0.len());
        for (name, value) in &headers.0 {
            push_text(&mut plain, name.as_bytes());
            push_text(&mut plain, value.as_bytes());
        }
        let mut packed = Vec::with_capacity(plain.len() + 64);
        let start = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - start).expect("a block's size fits usize");
            self.0
                .compress_vec(&plain[done..], &mut packed, FlushCompress::Sync)
                .expect("deflating from memory to memory has no failure");
            let all_in = self.0.total_in() - start == plain.len() as u64;
            if all_in && packed.len() < packed.capacity() {
                return packed;
            }
            packed.reserve(256);
        }
    }
}

fn push_length(bytes: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("header text is shorter than 4 GiB");
    bytes.extend_from_slice(&length.to_be_bytes());
}

fn push_text(bytes: &mut Vec<u8>, text: &[u8]) {
    push_length(bytes, text.len());
    bytes.extend_from_slice(text);
}

fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
    let count = take_length(&mut block)?;
    if count > MAX_PAIRS {
        return Err(HeaderError::TooMany);
    }
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let name = take_text(&mut block)?;
        let value = take_text(&mut block)?;
        pairs.push((name, value));
    }
    if !block.is_empty() {
        return Err(HeaderError::Truncated);
    }
    Ok(pairs.into_iter().collect())
}

fn take_length(block: &mut &[u8]) -> Result<usize, HeaderError> {
    let (length, rest) = block.split_first_chunk::<4>().ok_or(HeaderError::Truncated)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| HeaderError::Truncated)
}

fn take_text(block: &mut &[u8]) -> Result<String, HeaderError> {
    let length = take_length(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Truncated)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| HeaderError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_every_spdy_3_peer_has() {
        assert_eq!((DICTIONARY.len(), adler32(&DICTIONARY)), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_come_back_in_order_through_one_pair_of_streams() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for round in 0..200 {
            let headers: Headers = (0..round % 7).map(|n| (format!("name-{n}"), format!("value-{round}"))).collect();
            assert_eq!(inflater.read(&deflater.write(&headers)), Ok(headers));
        }
    }

    #[test]
    fn a_bomb_is_refused_while_it_inflates() {
        let headers: Headers = [("stream-type", "x".repeat(8 << 20))].into_iter().collect();
        let bomb = Deflater::default().write(&headers);
        assert!(bomb.len() < 100_000, "the bomb is small on the wire");
        assert_eq!(Inflater::default().read(&bomb), Err(HeaderError::TooLarge));
    }

    #[test]
    fn too_many_headers_are_refused() {
        let headers: Headers = (0..=MAX_PAIRS).map(|n| (n.to_string(), "")).collect();
        assert_eq!(
            Inflater::default().read(&Deflater::default().write(&headers)),
            Err(HeaderError::TooMany)
        );
    }

    #[test]
    fn lengths_that_exceed_the_block_are_refused() {
        for plain in [
            &[0, 0][..],
            &[0, 0, 0, 1, 0, 0, 0, 9, 1],
            &[0, 0, 0, 1, 255, 255, 255, 255],
            &[0, 0, 0, 0, 7],
        ] {
            assert_eq!(parse(plain), Err(HeaderError::Truncated), "{plain:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_an_answer_and_never_a_panic(bytes: Vec<u8>) {
            let _ = Inflater::default().read(&bytes);
            let _ = parse(&bytes);
        }
    }
}
