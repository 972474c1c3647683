//! A tap in a network namespace of its own, whose interface the test takes up, down and away, and whose other end it is. The library's own tests
//! include this file too.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt};
use vmm_lib::tap::open_tap;

/// The kind of frames that tests send: one of those that are nobody's (IEEE 802, local experimental).
pub const KIND: [u8; 2] = [0x88, 0xb5];
const NAME: &str = "tested";
// From linux/rtnetlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFF_UP: u32 = 1;
/// NLM_F_REQUEST, NLM_F_ACK.
const ANSWER_ME: u16 = 1 | 4;

/// The namespace and the interface.
pub struct Network {
    /// What a machine gets.
    pub tap: OwnedFd,
    control: OwnedFd,
    index: u32,
}

/// Has `test` run in a network of its own. Without the right to make one there is nothing to see, which is said.
pub fn in_a_network(test: impl FnOnce(Network) + Send + 'static) {
    let begin = || {
        // SAFETY: gives this thread another network namespace, and changes nothing else.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let tap = open_tap(NAME)?;
        // NETLINK_ROUTE is 0, what a socket speaks by default.
        let control = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let index = rustix::net::netdevice::name_to_index(&control, NAME)?;
        Ok(Network { tap, control, index })
    };
    let all = move || match begin() {
        Ok(network) => test(network),
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
            eprintln!("no tap was tested, as this host gives none: {error}");
        }
        Err(error) => panic!("make a tap in a network of its own: {error}"),
    };
    // A thread of its own: the test's one may be that of others, too.
    if let Err(panic) = std::thread::spawn(all).join() {
        std::panic::resume_unwind(panic);
    }
}

impl Network {
    /// Frames go through.
    pub fn up(&self) {
        self.ask(RTM_NEWLINK, IFF_UP);
    }

    /// None do.
    pub fn down(&self) {
        self.ask(RTM_NEWLINK, 0);
    }

    /// The interface is gone; its descriptor stays open.
    pub fn delete(&self) {
        self.ask(RTM_DELLINK, 0);
    }

    fn ask(&self, kind: u16, flags: u32) {
        // struct nlmsghdr and struct ifinfomsg, of which all is told by the index.
        let mut message = Vec::new();
        message.extend(32u32.to_ne_bytes());
        message.extend([kind, ANSWER_ME].map(u16::to_ne_bytes).concat());
        message.extend([1, 0, 0, self.index, flags, IFF_UP].map(u32::to_ne_bytes).concat());
        send(&self.control, &message, SendFlags::empty()).expect("the kernel listens");
        let mut answer = [0; 512];
        let (length, _) = recv(&self.control, &mut answer, RecvFlags::empty()).expect("and answers");
        assert!(length >= 20, "an answer has an error or none");
        assert_eq!(
            i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]),
            0,
            "{kind} {flags}"
        );
    }

    /// The host's end of the interface, which is up: a socket of frames of [`KIND`].
    pub fn wire(&self) -> Wire {
        let kind = u16::from_ne_bytes(KIND);
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: makes a descriptor, and touches no memory.
        let raw = unsafe { libc::socket(libc::AF_PACKET, flags, i32::from(kind)) };
        assert!(raw >= 0, "a socket of frames: {}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made and is nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: all of it are numbers, for which zeros are values.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = kind;
        address.sll_ifindex = self.index as i32;
        // SAFETY: the kernel reads one address of this length, which lives on this stack.
        let bound = unsafe { libc::bind(raw, (&raw const address).cast(), size_of_val(&address) as libc::socklen_t) };
        assert_eq!(bound, 0, "bound to the interface: {}", io::Error::last_os_error());
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(20))).expect("it is a socket");
        Wire(File::from(socket))
    }
}

/// The host's end.
pub struct Wire(File);

impl Wire {
    /// The next frame from the guest.
    pub fn receive(&mut self) -> Vec<u8> {
        let mut frame = vec![0; 2048];
        let length = self.0.read(&mut frame).expect("a frame within the deadline");
        frame.truncate(length);
        frame
    }

    /// A frame for the guest.
    pub fn send(&mut self, frame: &[u8]) {
        assert_eq!(self.0.write(frame).expect("the interface is up"), frame.len());
    }
}

/// A frame for everybody, of 60 bytes.
pub fn frame(seed: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0xda, 0, 0, 0, 9]);
    frame.extend(KIND);
    frame.resize(60, seed);
    frame
}
