//! The few route netlink requests an agent needs, as bytes, and the socket that carries them. Knows nothing of pods.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const NLMSG_ERROR: u16 = 2;
/// REQUEST | ACK
const CHANGE: u16 = 1 | 4;
/// REQUEST | ACK | REPLACE | CREATE
const PUT: u16 = CHANGE | 0x100 | 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const UP: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// The address.
    pub(crate) address: IpAddr,
    /// Bits.
    pub(crate) length: u8,
}

impl std::str::FromStr for Prefix {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let bad = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{text:?} is not an address with a prefix length"),
            )
        };
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let length: u8 = length.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        if length > most { Err(bad()) } else { Ok(Self { address, length }) }
    }
}

/// A route netlink socket.
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Opens one.
    pub(crate) fn open() -> io::Result<Self> {
        // No protocol is number 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(5)))?;
        Ok(Self { socket })
    }

    /// Gives an interface, which must be down, another name.
    pub(crate) fn rename(&self, index: u32, name: &str) -> io::Result<()> {
        self.request(link(index, 0).attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat()))
    }

    /// Brings an interface up; `mtu` 0 leaves its own.
    pub(crate) fn up(&self, index: u32, mtu: u32) -> io::Result<()> {
        let up = link(index, UP);
        self.request(if mtu == 0 { up } else { up.attribute(IFLA_MTU, &mtu.to_ne_bytes()) })
    }

    /// Adds an address, usable at once (no duplicate detection: the host gave it).
    pub(crate) fn address(&self, index: u32, prefix: Prefix) -> io::Result<()> {
        self.request(address(index, prefix))
    }

    /// Adds a route; without a gateway the network is on the link.
    pub(crate) fn route(&self, index: u32, destination: Prefix, gateway: Option<IpAddr>) -> io::Result<()> {
        self.request(route(index, destination, gateway))
    }

    /// Adds a neighbour for ever.
    pub(crate) fn neighbour(&self, index: u32, ip: IpAddr, mac: [u8; 6]) -> io::Result<()> {
        self.request(neighbour(index, ip, mac))
    }

    fn request(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        send(&self.socket, &bytes, SendFlags::empty())?;
        let mut answer = vec![0; 8 << 10];
        let (length, _) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        acknowledged(&answer[..length.min(answer.len())])
    }
}

