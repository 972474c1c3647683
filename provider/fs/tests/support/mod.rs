//! A guest's kernel, as far as a server sees it: requests out, answers in, one at a time.

// Not every test uses all of it.
#![allow(dead_code)]

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

pub(crate) const ROOT: u64 = 1;
pub(crate) const O_RDWR: u32 = 2;

/// A file as an answer describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// An error's number.
pub(crate) type Error = i32;

pub(crate) struct Guest {
    pub(crate) socket: UnixStream,
    unique: u64,
    pub(crate) user: (u32, u32),
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn attributes(bytes: &[u8]) -> Attributes {
    Attributes {
        size: u64_at(bytes, 8),
        mode: u32_at(bytes, 60),
        uid: u32_at(bytes, 68),
        gid: u32_at(bytes, 72),
    }
}

/// Numbers and texts, one behind the other.
pub(crate) fn body(parts: &[&dyn Part]) -> Vec<u8> {
    let mut bytes = Vec::new();
    parts.iter().for_each(|part| part.put(&mut bytes));
    bytes
}

pub(crate) trait Part {
    fn put(&self, to: &mut Vec<u8>);
}

impl Part for u32 {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.to_le_bytes());
    }
}

impl Part for u64 {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.to_le_bytes());
    }
}

/// A text, with the zero byte at its end.
impl Part for &str {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.bytes());
        to.push(0);
    }
}

/// Bytes, as they are.
impl Part for &[u8] {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(*self);
    }
}

impl Guest {
    pub(crate) fn new(socket: UnixStream) -> Self {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("sockets have deadlines");
        let mut guest = Self {
            socket,
            unique: 0,
            user: (0, 0),
        };
        let answer = guest
            .ask(26, 0, &body(&[&7u32, &39u32, &131_072u32, &u32::MAX, &[0u8; 48].as_slice()]))
            .expect("it begins");
        assert_eq!((answer.len(), u32_at(&answer, 0)), (64, 7));
        guest
    }

    pub(crate) fn send(&mut self, opcode: u32, node: u64, arguments: &[u8]) {
        self.unique += 2;
        let (uid, gid) = self.user;
        let length = 40 + arguments.len() as u32;
        let header = body(&[&length, &opcode, &self.unique, &node, &uid, &gid, &1u32, &0u32]);
        self.socket.write_all(&[&header, arguments].concat()).expect("it is sent");
    }

