//! Owns how a tap device is opened: one queue or several, frames with a virtio-net header in front, no packet information.
//!
//! Refuses persistence: the device lives as long as its descriptor, so nothing is left when the
//! machine's process is gone. Which offloads the guest takes is negotiated later, by the net device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

/// Bytes of a modern virtio-net header (with `num_buffers`), which precedes every frame.
pub const VNET_HEADER_LEN: usize = 12;

/// Longest name of an interface, without the closing zero.
const NAME_MAX: usize = 15;

// From linux/if_tun.h: _IOW('T', n, int).
const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u64 = 0x4004_54d8;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq`, as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_MAX + 1],
    flags: u16,
    rest: [u8; 22],
}

/// Makes the tap `name` in the calling thread's network namespace and returns its descriptor, non-blocking.
///
/// The interface is down and has no address. It vanishes with the last descriptor.
///
/// # Errors
///
/// When the name is not that of an interface, the device node is missing, or the kernel refuses.
pub fn open_tap(name: &str) -> io::Result<OwnedFd> {
    open_queue(name, 0)
}

/// Makes the tap `name` with so many queues (IFF_MULTI_QUEUE), and returns a descriptor for each; as [`open_tap`] otherwise.
///
/// # Errors
///
/// As [`open_tap`]; the kernel refuses more queues than it has room for, and further ones of a tap that was made with one.
pub fn open_tap_queues(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
    match queues {
        0 | 1 => Ok(vec![open_tap(name)?]),
        _ => (0..queues).map(|_| open_queue(name, IFF_MULTI_QUEUE)).collect(),
    }
}

fn open_queue(name: &str, flags: u16) -> io::Result<OwnedFd> {
    let mut request = InterfaceRequest::new(name)?;
    request.flags |= flags;
    // O_NONBLOCK; std adds O_CLOEXEC.
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open("/dev/net/tun")?;
    set_interface(&tap, &mut request)?;
    set_header_len(&tap, VNET_HEADER_LEN as i32)?;
    set_offloads(&tap, 0)?;
    Ok(tap.into())
}

impl InterfaceRequest {
    fn new(name: &str) -> io::Result<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > NAME_MAX || bytes.iter().any(|&b| b == 0 || b == b'/' || b == b'%') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is no interface name"),
            ));
        }
        let mut padded = [0; NAME_MAX + 1];
        padded[..bytes.len()].copy_from_slice(bytes);
        Ok(Self {
            name: padded,
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            rest: [0; 22],
        })
    }
}

fn set_interface(tap: &File, request: &mut InterfaceRequest) -> io::Result<()> {
    // SAFETY: TUNSETIFF copies one struct ifreq (40 bytes) in and out of the pointer. `InterfaceRequest` has that size
    // and layout, is fully initialised and exclusively borrowed for the whole call; its fields are integers, so any
    // bytes that the kernel writes back are valid.
    let result = unsafe { ioctl_with_mut_ref(tap, TUNSETIFF, request) };
    check(result)
}

fn set_header_len(tap: &File, len: i32) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int from the pointer, which is borrowed for the whole call.
    let result = unsafe { ioctl_with_ref(tap, TUNSETVNETHDRSZ, &len) };
    check(result)
}

fn set_offloads(tap: &File, offloads: u64) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { ioctl_with_val(tap, TUNSETOFFLOAD, offloads) };
    check(result)
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn a_tap_has_as_many_queues_as_were_asked_for() {
        // Without the right to make interfaces there is nothing to see; other errors fail.
        match open_tap_queues("kvqueues", 4) {
            Ok(queues) => assert_eq!(queues.len(), 4),
            Err(error) => assert!(
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound),
                "{error}"
            ),
        }
    }

    #[test]
    fn names_that_the_kernel_would_cut_or_expand_are_refused() {
        for name in ["", "sixteen-letters-", "tap%d", "a/b", "a\0b"] {
            assert_eq!(
                open_tap(name).map_err(|error| error.kind()).err(),
                Some(io::ErrorKind::InvalidInput),
                "{name:?}"
            );
        }
    }
}