/// The kernel's answer to one request: an error message whose number is 0 when all went well.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let malformed = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "netlink answered something else than an acknowledgement",
        )
    };
    let kind = answer
        .get(4..6)
        .and_then(|b| b.try_into().ok())
        .map(u16::from_ne_bytes)
        .ok_or_else(malformed)?;
    let errno = answer
        .get(16..20)
        .and_then(|b| b.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(malformed)?;
    match (kind, errno) {
        (NLMSG_ERROR, 0) => Ok(()),
        (NLMSG_ERROR, errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Err(malformed()),
    }
}

struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("attributes are a name or an address");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("messages are a few dozen bytes");
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    u8::try_from(family.as_raw()).expect("address families are small numbers")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// ifinfomsg: family, pad, type, index, flags, change mask.
fn link(index: u32, up: u32) -> Message {
    let body = [&[0; 4][..], &index.to_ne_bytes(), &up.to_ne_bytes(), &up.to_ne_bytes()].concat();
    Message::new(RTM_NEWLINK, CHANGE).body(&body)
}

/// ifaddrmsg: family, prefix length, flags, scope, index.
fn address(index: u32, prefix: Prefix) -> Message {
    let body = [&[family(prefix.address), prefix.length, 0, 0][..], &index.to_ne_bytes()].concat();
    let octets = octets(prefix.address);
    Message::new(RTM_NEWADDR, PUT)
        .body(&body)
        .attribute(IFA_LOCAL, &octets)
        .attribute(IFA_ADDRESS, &octets)
        .attribute(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes())
}

/// rtmsg: family, destination and source lengths, tos, table main, protocol boot, scope, type unicast, flags.
fn route(index: u32, destination: Prefix, gateway: Option<IpAddr>) -> Message {
    // A gateway outside the interface's network (a /32 address) is reachable on the link all the same.
    let flags = if gateway.is_some() { RTNH_F_ONLINK } else { 0 };
    let scope = if gateway.is_some() || destination.address.is_ipv6() {
        0
    } else {
        253
    };
    let body = [
        &[family(destination.address), destination.length, 0, 0, 254, 3, scope, 1][..],
        &flags.to_ne_bytes(),
    ]
    .concat();
    let mut message = Message::new(RTM_NEWROUTE, PUT).body(&body).attribute(RTA_OIF, &index.to_ne_bytes());
    if destination.length > 0 {
        message = message.attribute(RTA_DST, &octets(destination.address));
    }
    match gateway {
        Some(gateway) => message.attribute(RTA_GATEWAY, &octets(gateway)),
        None => message,
    }
}

/// ndmsg: family, pads, index, state, flags, type.
fn neighbour(index: u32, ip: IpAddr, mac: [u8; 6]) -> Message {
    let body = [
        &[family(ip), 0, 0, 0][..],
        &index.to_ne_bytes(),
        &NUD_PERMANENT.to_ne_bytes(),
        &[0, 0],
    ]
    .concat();
    Message::new(RTM_NEWNEIGH, PUT)
        .body(&body)
        .attribute(NDA_DST, &octets(ip))
        .attribute(NDA_LLADDR, &mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_needs_an_address_and_a_length_that_fits_it() {
        let prefix: Prefix = "10.244.1.5/24".parse().unwrap();
        assert_eq!(
            prefix,
            Prefix {
                address: "10.244.1.5".parse().unwrap(),
                length: 24
            }
        );
        assert_eq!("fd00::5/64".parse::<Prefix>().unwrap().length, 64);
        for text in ["10.0.0.1", "10.0.0.1/33", "fd00::/129", "x/8", "10.0.0.1/", "/8", ""] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn messages_state_their_own_length_and_align_their_attributes() {
        let bytes = link(2, 0).attribute(IFLA_IFNAME, b"eth0\0").finish();
        assert_eq!(bytes.len(), 16 + 16 + 12);
        assert_eq!(bytes[..4], 44u32.to_ne_bytes());
        assert_eq!(bytes[32..34], 9u16.to_ne_bytes());
        assert_eq!(&bytes[36..], b"eth0\0\0\0\0");
    }

    #[test]
    fn the_kernels_refusal_becomes_an_error() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert!(acknowledged(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(acknowledged(&answer).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        assert!(acknowledged(&answer[..17]).is_err());
    }

    #[test]
    fn the_kernel_takes_every_request_on_the_loopback_of_a_fresh_network() {
        // In a thread of its own: the network name space is the thread's.
        let done = std::thread::spawn(|| {
            if crate::sys::unshare(rustix::thread::UnshareFlags::NEWNET).is_err() {
                return; // not root
            }
            let netlink = Netlink::open().unwrap();
            netlink.up(1, 1400).unwrap();
            for (address, destination, gateway) in [("10.9.8.7/24", "10.1.0.0/16", "10.9.8.1"), ("fd00::7/64", "fd01::/48", "fd00::1")] {
                netlink.address(1, address.parse().unwrap()).unwrap();
                netlink.route(1, destination.parse().unwrap(), None).unwrap();
                let any = if address.contains(':') { "::/0" } else { "0.0.0.0/0" };
                // The loopback has no neighbours: the kernel must understand the route, it may refuse the device.
                if let Err(e) = netlink.route(1, any.parse().unwrap(), Some(gateway.parse().unwrap())) {
                    assert!(
                        matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENETUNREACH | libc::EHOSTUNREACH)),
                        "{e}"
                    );
                }
            }
            let missing = netlink.rename(4711, "eth0").unwrap_err();
            assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        });
        done.join().unwrap();
    }
}
