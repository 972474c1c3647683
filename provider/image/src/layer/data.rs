//! The data file of a layer: files one after another, each from a block boundary on, padded to 2 MiB. Zeros become holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::erofs::{ALIGN, BLOCK};

const BUFFER: usize = 1 << 20;

/// Appends files to a data file.
pub(super) struct DataWriter {
    file: File,
    buf: Vec<u8>,
    /// Where the buffer's first byte belongs; always a block boundary when a file begins.
    at: u64,
}

impl DataWriter {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            buf: Vec::with_capacity(BUFFER),
            at: 0,
        }
    }

    /// The block where the next file begins.
    pub(super) fn begin(&self) -> u64 {
        (self.at + self.buf.len() as u64) / BLOCK
    }

    /// More bytes of the current file.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(BUFFER - self.buf.len());
            self.buf.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.buf.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Ends the current file.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let padded = self.buf.len().next_multiple_of(BLOCK as usize);
        self.buf.resize(padded, 0);
        if padded == BUFFER { self.flush() } else { Ok(()) }
    }

    /// Ends the data and makes it durable; the answer is its length.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        let len = self.at.next_multiple_of(ALIGN);
        self.file.set_len(len)?;
        self.file.sync_all()?;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if !is_zero(&self.buf) {
            self.file.write_all_at(&self.buf, self.at)?;
        }
        self.at += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }
}

/// Whether there is nothing but zeros; ends at the first other byte, which in ordinary data comes early.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |acc, byte| acc | byte) == 0)
}
