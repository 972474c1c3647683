//! virtio-net (virtio 1.2, 5.1) on a tap: a receive and a transmit queue, one thread, frames straight between the tap and guest memory
//! with the kernel's own virtio-net header in front, so that segmentation and checksums are left to whoever can do them best.
//! Refuses nothing a frame says: the host's rules are on the other side of the tap. A frame the tap does not take is dropped; one that
//! limits hold back waits where it is, in the guest's queue or in the tap.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::epoll::EventFlags,
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
};
use vmm_sys_util::ioctl::{ioctl_with_ref, ioctl_with_val};

use self::{
    receive::{Filled, Receiver},
    transmit::transmit,
};
use super::placeholder::Placeholder;
use super::{
    device::{ActivateError, Activation, GuestSpace, VirtioDevice},
    pace::Pace,
    ring::{RING_FEATURES, Ring},
    worker::{Poller, STOP, WorkError, Worker, broke, eventfd, host},
};
use crate::{spec::NetLimits, threads::ThreadKind};

const QUEUE_SIZE: u16 = 256;
const QUEUES: &[u16] = &[QUEUE_SIZE, QUEUE_SIZE];
/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const TAP: u64 = 2;

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const HOST_TSO6: u64 = 1 << 12;
const MRG_RXBUF: u64 = 1 << 15;

const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// The device.
#[derive(Debug)]
pub struct Net {
    name: String,
    tap: Arc<File>,
    mac: [u8; 6],
    mtu: u16,
    /// Whether the tap is one; tests put a datagram socket in its place.
    real: bool,
    paces: Arc<Paces>,
    worker: Option<Worker>,
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
        let [a, b, c, d, e, f] = mac;
        Self {
            name: format!("net {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
            tap: Arc::new(tap),
            mac,
            mtu,
            real: true,
            paces: Paces::new(NetLimits::default()),
            worker: None,
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
        let mut net = Self::new(File::from(std::os::fd::OwnedFd::from(socket)), [2, 0, 0, 0, 0, 1], 1450);
        net.real = false;
        net
    }

    fn prepare_tap(&self, features: u64) -> io::Result<()> {
        let flags = fcntl_getfl(self.tap.as_fd())?;
        fcntl_setfl(self.tap.as_fd(), flags | OFlags::NONBLOCK)?;
        if !self.real {
            return Ok(());
        }
        let size = HEADER as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives on this stack.
        let sized = unsafe { ioctl_with_ref(&*self.tap, TUNSETVNETHDRSZ, &size) };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let offloads = unsafe { ioctl_with_val(&*self.tap, TUNSETOFFLOAD, offloads(features)) };
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
        QUEUES
    }

    fn features(&self) -> u64 {
        RING_FEATURES | CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6 | MRG_RXBUF | MTU | MAC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0u8; 12];
        config[..6].copy_from_slice(&self.mac);
        // status and max_virtqueue_pairs belong to features that are not offered.
        config[10..12].copy_from_slice(&self.mtu.to_le_bytes());
        super::worker::read_config(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let features = activation.features;
        self.prepare_tap(features).map_err(host("set the tap's offloads"))?;
        let (tap, paces) = (Arc::clone(&self.tap), Arc::clone(&self.paces));
        let work = move |poller: Poller, [receive, transmit]: [Ring<'_>; 2], _: &GuestSpace| {
            work(&poller, Receiver::new(receive, features), transmit, &tap, &paces)
        };
        self.worker = Some(Worker::over(&self.name, ThreadKind::Net, activation, work)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

fn work(poller: &Poller, mut receiver: Receiver<'_>, mut outgoing: Ring<'_>, tap: &File, paces: &Paces) -> Result<(), WorkError> {
    let watch = "watch queues and tap";
    poller
        .add(eventfd(receiver.kick()), RECEIVE, EventFlags::IN)
        .map_err(broke(watch))?;
    poller
        .add(eventfd(outgoing.kick()), TRANSMIT, EventFlags::IN)
        .map_err(broke(watch))?;
    // Edges only: a tap with frames waiting must not wake a thread that has no buffers to put them in.
    poller.add(tap, TAP, EventFlags::IN | EventFlags::ET).map_err(broke(watch))?;
    let (mut readable, mut wait) = (true, None);
    loop {
        let (mut stop, mut kicked, mut buffers) = (false, false, false);
        poller
            .wait(wait, |token, _| match token {
                STOP => stop = true,
                RECEIVE => buffers = true,
                TRANSMIT => kicked = true,
                _ => readable = true,
            })
            .map_err(broke("wait for events"))?;
        if stop {
            return Ok(());
        }
        if buffers {
            receiver.clear_kick();
        }
        if kicked {
            outgoing.clear_kick();
        }
        wait = transmit(&mut outgoing, tap, &paces.transmit)?;
        if readable {
            match receiver.fill(tap, &paces.receive)? {
                Filled::Drained => readable = false,
                // The guest's next buffers bring a kick.
                Filled::NoBuffers => {}
                Filled::More => receiver.rekick(),
                Filled::Wait(until) => wait = Some(wait.map_or(until, |other: Duration| other.min(until))),
            }
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
