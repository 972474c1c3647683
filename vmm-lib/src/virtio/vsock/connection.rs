//! One connection: a host's client on a Unix socket, the guest's port behind it. Owns both directions' credit and both half closes.
//! Buffers at most [`BUFFER`] bytes of what the guest sent; what the host sends stays in its socket until the guest has room.
//!
//! `Line` (waits for `CONNECT`) → `Requested` (waits for the guest) → `Established` → gone, when either side resets, when the guest has
//! shut down both ways and all it sent is delivered, or when the client has closed and the guest confirms it. `Orphan`: the guest has
//! reset while the client still reads what came before.

use std::{collections::VecDeque, io, net::Shutdown, os::unix::net::UnixStream, time::Instant};

use super::packet::{CREDIT_REQUEST, CREDIT_UPDATE, Header, NO_RECEIVE, NO_SEND, REQUEST, RW, SHUTDOWN};
use super::stream;
use crate::virtio::chain::Segments;

/// Buffers of the guest that one reading of a stream may fill: Linux gives 4 KiB in each.
const BUFFERS: usize = 16;
/// Bytes of the guest that wait for their client, at most; the guest is told so (`buf_alloc`).
pub(super) const BUFFER: u32 = 256 << 10;
/// Bytes of payload in one packet, at most (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux).
pub(super) const MAX_PAYLOAD: usize = 64 << 10;
/// The longest `CONNECT <port>\n`.
const MAX_LINE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Line,
    Requested,
    Established,
    Orphan,
}

/// What a connection does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this header; its payload, `len` bytes, is in place.
    Send(Header),
    /// Nothing for now.
    Idle,
}

