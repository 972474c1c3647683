//! What TCP connections begin with, as a host's network sees them.

use std::{
    io::{Write, stdout},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// Writes of each IPv4 TCP segment with SYN and without ACK that this network namespace sees, a line each, until it is ended: source address, sequence
/// number, and that less the time in steps of 64 ns, which is what Linux adds to it (`secure_tcp_seq`).
pub fn watch() -> Result<()> {
    let packets = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("watch all packets")?;
    let (mut packet, mut out) = (vec![0; 2048], stdout());
    loop {
        let length = recv(packets.as_raw_fd(), &mut packet, MsgFlags::empty()).context("receive a packet")?;
        if let Some((source, sequence)) = beginning(&packet[..length]) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("it is before 1970")?;
            let rest = sequence.wrapping_sub((now.as_nanos() >> 6) as u32);
            writeln!(out, "{source} {sequence} {rest}")?;
        }
    }
}

/// Of an IPv4 packet that begins a TCP connection.
fn beginning(packet: &[u8]) -> Option<(Ipv4Addr, u32)> {
    const TCP: u8 = 6;
    const SYN: u8 = 1 << 1;
    const ACK: u8 = 1 << 4;
    let first = packet.first()?;
    if first >> 4 != 4 || *packet.get(9)? != TCP {
        return None;
    }
    let segment = packet.get(usize::from(first & 15) * 4..)?;
    let (sequence, flags) = (segment.get(4..8)?.try_into().ok()?, segment.get(13)?);
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    (flags & (SYN | ACK) == SYN).then(|| (source.into(), u32::from_be_bytes(sequence)))
}

#[cfg(test)]
mod tests {
    use super::beginning;

    #[test]
    fn only_the_first_segment_of_a_connection_counts() {
        let mut packet = vec![0u8; 40];
        (packet[0], packet[9], packet[15]) = (0x45, 6, 9);
        packet[24..28].copy_from_slice(&[0, 0, 1, 2]);
        for (flags, counts) in [(0x02, true), (0x12, false), (0x10, false)] {
            packet[33] = flags;
            assert_eq!(beginning(&packet), counts.then_some(([0, 0, 0, 9].into(), 258)), "{flags:#x}");
        }
        packet[33] = 2;
        for length in 0..34 {
            assert_eq!(beginning(&packet[..length]), None, "{length} bytes");
        }
    }
}
