//! virtio-net (virtio 1.2, 5.1) on a tap: pairs of a receive and a transmit queue, as many as the tap has queues, with one thread a pair and frames
//! straight between the tap and guest memory with the kernel's own virtio-net header in front, so that segmentation and checksums are left to whoever can do them best.
//! Refuses nothing a frame says: the host's rules are on the other side of the tap. A frame the tap does not take is dropped; one that
//! limits hold back waits where it is, in the guest's queue or in the tap.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod pairs;
mod receive;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_pairs;
#[cfg(test)]
mod tests_of_tap;
mod transmit;

use std::{fs::File, io, os::fd::AsRawFd, sync::Arc, time::Duration};

use rustix::{
    event::epoll::EventFlags,
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use self::{
    pairs::{Control, Taps},
    receive::{Filled, Receiver},
    transmit::transmit,
};
use super::placeholder::Placeholder;
use super::{
    device::{ActivateError, Activation, ActiveQueue, VirtioDevice},
    pace::Pace,
    ring::{RING_FEATURES, Ring},
    worker::{Poller, STOP, WorkError, Worker, broke, host},
};
use crate::{spec::NetLimits, threads::ThreadKind};

const QUEUE_SIZE: u16 = 256;
/// Queues of a device of one pair, which has no control queue.
const QUEUES: &[u16] = &[QUEUE_SIZE, QUEUE_SIZE];
/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const TAP: u64 = 2;
const CONTROL: u64 = 3;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;
const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// The device.
#[derive(Debug)]
pub struct Net {
    name: String,
    taps: Arc<Taps>,
    queues: Vec<u16>,
    mac: [u8; 6],
    mtu: u16,
    /// Whether the tap is one; tests put a datagram socket in its place.
    real: bool,
    /// Of all pairs together.
    paces: Arc<Paces>,
    workers: Vec<Worker>,
}

/// How fast each direction may be.
#[derive(Debug)]
struct Paces {
    receive: Pace,
    transmit: Pace,
}

impl Paces {
    fn new(limits: NetLimits) -> Arc<Self> {
        Arc::new(Self {
            receive: Pace::new(limits.receive),
            transmit: Pace::new(limits.transmit),
        })
    }
}

impl Net {
    /// A device on an open tap (IFF_NO_PI, IFF_VNET_HDR). The header's size and the offloads are set at each activation.
    pub fn new(tap: File, mac: [u8; 6], mtu: u16) -> Self {
        Self::on(vec![tap], (mac, mtu), true)
    }

    /// A device with a pair of queues for each of the `queues` of an open tap (IFF_MULTI_QUEUE, of which there is at least one).
    pub fn with_queues(queues: Vec<File>, mac: [u8; 6], mtu: u16) -> Self {
        Self::on(queues, (mac, mtu), true)
    }

    fn on(taps: Vec<File>, (mac, mtu): ([u8; 6], u16), real: bool) -> Self {
        let [a, b, c, d, e, f] = mac;
        let mut queues = QUEUES.repeat(taps.len());
        if taps.len() > 1 {
            queues.push(pairs::QUEUE_SIZE);
        }
        Self {
            name: format!("net {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            taps: Arc::new(Taps::new(taps, real)),
            queues,
            mac,
            mtu,
            real,
            paces: Paces::new(NetLimits::default()),
            workers: Vec::new(),
        }
    }

    /// No faster than this.
    #[must_use]
    pub fn limited(mut self, limits: NetLimits) -> Self {
        self.paces = Paces::new(limits);
        self
    }

    /// On a socket of datagrams that stands for the tap.
    #[cfg(test)]
    pub(crate) fn on_socket(socket: std::os::unix::net::UnixDatagram) -> Self {
        Self::on_sockets(vec![socket])
    }

    /// The same with several queues.
    #[cfg(test)]
    pub(crate) fn on_sockets(sockets: Vec<std::os::unix::net::UnixDatagram>) -> Self {
        let files = sockets.into_iter().map(|socket| File::from(std::os::fd::OwnedFd::from(socket)));
        Self::on(files.collect(), ([2, 0, 0, 0, 0, 1], 1450), false)
    }

    /// Starts the thread of a pair, the first of which has the control queue, if there is one.
    fn serve(&mut self, pair: usize, activation: Activation, control: Option<(ActiveQueue, usize)>) -> Result<(), ActivateError> {
        let (taps, paces, features) = (Arc::clone(&self.taps), Arc::clone(&self.paces), activation.features);
        // Written here, so that rings and memory are known to live as long as each other.
        let worker = Worker::over(
            &self.name,
            ThreadKind::Net,
            activation,
            move |poller, [receive, transmit], memory| {
                let control = control.map(|(queue, enabled)| Control::new(Ring::new(memory, queue, features), Arc::clone(&taps), enabled));
                work(
                    &poller,
                    (Receiver::new(receive, features), transmit, control),
                    taps.queue(pair),
                    &paces,
                )
            },
        )?;
        self.workers.push(worker);
        Ok(())
    }

    fn prepare_tap(&self, features: u64) -> io::Result<()> {
        for pair in 0..self.taps.count() {
            let flags = fcntl_getfl(self.taps.queue(pair))?;
            fcntl_setfl(self.taps.queue(pair), flags | OFlags::NONBLOCK)?;
        }
        if !self.real {
            return Ok(());
        }
        let size = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives on this stack.
        let sized = unsafe { ioctl_with_ref(self.taps.queue(0), TUNSETVNETHDRSZ, &size) };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let offloads = unsafe { ioctl_with_val(self.taps.queue(0), TUNSETOFFLOAD, offloads(features)) };
        if sized < 0 || offloads < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

/// What the tap may leave undone in frames for this guest. Segmentation without checksums makes no sense (virtio 1.2, 5.1.3.1).
fn offloads(features: u64) -> libc::c_ulong {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let four = if features & GUEST_TSO4 != 0 { TUN_F_TSO4 } else { 0 };
    let six = if features & GUEST_TSO6 != 0 { TUN_F_TSO6 } else { 0 };
    TUN_F_CSUM | four | six
}

/// A place for one.
pub(crate) fn placeholder() -> Placeholder {
    Placeholder::of(1, "net", QUEUES)
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        1
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }

    fn is_detachable(&self) -> bool {
        true
    }

    fn features(&self) -> u64 {
        let several = if self.taps.count() > 1 { CTRL_VQ | MQ } else { 0 };
        RING_FEATURES | several | CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF | MTU | MAC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0u8; 12];
        config[..6].copy_from_slice(&self.mac);
        // status belongs to a feature that is not offered.
        if self.taps.count() > 1 {
            config[8..10].copy_from_slice(&(self.taps.count() as u16).to_le_bytes());
        }
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        super::worker::read_config(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let features = activation.features;
        self.prepare_tap(features).map_err(host("set the tap up"))?;
        // A driver begins with one pair.
        let used = if activation.again { self.taps.used() } else { 1 };
        self.taps.use_first(used).map_err(host("set the tap's queues"))?;
        // Without MQ there is one pair, and the control queue behind it (5.1.2).
        let most = if features & MQ == 0 { 1 } else { self.taps.count() };
        let mut queues = std::mem::take(&mut activation.queues);
        let control = queues.get_mut(2 * most).and_then(Option::take).filter(|_| features & CTRL_VQ != 0);
        queues.truncate(2 * most);
        let mut pairs: Vec<Vec<_>> = Vec::new();
        while queues.len() >= 2 {
            pairs.push(queues.drain(..2).collect());
        }
        let whole = |pair: &Vec<Option<ActiveQueue>>| pair.iter().all(Option::is_some);
        // The first one has to be: its absence is told below.
        let enabled = pairs.iter().take_while(|pair| whole(pair)).count().max(1);
        let mut control = control.map(|queue| (queue, enabled));
        for (pair, queues) in pairs.into_iter().take(enabled).enumerate() {
            let part = Activation {
                memory: activation.memory.clone(),
                features,
                queues,
                config_changed: activation.config_changed.clone(),
                threads: activation.threads.clone(),
                failed: Arc::clone(&activation.failed),
                again: activation.again,
            };
            self.serve(pair, part, control.take())?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
    }

    /// How many pairs its driver uses, where there are several.
    fn save(&self) -> Vec<u8> {
        if self.taps.count() > 1 {
            vec![self.taps.used() as u8]
        } else {
            Vec::new()
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        match state {
            [] if self.taps.count() == 1 => Ok(()),
            [used] if (1..=self.taps.count()).contains(&usize::from(*used)) && self.taps.count() > 1 => {
                let set = self.taps.use_first(usize::from(*used));
                set.map_err(|error| format!("set the tap's queues: {error}"))
            }
            _ => Err("its state is that of another device".to_owned()),
        }
    }
}

type Queues<'m> = (Receiver<'m>, Ring<'m>, Option<Control<'m>>);

fn work(poller: &Poller, (mut receiver, mut outgoing, mut control): Queues<'_>, tap: &File, paces: &Paces) -> Result<(), WorkError> {
    let watch = "watch queues and tap";
    poller.add_kick(receiver.kick(), RECEIVE).map_err(broke(watch))?;
    poller.add_kick(outgoing.kick(), TRANSMIT).map_err(broke(watch))?;
    if let Some(control) = &control {
        poller.add_kick(control.ring().kick(), CONTROL).map_err(broke(watch))?;
    }
    let level = EventFlags::IN;
    // A tap whose frames nobody takes now, or that has no interface, must not wake the thread again and again.
    let edge = EventFlags::IN | EventFlags::ET;
    let mut watched = level;
    poller.add(tap, TAP, watched).map_err(broke(watch))?;
    let (mut readable, mut wait, mut pieces) = (true, None, Vec::new());
    loop {
        let (mut stop, mut asked) = (false, false);
        poller
            .wait(wait, |token, _| match token {
                STOP => stop = true,
                // Both queues are looked at below.
                RECEIVE | TRANSMIT => {}
                CONTROL => asked = true,
                _ => readable = true,
            })
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        if let (true, Some(control)) = (asked, &mut control) {
            control.turn()?;
        }
        wait = transmit(&mut outgoing, tap, &paces.transmit, &mut pieces)?;
        if !readable {
            continue;
        }
        let filled = receiver.fill(tap, &paces.receive)?;
        // Without buffers: the guest's next ones bring a kick.
        readable = matches!(filled, Filled::NoBuffers | Filled::Wait(_));
        if let Filled::Wait(until) = filled {
            wait = Some(wait.map_or(until, |other: Duration| other.min(until)));
        }
        let wanted = if matches!(filled, Filled::Drained | Filled::More) {
            level
        } else {
            edge
        };
        if wanted != watched {
            poller.modify(tap, TAP, wanted).map_err(broke(watch))?;
            watched = wanted;
        }
    }
}

/// One readv or writev on the tap, again when a signal comes between.
fn vectored(tap: &File, iovecs: &[libc::iovec], read: bool) -> io::Result<usize> {
    let count = libc::c_int::try_from(iovecs.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    loop {
        let moved = if read {
            // SAFETY: each iovec is a piece of guest memory that its VolatileSlice keeps mapped during the call; the kernel writes only there, and guest
            // memory is never seen as a Rust reference.
            unsafe { libc::readv(tap.as_raw_fd(), iovecs.as_ptr(), count) }
        } else {
            // SAFETY: as above, and the kernel only reads.
            unsafe { libc::writev(tap.as_raw_fd(), iovecs.as_ptr(), count) }
        };
        if let Ok(moved) = usize::try_from(moved) {
            return Ok(moved);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