    /// Asks and is answered.
    pub(crate) fn ask(&mut self, opcode: u32, node: u64, arguments: &[u8]) -> Result<Vec<u8>, Error> {
        self.send(opcode, node, arguments);
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).expect("it answers");
        assert_eq!(u64_at(&header, 8), self.unique);
        let mut answer = vec![0; u32_at(&header, 0) as usize - 16];
        self.socket.read_exact(&mut answer).expect("its answer is whole");
        match u32_at(&header, 4).cast_signed() {
            0 => Ok(answer),
            error => {
                assert!(answer.is_empty());
                Err(-error)
            }
        }
    }

    fn entry(&mut self, opcode: u32, node: u64, arguments: &[u8]) -> Result<(u64, Attributes), Error> {
        let answer = self.ask(opcode, node, arguments)?;
        Ok((u64_at(&answer, 0), attributes(&answer[40..])))
    }

    pub(crate) fn lookup(&mut self, directory: u64, name: &str) -> Result<u64, Error> {
        Ok(self.entry(1, directory, &body(&[&name]))?.0)
    }

    pub(crate) fn forget(&mut self, node: u64, times: u64) {
        self.send(2, node, &body(&[&times]));
    }

    pub(crate) fn getattr(&mut self, node: u64) -> Result<Attributes, Error> {
        Ok(attributes(&self.ask(3, node, &[0; 16])?[16..]))
    }

    /// Bits of what is set, size, mode, user and group.
    pub(crate) fn setattr(&mut self, node: u64, valid: u32, (size, mode, uid, gid): (u64, u32, u32, u32)) -> Result<Attributes, Error> {
        let times: [&dyn Part; 6] = [&1_000_000_000u64, &1_000_000_001u64, &0u64, &5u32, &6u32, &0u32];
        let head = body(&[&valid, &0u32, &0u64, &size, &0u64]);
        let tail = body(&[&mode, &0u32, &uid, &gid, &0u32]);
        Ok(attributes(&self.ask(4, node, &[head, body(&times), tail].concat())?[16..]))
    }

    pub(crate) fn readlink(&mut self, node: u64) -> Result<String, Error> {
        Ok(String::from_utf8(self.ask(5, node, &[])?).expect("these are texts"))
    }

    pub(crate) fn symlink(&mut self, directory: u64, name: &str, target: &str) -> Result<u64, Error> {
        Ok(self.entry(6, directory, &body(&[&name, &target]))?.0)
    }

    pub(crate) fn mknod(&mut self, directory: u64, name: &str, mode: u32, device: u32) -> Result<(u64, Attributes), Error> {
        self.entry(8, directory, &body(&[&mode, &device, &0u32, &0u32, &name]))
    }

    pub(crate) fn mkdir(&mut self, directory: u64, name: &str, mode: u32) -> Result<(u64, Attributes), Error> {
        self.entry(9, directory, &body(&[&mode, &0u32, &name]))
    }

    pub(crate) fn unlink(&mut self, directory: u64, name: &str) -> Result<(), Error> {
        self.ask(10, directory, &body(&[&name])).map(drop)
    }

    pub(crate) fn rmdir(&mut self, directory: u64, name: &str) -> Result<(), Error> {
        self.ask(11, directory, &body(&[&name])).map(drop)
    }

    pub(crate) fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<(), Error> {
        self.ask(45, from.0, &body(&[&to.0, &flags, &0u32, &from.1, &to.1])).map(drop)
    }

    pub(crate) fn link(&mut self, file: u64, directory: u64, name: &str) -> Result<u64, Error> {
        Ok(self.entry(13, directory, &body(&[&file, &name]))?.0)
    }

    pub(crate) fn open(&mut self, node: u64, flags: u32) -> Result<u64, Error> {
        Ok(u64_at(&self.ask(14, node, &body(&[&flags, &0u32]))?, 0))
    }

    pub(crate) fn release(&mut self, handle: u64) -> Result<(), Error> {
        self.ask(18, 0, &body(&[&handle, &0u64, &0u64])).map(drop)
    }

    /// Number, attributes, handle.
    pub(crate) fn create(&mut self, directory: u64, name: &str, flags: u32, mode: u32) -> Result<(u64, Attributes, u64), Error> {
        let answer = self.ask(35, directory, &body(&[&flags, &mode, &0u32, &0u32, &name]))?;
        Ok((u64_at(&answer, 0), attributes(&answer[40..]), u64_at(&answer, 128)))
    }

    pub(crate) fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Error> {
        let size = data.len() as u32;
        let arguments = body(&[&handle, &offset, &size, &0u32, &0u64, &0u32, &0u32, &data]);
        Ok(u32_at(&self.ask(16, 0, &arguments)?, 0))
    }

    pub(crate) fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
        self.ask(15, 0, &body(&[&handle, &offset, &size, &0u32, &0u64, &0u32, &0u32]))
    }

    /// Names and, with `plus`, numbers of what is in a directory, in pieces of `room` bytes.
    pub(crate) fn list(&mut self, directory: u64, plus: bool, room: u32) -> Result<Vec<(String, u64)>, Error> {
        let handle = u64_at(&self.ask(27, directory, &body(&[&0u32, &0u32]))?, 0);
        let (mut found, mut place) = (Vec::new(), 0);
        loop {
            let arguments = body(&[&handle, &place, &room, &0u32, &0u64, &0u32, &0u32]);
            let mut piece = &self.ask(if plus { 44 } else { 28 }, directory, &arguments)?[..];
            assert!(piece.len() <= room as usize);
            if piece.is_empty() {
                break;
            }
            while !piece.is_empty() {
                let number = if plus { u64_at(piece, 0) } else { 0 };
                let entry = if plus { &piece[128..] } else { piece };
                let length = u32_at(entry, 16) as usize;
                place = u64_at(entry, 8);
                found.push((String::from_utf8(entry[24..24 + length].to_vec()).expect("these are texts"), number));
                piece = &entry[24 + length.next_multiple_of(8)..];
            }
        }
        self.ask(29, directory, &body(&[&handle, &0u64, &0u64]))?;
        found.sort();
        Ok(found)
    }
}
