//! Random bytes of the kernel's.

use rustix::rand::{GetRandomFlags, getrandom};

/// So many of them.
pub(crate) fn bytes<const N: usize>() -> std::io::Result<[u8; N]> {
    let (mut bytes, mut filled) = ([0; N], 0);
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}
