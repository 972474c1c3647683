//! The conversation with the peer: requests out, one after the other and each in pieces, while answers come in. A request gets a number of
//! our own, so that a guest that uses one twice harms only itself. Memory: two pieces, and a note for each chain that is out, of which a
//! queue cannot have more than descriptors.

use std::{collections::BTreeMap, io, os::unix::net::UnixStream};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::reply::{HEADER as REPLY_HEADER, ReplyHeader, error_reply};
use super::{HIPRIO_SIZE, QUEUE_SIZE};
use crate::virtio::{
    chain::{Chain, ChainError, Segments},
    ring::Ring,
    worker::WorkError,
};

/// `struct fuse_in_header`.
pub(super) const HEADER: usize = 40;
/// Most bytes of one request: 1 MiB to be written, and a page for its header, arguments and names.
pub(super) const MAX_REQUEST: usize = (1 << 20) + 4096;
/// Bytes moved at once.
const PIECE: usize = 64 << 10;
/// Pieces of one turn, before the stop event is looked at again.
const PIECES: usize = 64;

/// Requests that nobody answers (`FUSE_FORGET`, `FUSE_BATCH_FORGET`), and one that nobody has to heed (`FUSE_INTERRUPT`): it names
/// another request by a number that the peer does not know it by.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const INTERRUPT: u32 = 36;

/// A request that is being answered.
struct Flight<'m> {
    queue: usize,
    head: u16,
    /// The guest's number for it.
    unique: u64,
    writable: Segments<'m>,
}

/// A request on its way out.
struct Sending<'m> {
    queue: usize,
    head: u16,
    readable: Segments<'m>,
    /// The next byte to be put into the piece.
    offset: usize,
    /// Its chain goes back as soon as it is sent.
    unanswered: bool,
}

/// An answer on its way in.
struct Receiving<'m> {
    flight: Flight<'m>,
    header: ReplyHeader,
    /// Bytes that are in their place.
    done: usize,
}

/// What remains of a session.
pub(super) enum End {
    /// Nothing is under way: whoever comes next may go on with the peer, if there is one.
    Between(Option<UnixStream>),
    /// Something is.
    Within(UnixStream),
}

/// One driver's session.
pub(super) struct Session<'m> {
    /// By queue.
    pub(super) rings: [Ring<'m>; 2],
    peer: Option<UnixStream>,
    flights: BTreeMap<u64, Flight<'m>>,
    next: u64,
    sending: Option<Sending<'m>>,
    receiving: Option<Receiving<'m>>,
    /// Bytes to be sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    /// The beginning of an answer, shorter than its header.
    head: Vec<u8>,
    piece: Vec<u8>,
}

/// Whether there was more than a turn's work.
type More = bool;

