//! The bytes of FUSE messages: little-endian numbers and names in, the same out. Refuses arguments that are cut short and names that are none.

use rustix::io::Errno;

/// `struct fuse_in_header`.
pub(crate) const HEADER: usize = 40;
/// `struct fuse_out_header`.
pub(crate) const REPLY: usize = 16;
/// Most bytes that one request reads or writes.
pub(crate) const MAX_IO: usize = 1 << 20;
/// Most bytes of a request.
pub(crate) const MAX_REQUEST: usize = MAX_IO + 4096;

/// What every request begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Header {
    /// Reads it, without the length in front.
    pub(crate) fn read(arguments: &mut Arguments<'_>) -> Result<Self, Errno> {
        arguments.u32()?;
        let header = Self {
            opcode: arguments.u32()?,
            unique: arguments.u64()?,
            node: arguments.u64()?,
            uid: arguments.u32()?,
            gid: arguments.u32()?,
        };
        arguments.skip(8)?;
        Ok(header)
    }
}

/// What is left of a request.
#[derive(Debug)]
pub(crate) struct Arguments<'a>(pub(crate) &'a [u8]);

impl<'a> Arguments<'a> {
    /// So many bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Errno> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn skip(&mut self, length: usize) -> Result<(), Errno> {
        self.bytes(length).map(drop)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.bytes(8)?.try_into().expect("eight bytes")))
    }

    /// A text that ends with a zero byte.
    pub(crate) fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Errno::INVAL)?;
        let text = self.bytes(end)?;
        self.skip(1)?;
        Ok(text)
    }

    /// One component of a path, which leads nowhere but into its directory.
    pub(crate) fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.text()?;
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(name)
    }
}

/// An answer being written.
#[derive(Debug)]
pub(crate) struct Reply<'a>(pub(crate) &'a mut Vec<u8>);

impl Reply<'_> {
    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// `struct fuse_write_out`, and `fuse_getxattr_out`: a number and padding.
    pub(crate) fn count(&mut self, count: usize) -> Result<(), Errno> {
        self.u32(u32::try_from(count).map_err(|_| Errno::OVERFLOW)?);
        self.u32(0);
        Ok(())
    }

    /// `struct fuse_open_out`: a handle, and nothing special about it.
    pub(crate) fn opened(&mut self, handle: u64) {
        self.u64(handle);
        self.u64(0);
    }
}
