//! The multiplexer: who belongs to whom, whose turn it is, and what the guest's packets mean. Bounded in everything a guest or a client can
//! make grow: connections, resets that wait, time to say `CONNECT`, time to answer, packets in one turn.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    os::unix::net::{UnixListener, UnixStream},
    time::{Duration, Instant},
};

use rustix::event::epoll::EventFlags;

use super::connection::{Connection, Over, State, Step};
use super::dial::InletView;
use super::packet::{self, HEADER, HOST_CID, Header, STREAM};
use super::reset;
use crate::virtio::{
    chain::{Chain, ChainError},
    ring::Ring,
    worker::{Poller, STOP, WorkError, broke, eventfd},
};

/// Most connections at a time; further ones are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// Most resets that wait for a guest's buffer; further ones are not sent.
const MAX_RESETS: usize = 256;
/// Packets in one direction in one turn.
const TURN: usize = 256;
/// Time for a client to say where it wants to go.
const LINE_DEADLINE: Duration = Duration::from_secs(5);
/// Time for the guest to answer a request, and to confirm a close.
const GUEST_DEADLINE: Duration = Duration::from_secs(10);
/// Time until clients are accepted again after descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// First host port; below are those that a person might take for something.
const FIRST_PORT: u32 = 1 << 30;

const RECEIVE: u64 = 1 << 32;
const TRANSMIT: u64 = RECEIVE + 1;
const LISTENER: u64 = RECEIVE + 2;
const INLET: u64 = RECEIVE + 3;

pub(super) struct Mux<'m> {
    guest: u64,
    poller: Poller,
    listener: UnixListener,
    inlet: Option<InletView>,
    /// To the guest.
    receive: Ring<'m>,
    /// From the guest.
    transmit: Ring<'m>,
    /// Buffers taken from `receive`, in its order, that nothing was put into yet.
    spare: VecDeque<Chain<'m>>,
    connections: HashMap<u32, Connection>,
    deadlines: BTreeSet<(Instant, u32)>,
    ready: VecDeque<u32>,
    resets: VecDeque<Header>,
    next_port: u32,
    accept_again: Option<Instant>,
    /// Kept from turn to turn for its room.
    events: Vec<(u64, EventFlags)>,
}

impl<'m> Mux<'m> {
    pub(super) fn new(
        guest: u64,
        poller: Poller,
        (listener, inlet): (UnixListener, Option<InletView>),
        receive: Ring<'m>,
        transmit: Ring<'m>,
    ) -> Self {
        Self {
            guest,
            poller,
            listener,
            inlet,
            receive,
            transmit,
            spare: VecDeque::new(),
            connections: HashMap::new(),
            deadlines: BTreeSet::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            accept_again: None,
            events: Vec::new(),
        }
    }

    /// Serves until it shall stop. With `events` the guest has connections of before, which it drops first.
    pub(super) fn run(mut self, events: Option<Ring<'m>>) -> Result<(), WorkError> {
        if let Some(events) = events
            && !reset::connections(&self.poller, events)?
        {
            return Ok(());
        }
        self.watch()?;
        while self.turn(None)? {}
        Ok(())
    }

    /// Before the first turn.
    pub(super) fn watch(&mut self) -> Result<(), WorkError> {
        let watch = "watch queues and clients";
        self.poller.add_kick(self.receive.kick(), RECEIVE).map_err(broke(watch))?;
        self.poller.add_kick(self.transmit.kick(), TRANSMIT).map_err(broke(watch))?;
        self.poller.add(&self.listener, LISTENER, EventFlags::IN).map_err(broke(watch))?;
        if let Some(inlet) = &self.inlet {
            self.poller
                .add(eventfd(inlet.waker()), INLET, EventFlags::IN)
                .map_err(broke(watch))?;
            // Those that came while the device was not active have woken an earlier thread, or nobody.
            self.take_in();
        }
        Ok(())
    }

    /// Waits, `most` at the longest, and does what there is to do. `false`: the device shall stop.
    pub(super) fn turn(&mut self, most: Option<Duration>) -> Result<bool, WorkError> {
        let deadline = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = [deadline, most].into_iter().flatten().min();
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.poller
            .wait(timeout, |token, flags| events.push((token, flags)))
            .map_err(broke("wait for events"))?;
        for &(token, flags) in &events {
            match token {
                STOP => return Ok(false),
                // Both queues are looked at below.
                RECEIVE | TRANSMIT => {}
                LISTENER => self.accept()?,
                INLET => self.take_in(),
                port => self.client_event(port as u32, flags),
            }
        }
        self.events = events;
        self.take_from_guest()?;
        self.give_to_guest()?;
        self.expire()?;
        Ok(true)
    }