impl<'m> Session<'m> {
    /// A session that nothing was said in. Without a peer everything is answered with ENOTCONN.
    pub(super) fn new(rings: [Ring<'m>; 2], peer: Option<UnixStream>) -> Self {
        Self {
            rings,
            peer,
            flights: BTreeMap::new(),
            next: 1,
            sending: None,
            receiving: None,
            out: Vec::new(),
            sent: 0,
            head: Vec::new(),
            piece: vec![0; PIECE],
        }
    }

    /// Who has the files.
    pub(super) fn peer(&self) -> Option<&UnixStream> {
        self.peer.as_ref()
    }

    /// Ends it.
    pub(super) fn end(self) -> End {
        let quiet = self.flights.is_empty() && self.sending.is_none() && self.receiving.is_none() && self.head.is_empty();
        match self.peer {
            Some(peer) if !quiet => End::Within(peer),
            peer => End::Between(peer),
        }
    }

    /// Does what there is to do, in bounded time; kicks itself where that was not all.
    pub(super) fn turn(&mut self) -> Result<(), WorkError> {
        // Answers first: each makes room in the peer for another request.
        let mut more = self.receive()?;
        more |= self.send()?;
        let blocked = self.sending.is_some() || self.sent < self.out.len();
        for ring in &mut self.rings {
            if blocked {
                // What wakes it up is room in the socket, not the chains that wait.
                ring.notify()?;
            } else {
                ring.settle()?;
            }
        }
        if more {
            self.rings[0].rekick();
        }
        Ok(())
    }

    /// Takes requests and sends them, until there are no more or the peer takes no more.
    fn send(&mut self) -> Result<More, WorkError> {
        let mut left = usize::from(QUEUE_SIZE + HIPRIO_SIZE);
        for _ in 0..PIECES {
            while self.sending.is_none() && self.sent == self.out.len() {
                if left == 0 {
                    return Ok(true);
                }
                left -= 1;
                if !self.next_request()? {
                    return Ok(false);
                }
            }
            if !self.flush()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Sends a piece; `false` when the peer takes no more now.
    fn flush(&mut self) -> Result<bool, WorkError> {
        let Some(peer) = &self.peer else { return Ok(true) };
        if self.sent == self.out.len()
            && let Some(sending) = &mut self.sending
        {
            let length = PIECE.min(sending.readable.len() - sending.offset);
            self.out.resize(length, 0);
            self.sent = 0;
            sending.readable.read(sending.offset, &mut self.out)?;
            sending.offset += length;
        }
        match rustix::io::retry_on_intr(|| send(peer, &self.out[self.sent..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)) {
            Ok(sent) => self.sent += sent,
            Err(rustix::io::Errno::AGAIN) => return Ok(false),
            Err(error) => {
                self.lose(&io::Error::from(error).to_string())?;
                return Ok(true);
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            if let Some(sending) = self.sending.take_if(|sending| sending.offset == sending.readable.len())
                && sending.unanswered
            {
                self.rings[sending.queue].give_back(sending.head, 0)?;
            }
        }
        Ok(true)
    }

    /// The next request of a queue, hiprio first; `false` when there is none.
    fn next_request(&mut self) -> Result<bool, WorkError> {
        let mut popped = None;
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            if let Some(chain) = ring.pop()? {
                popped = Some((queue, chain));
                break;
            }
        }
        let Some((queue, chain)) = popped else { return Ok(false) };
        self.begin(queue, chain)?;
        Ok(true)
    }

    /// Begins to send a request, or answers it.
    fn begin(&mut self, queue: usize, chain: Chain<'m>) -> Result<(), WorkError> {
        let Chain { head, readable, writable } = chain;
        let mut header = [0; HEADER];
        readable.read(0, &mut header)?;
        let opcode = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let unique = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
        let unanswered = matches!(opcode, FORGET | BATCH_FORGET);
        if opcode == INTERRUPT || (unanswered && self.peer.is_none()) {
            return Ok(self.rings[queue].give_back(head, 0)?);
        }
        if !unanswered && writable.len() < REPLY_HEADER {
            return Err(ChainError::TooShort.into());
        }
        let flight = Flight {
            queue,
            head,
            unique,
            writable,
        };
        if self.peer.is_none() {
            return self.fail(&flight, libc::ENOTCONN);
        }
        if readable.len() > MAX_REQUEST {
            return if unanswered {
                Ok(self.rings[queue].give_back(head, 0)?)
            } else {
                self.fail(&flight, libc::E2BIG)
            };
        }
        // What the message says of its own length and number is ours to say.
        let length = u32::try_from(readable.len()).expect("MAX_REQUEST is small");
        header[..4].copy_from_slice(&length.to_le_bytes());
        header[8..16].copy_from_slice(&self.next.to_le_bytes());
        self.out.extend_from_slice(&header);
        if !unanswered {
            self.flights.insert(self.next, flight);
        }
        self.next += 1;
        if readable.len() > HEADER {
            self.sending = Some(Sending {
                queue,
                head,
                readable,
                offset: HEADER,
                unanswered,
            });
        } else if unanswered {
            self.rings[queue].give_back(head, 0)?;
        }
        Ok(())
    }

    /// Takes answers, until none is there.
    fn receive(&mut self) -> Result<More, WorkError> {
        for _ in 0..PIECES {
            let Some(peer) = &self.peer else { return Ok(false) };
            let mut piece = std::mem::take(&mut self.piece);
            let got = rustix::io::retry_on_intr(|| recv(peer, &mut piece[..], RecvFlags::DONTWAIT));
            let done = match got {
                Ok((0, _)) => self.lose("it has closed the connection").map(|()| false),
                Ok((length, _)) => self.take(&piece[..length]).map(|()| true),
                Err(rustix::io::Errno::AGAIN) => Ok(false),
                Err(error) => self.lose(&io::Error::from(error).to_string()).map(|()| false),
            };
            self.piece = piece;
            if !done? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes from the peer.
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), WorkError> {
        while !bytes.is_empty() {
            let Some(mut receiving) = self.receiving.take() else {
                let wanted = REPLY_HEADER - self.head.len();
                let (head, rest) = bytes.split_at(wanted.min(bytes.len()));
                self.head.extend_from_slice(head);
                bytes = rest;
                if let Ok(header) = <[u8; REPLY_HEADER]>::try_from(&self.head[..]) {
                    self.head.clear();
                    let header = ReplyHeader::read(header);
                    if !self.expect(header)? {
                        return Ok(());
                    }
                }
                continue;
            };
            let wanted = receiving.header.length - receiving.done;
            let (part, rest) = bytes.split_at(wanted.min(bytes.len()));
            receiving.flight.writable.write(receiving.done, part)?;
            receiving.done += part.len();
            bytes = rest;
            self.advance(receiving)?;
        }
        Ok(())
    }

    /// Finds whose answer it is; `false` when it can be nobody's.
    fn expect(&mut self, header: ReplyHeader) -> Result<bool, WorkError> {
        let Some(flight) = self.flights.remove(&header.unique) else {
            self.lose("it answered what nobody asked")?;
            return Ok(false);
        };
        // The request may still be on its way: an answer to its first half is nonsense, too.
        let early = self
            .sending
            .as_ref()
            .is_some_and(|sending| (sending.queue, sending.head) == (flight.queue, flight.head));
        if early || !header.fits(flight.writable.len()) {
            self.fail(&flight, libc::EIO)?;
            self.lose("its answer is not one to the request")?;
            return Ok(false);
        }
        let done = REPLY_HEADER;
        self.advance(Receiving { flight, header, done })?;
        Ok(true)
    }

    /// Gives an answer that is whole to the guest, or waits for the rest of it.
    fn advance(&mut self, receiving: Receiving<'m>) -> Result<(), WorkError> {
        if receiving.done < receiving.header.length {
            self.receiving = Some(receiving);
            return Ok(());
        }
        let Receiving { flight, header, .. } = receiving;
        flight.writable.write(0, &header.for_guest(flight.unique))?;
        let length = u32::try_from(header.length).expect("read from 32 bits");
        Ok(self.rings[flight.queue].give_back(flight.head, length)?)
    }

    /// Answers a request without the peer.
    fn fail(&mut self, flight: &Flight<'m>, error: i32) -> Result<(), WorkError> {
        flight.writable.write(0, &error_reply(flight.unique, error))?;
        Ok(self.rings[flight.queue].give_back(flight.head, REPLY_HEADER as u32)?)
    }

    /// Speaks with the peer no more: all that it was asked fails.
    fn lose(&mut self, why: &str) -> Result<(), WorkError> {
        let Some(peer) = self.peer.take() else { return Ok(()) };
        // Once a session: there is no other peer.
        tracing::warn!(why, "a shared directory's process is lost");
        let _ = peer.shutdown(std::net::Shutdown::Both);
        self.out.clear();
        self.sent = 0;
        self.head.clear();
        if let Some(sending) = self.sending.take()
            && sending.unanswered
        {
            self.rings[sending.queue].give_back(sending.head, 0)?;
        }
        let cut = self.receiving.take().map(|receiving| receiving.flight);
        for flight in cut.into_iter().chain(std::mem::take(&mut self.flights).into_values()) {
            self.fail(&flight, libc::EIO)?;
        }
        Ok(())
    }
}