/// It is over: forget it, and reset the guest's side if it still has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Quiet,
    Reset,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) state: State,
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) deadline: Option<Instant>,
    /// In the list of those that have something to send.
    pub(super) queued: bool,
    /// The socket may have bytes or its end.
    pub(super) readable: bool,
    /// The client has closed both ways.
    pub(super) hung_up: bool,
    /// Handshake so far; afterwards what followed it.
    early: Vec<u8>,
    end_of_input: bool,
    owes_request: bool,
    owes_credit: bool,
    asked_for_credit: bool,
    /// That the next reading of the client may fill: a message needs one, a stream is read into several.
    buffers: usize,
    /// Shutdown flags the guest shall know, knows, and has sent.
    shutdown: u32,
    shutdown_sent: u32,
    guest_shutdown: u32,
    /// Bytes sent to the guest; its buffer and what it has taken out, by its own words.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// Bytes from the guest that wait; those delivered; those it knows of.
    pending: VecDeque<u8>,
    forwarded: u32,
    forwarded_told: u32,
    write_closed: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, host_port: u32, deadline: Instant) -> Self {
        Self {
            stream,
            state: State::Line,
            host_port,
            guest_port: 0,
            deadline: Some(deadline),
            queued: false,
            readable: true,
            hung_up: false,
            early: Vec::new(),
            end_of_input: false,
            owes_request: false,
            owes_credit: false,
            asked_for_credit: false,
            buffers: 1,
            shutdown: 0,
            shutdown_sent: 0,
            guest_shutdown: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            pending: VecDeque::new(),
            forwarded: 0,
            forwarded_told: 0,
            write_closed: false,
        }
    }

    /// Reads the client's `CONNECT <port>\n`. `Ok(true)`: it is whole, and the guest is to be asked.
    pub(super) fn read_line(&mut self) -> Result<bool, Over> {
        loop {
            let mut bytes = [0u8; MAX_LINE];
            match stream::read(&self.stream, &mut bytes) {
                Ok(0) => return Err(Over::Quiet),
                Ok(count) => self.early.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(false);
                }
                Err(_) => return Err(Over::Quiet),
            }
            if let Some(end) = self.early.iter().position(|byte| *byte == b'\n') {
                self.guest_port = parse_connect(&self.early[..end]).ok_or(Over::Quiet)?;
                self.early.drain(..=end);
                self.state = State::Requested;
                self.owes_request = true;
                return Ok(true);
            }
            if self.early.len() >= MAX_LINE {
                return Err(Over::Quiet);
            }
        }
    }

    /// The guest has accepted: tells the client.
    pub(super) fn accepted(&mut self) -> Result<(), Over> {
        self.state = State::Established;
        // An empty socket takes a line as a whole, or its client is gone.
        let line = format!("OK {}\n", self.host_port);
        match stream::write(&self.stream, line.as_bytes()) {
            Ok(count) if count == line.len() => Ok(()),
            _ => Err(Over::Reset),
        }
    }

    /// Takes the credit that every packet of the guest carries.
    pub(super) fn credit(&mut self, header: &Header) {
        self.guest_buffer = header.buf_alloc;
        self.guest_forwarded = header.fwd_cnt;
        if self.room() > 0 {
            self.asked_for_credit = false;
        }
    }

    /// Bytes that the guest has room for. A guest whose figures make no sense has none.
    fn room(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(on_the_way)
    }

    /// The guest wants to know our credit.
    pub(super) fn owe_credit(&mut self) {
        self.owes_credit = true;
    }

    /// `length` bytes of payload in `packet` from `offset` on, for the client.
    pub(super) fn receive(&mut self, packet: &Segments<'_>, offset: usize, length: usize) -> Result<(), Over> {
        if self.guest_shutdown & NO_SEND != 0 || self.pending.len() + length > BUFFER as usize {
            return Err(Over::Reset);
        }
        if self.shutdown & NO_RECEIVE != 0 {
            // Was on its way when the client left.
            return Ok(());
        }
        let mut done = 0;
        if self.pending.is_empty() {
            match stream::write_segments(&self.stream, packet, offset..offset + length) {
                Ok(count) => done = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.client_left();
                    return Ok(());
                }
            }
        }
        if done < length {
            let mut rest = vec![0u8; length - done];
            packet.read(offset + done, &mut rest).map_err(|_| Over::Reset)?;
            self.pending.extend(rest);
        }
        self.delivered(done);
        Ok(())
    }

    /// Whether its socket has to be watched for room.
    pub(super) fn wants_to_write(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Delivers what waits, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), Over> {
        while !self.pending.is_empty() {
            match stream::write(&self.stream, self.pending.as_slices().0) {
                Ok(count) => {
                    self.pending.drain(..count);
                    self.delivered(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => self.client_left(),
            }
        }
        // What a burst needed is not kept.
        self.pending = VecDeque::new();
        self.all_delivered()
    }

    fn delivered(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.forwarded.wrapping_sub(self.forwarded_told) >= BUFFER / 4 {
            self.owes_credit = true;
        }
    }

    /// Ends what the guest has ended, once everything before it is delivered.
    fn all_delivered(&mut self) -> Result<(), Over> {
        if !self.pending.is_empty() {
            return Ok(());
        }
        if self.state == State::Orphan {
            return Err(Over::Quiet);
        }
        if self.guest_shutdown == NO_RECEIVE | NO_SEND {
            return Err(Over::Reset);
        }
        if self.guest_shutdown & NO_SEND != 0 && !self.write_closed {
            self.write_closed = true;
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    /// The guest shuts down one way or both.
    pub(super) fn guest_shuts_down(&mut self, flags: u32) -> Result<(), Over> {
        let new = flags & (NO_RECEIVE | NO_SEND) & !self.guest_shutdown;
        self.guest_shutdown |= new;
        if new & NO_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.all_delivered()
    }

    /// The guest has reset it.
    pub(super) fn guest_resets(&mut self) -> Result<(), Over> {
        self.deadline = None;
        self.state = State::Orphan;
        self.all_delivered()
    }

    /// The client cannot be written to any more. What it sent before may still be read.
    fn client_left(&mut self) {
        self.hung_up = true;
        self.pending = VecDeque::new();
        self.shutdown |= NO_RECEIVE;
    }

    /// The socket's other end is closed.
    pub(super) fn hang_up(&mut self) -> Result<(), Over> {
        self.hung_up = true;
        match self.state {
            State::Established if self.end_of_input || self.guest_shutdown & NO_RECEIVE != 0 => {
                self.client_left();
                self.shutdown |= NO_SEND;
                Ok(())
            }
            // What it wrote is read first; its end is met there.
            State::Established => Ok(()),
            State::Requested => Err(Over::Reset),
            State::Line => Ok(()),
            State::Orphan => Err(Over::Quiet),
        }
    }

    /// The client has closed, the guest knows, and only its confirmation is missing.
    pub(super) fn closing(&self) -> bool {
        self.state == State::Established && self.shutdown_sent == NO_RECEIVE | NO_SEND
    }

    fn may_read(&self) -> bool {
        self.state == State::Established
            && !self.end_of_input
            && self.guest_shutdown & NO_RECEIVE == 0
            && (self.readable || !self.early.is_empty())
    }

    /// Whether [`Connection::step`] would have something to send.
    pub(super) fn has_work(&self) -> bool {
        self.owes_request
            || self.state == State::Established
                && (self.shutdown != self.shutdown_sent
                    || self.owes_credit
                    || self.may_read() && (self.room() > 0 || !self.asked_for_credit))
    }

    /// Makes the next packet that has no bytes of the client's socket ([`Connection::read`] has those): payload goes into `buffer`, from `offset` on.
    pub(super) fn step(&mut self, guest: u64, buffer: &Segments<'_>, offset: usize) -> Step {
        if self.owes_request {
            self.owes_request = false;
            return Step::Send(self.header(guest, REQUEST));
        }
        if self.state != State::Established {
            return Step::Idle;
        }
        if self.may_read() && !self.early.is_empty() && self.room() > 0 {
            let count = self.early.len().min(packet_room(buffer, offset)).min(self.room() as usize);
            if buffer.write(offset, &self.early[..count]).is_ok() {
                self.early.drain(..count);
                return Step::Send(self.bytes(guest, count as u32));
            }
        }
        if self.shutdown != self.shutdown_sent {
            self.shutdown_sent = self.shutdown;
            return Step::Send(Header {
                flags: self.shutdown,
                ..self.header(guest, SHUTDOWN)
            });
        }
        if self.may_read() && self.room() == 0 && !self.asked_for_credit {
            self.asked_for_credit = true;
            return Step::Send(self.header(guest, CREDIT_REQUEST));
        }
        if self.owes_credit {
            return Step::Send(self.header(guest, CREDIT_UPDATE));
        }
        Step::Idle
    }

    /// How many buffers it would fill from its client now, at the most, and with how many bytes.
    pub(super) fn wants(&self) -> (usize, usize) {
        if self.may_read() && self.early.is_empty() {
            (self.buffers, self.room() as usize)
        } else {
            (0, 0)
        }
    }

    /// Reads what its client has sent into the payloads of several buffers, behind `offset` of each; the headers of those that it used, the first ones.
    /// At the client's end, the shutdown is noted.
    pub(super) fn read<'a, 'm: 'a>(&mut self, guest: u64, buffers: impl Iterator<Item = &'a Segments<'m>>, offset: usize) -> Vec<Header> {
        let (mut iovecs, mut lengths) = (Vec::new(), Vec::new());
        let (most, mut left) = self.wants();
        for buffer in buffers.take(most) {
            let length = packet_room(buffer, offset).min(left);
            if length == 0 {
                break;
            }
            left -= length;
            buffer.iovecs(offset..offset + length, &mut iovecs);
            lengths.push(length);
        }
        if lengths.is_empty() {
            return Vec::new();
        }
        match stream::read_pieces(&self.stream, &iovecs) {
            Ok(0) => {}
            Ok(mut count) => {
                self.buffers = if count < lengths[0] { 1 } else { BUFFERS };
                let filled = lengths.into_iter().map_while(|length| {
                    let filled = length.min(count);
                    count -= filled;
                    (filled > 0).then_some(filled as u32)
                });
                return filled.map(|length| self.bytes(guest, length)).collect();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                return Vec::new();
            }
            Err(_) => self.hung_up = true,
        }
        self.end_of_input = true;
        self.shutdown |= NO_SEND;
        if self.hung_up {
            self.client_left();
        }
        Vec::new()
    }

    /// The header of so many bytes for the guest.
    fn bytes(&mut self, guest: u64, count: u32) -> Header {
        self.sent = self.sent.wrapping_add(count);
        Header {
            len: count,
            ..self.header(guest, RW)
        }
    }

    /// A header of this connection; it carries our credit, so none is owed afterwards.
    fn header(&mut self, guest: u64, op: u16) -> Header {
        self.owes_credit = false;
        self.forwarded_told = self.forwarded;
        Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: guest,
            src_port: self.host_port,
            dst_port: self.guest_port,
            len: 0,
            kind: super::packet::STREAM,
            op,
            flags: 0,
            buf_alloc: BUFFER,
            fwd_cnt: self.forwarded,
        }
    }

    /// The packet that resets it.
    pub(super) fn reset(&mut self, guest: u64) -> Header {
        self.header(guest, super::packet::RST)
    }
}

/// Bytes of payload that fit a buffer, in one packet.
fn packet_room(buffer: &Segments<'_>, offset: usize) -> usize {
    (buffer.len() - offset).min(MAX_PAYLOAD)
}

/// The port of `CONNECT <port>`.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::parse_connect;

    #[test]
    fn only_a_plain_port_is_a_connect_line() {
        assert_eq!(parse_connect(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse_connect(b"CONNECT 4294967295"), Some(u32::MAX));
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT +1",
            "CONNECT 4294967296",
            "CONNECT 1 ",
            "connect 1",
            "CONNECT 1\r",
        ] {
            assert_eq!(parse_connect(line.as_bytes()), None, "{line:?}");
        }
    }
}