    fn next_deadline(&self) -> Option<Instant> {
        let first = self.deadlines.first().map(|(at, _)| *at);
        [first, self.accept_again].into_iter().flatten().min()
    }

    fn accept(&mut self) -> Result<(), WorkError> {
        for _ in 0..16 {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => continue,
                Err(error) => {
                    tracing::warn!(%error, "a vsock client could not be accepted; the next attempt is in a second");
                    self.poller.remove(&self.listener).map_err(broke("pause accepting"))?;
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return Ok(());
                }
            };
            if self.connections.len() < MAX_CONNECTIONS {
                self.admit(stream);
            }
        }
        Ok(())
    }

    /// Connections from this process.
    fn take_in(&mut self) {
        if let Some(inlet) = &self.inlet {
            // Nothing to read means that it was read for an earlier one.
            let _ = inlet.waker().read();
        }
        while let Some(stream) = self.inlet.as_ref().and_then(InletView::next) {
            if self.connections.len() < MAX_CONNECTIONS {
                self.admit(stream);
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let port = self.free_port();
        // Edges only: a client with bytes waiting must not wake a thread that has no buffer or credit for them.
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET;
        // Without both there is no way to serve it: it is closed.
        if stream.set_nonblocking(true).is_err() || self.poller.add(&stream, u64::from(port), flags).is_err() {
            return;
        }
        let deadline = Instant::now() + LINE_DEADLINE;
        self.deadlines.insert((deadline, port));
        self.connections.insert(port, Connection::new(stream, port, deadline));
    }

    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).filter(|next| *next != u32::MAX).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&port) {
                return port;
            }
        }
    }

    fn client_event(&mut self, port: u32, flags: EventFlags) {
        self.with(port, |connection| {
            if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
                connection.readable = true;
            }
            if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
                connection.hang_up()?;
            }
            if flags.contains(EventFlags::OUT) {
                connection.flush()?;
            }
            if connection.state == State::Line && connection.read_line()? {
                connection.deadline = Some(Instant::now() + GUEST_DEADLINE);
            }
            Ok(())
        });
    }

    /// Does something to a connection, then what follows from it: removal, a deadline, a place among those that want to send.
    fn with(&mut self, port: u32, act: impl FnOnce(&mut Connection) -> Result<(), Over>) {
        let Some(connection) = self.connections.get_mut(&port) else {
            return;
        };
        let (deadline, writing) = (connection.deadline, connection.wants_to_write());
        let outcome = act(connection);
        if deadline != connection.deadline {
            deadline.map(|at| self.deadlines.remove(&(at, port)));
            connection.deadline.map(|at| self.deadlines.insert((at, port)));
        }
        if let Err(over) = outcome {
            self.forget(port, over);
            return;
        }
        if writing != connection.wants_to_write() {
            let out = if writing { EventFlags::empty() } else { EventFlags::OUT };
            let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::ET | out;
            if self.poller.modify(&connection.stream, u64::from(port), flags).is_err() {
                self.forget(port, Over::Reset);
                return;
            }
        }
        if !connection.queued && connection.has_work() {
            connection.queued = true;
            self.ready.push_back(port);
        }
    }

    /// Closes a connection's socket (which takes it out of epoll) and tells the guest.
    fn forget(&mut self, port: u32, over: Over) {
        let Some(mut connection) = self.connections.remove(&port) else {
            return;
        };
        connection.deadline.map(|at| self.deadlines.remove(&(at, port)));
        if connection.queued {
            // A guest that gives no buffers would let them pile up.
            self.ready.retain(|waiting| *waiting != port);
        }
        if over == Over::Reset {
            let reset = connection.reset(self.guest);
            self.reset(reset);
        }
    }

    fn reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        }
    }

    /// Takes the guest's packets.
    fn take_from_guest(&mut self) -> Result<(), ChainError> {
        self.transmit.disarm()?;
        for _ in 0..TURN {
            let Some(chain) = self.transmit.pop()? else { break };
            let mut raw = [0u8; HEADER];
            chain.readable.read(0, &mut raw)?;
            self.packet(Header::parse(&raw), &chain);
            self.transmit.give_back(chain.head, 0)?;
        }
        self.transmit.settle()
    }

    fn packet(&mut self, header: Header, chain: &Chain<'_>) {
        if header.src_cid != self.guest {
            return;
        }
        let known = header.dst_cid == HOST_CID
            && header.kind == STREAM
            && self.connections.get(&header.dst_port).is_some_and(|connection| {
                connection.guest_port == header.src_port && matches!(connection.state, State::Requested | State::Established)
            });
        if !known {
            if header.op != packet::RST {
                self.reset(header.reset());
            }
            return;
        }
        let length = header.len as usize;
        self.with(header.dst_port, |connection| {
            connection.credit(&header);
            match (header.op, connection.state) {
                (packet::RST, State::Requested) => Err(Over::Quiet),
                (packet::RST, _) => connection.guest_resets(),
                (packet::RESPONSE, State::Requested) => {
                    connection.deadline = None;
                    connection.accepted()
                }
                (packet::RW, State::Established) if length <= chain.readable.len() - HEADER => {
                    connection.receive(&chain.readable, HEADER, length)
                }
                (packet::SHUTDOWN, State::Established) => connection.guest_shuts_down(header.flags),
                (packet::CREDIT_UPDATE, State::Established) => Ok(()),
                (packet::CREDIT_REQUEST, State::Established) => {
                    connection.owe_credit();
                    Ok(())
                }
                _ => Err(Over::Reset),
            }
        });
    }

    /// Gives the guest what waits for it, each connection in turn, as long as there are buffers.
    fn give_to_guest(&mut self) -> Result<(), ChainError> {
        let mut sent = 0;
        while !self.resets.is_empty() || !self.ready.is_empty() {
            if sent >= TURN {
                self.receive.rekick();
                break;
            }
            if !self.take_buffer()? {
                break;
            }
            sent += 1;
            if let Some(reset) = self.resets.pop_front() {
                self.send(reset)?;
            } else if let Some(port) = self.ready.pop_front() {
                self.take_more(self.connections.get(&port).map_or((0, 0), Connection::wants))?;
                let headers = self.packets(port);
                sent += headers.len().saturating_sub(1);
                for header in headers {
                    self.send(header)?;
                }
            }
        }
        self.receive.notify()
    }

    /// The next packets of a connection, with their payloads in the first of the spare buffers.
    fn packets(&mut self, port: u32) -> Vec<Header> {
        let (guest, spare) = (self.guest, std::mem::take(&mut self.spare));
        let mut headers = Vec::new();
        self.with(port, |connection| {
            connection.queued = false;
            headers = connection.read(guest, spare.iter().map(|buffer| &buffer.writable), HEADER);
            if let (true, Some(buffer)) = (headers.is_empty(), spare.front())
                && let Step::Send(header) = connection.step(guest, &buffer.writable, HEADER)
            {
                headers.push(header);
            }
            if connection.closing() && connection.deadline.is_none() {
                connection.deadline = Some(Instant::now() + GUEST_DEADLINE);
            }
            Ok(())
        });
        self.spare = spare;
        headers
    }

    /// Sees that there is a spare buffer. Without one, the guest will kick.
    fn take_buffer(&mut self) -> Result<bool, ChainError> {
        while self.spare.is_empty() {
            if self.take_one()? {
                break;
            }
            self.receive.notify()?;
            if !self.receive.arm()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes buffers until there are so many, so many bytes fit, or the guest has given no more.
    fn take_more(&mut self, (buffers, bytes): (usize, usize)) -> Result<(), ChainError> {
        let room = |spare: &VecDeque<Chain<'_>>| spare.iter().map(|buffer| buffer.writable.len() - HEADER).sum::<usize>();
        while self.spare.len() < buffers && room(&self.spare) < bytes && self.take_one()? {}
        Ok(())
    }

    /// Takes a buffer with room for a header and something behind it, if the guest has given one.
    fn take_one(&mut self) -> Result<bool, ChainError> {
        let Some(chain) = self.receive.pop()? else {
            return Ok(false);
        };
        if chain.writable.len() <= HEADER {
            return Err(ChainError::TooShort);
        }
        self.spare.push_back(chain);
        Ok(true)
    }

    /// In the first of the spare buffers, of which there is one.
    fn send(&mut self, header: Header) -> Result<(), ChainError> {
        let Some(buffer) = self.spare.pop_front() else { return Ok(()) };
        buffer.writable.write(0, &header.bytes())?;
        self.receive.give_back(buffer.head, HEADER as u32 + header.len)
    }

    fn expire(&mut self) -> Result<(), WorkError> {
        let now = Instant::now();
        while let Some((_, port)) = self.deadlines.first().copied().filter(|(at, _)| *at <= now) {
            let said_nothing = self
                .connections
                .get(&port)
                .is_some_and(|connection| connection.state == State::Line);
            self.forget(port, if said_nothing { Over::Quiet } else { Over::Reset });
        }
        if self.accept_again.is_some_and(|at| at <= now) {
            self.accept_again = None;
            self.poller
                .add(&self.listener, LISTENER, EventFlags::IN)
                .map_err(broke("accept again"))?;
        }
        Ok(())
    }
}
