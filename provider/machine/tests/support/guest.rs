//! What guests do that have a disk.

use super::SPIN;

/// Brings the first device up, a disk, and writes its sector 1: "Hell" at its beginning, "o!" at its end. Then it spins.
pub(crate) fn writes_a_sector() -> Vec<u8> {
    /// Of the first device, behind the host bridge; and where its registers are.
    const CONFIG: u32 = 0xe000_8000;
    const BAR: u32 = 0xc000_0000;
    /// Rings, and the request: header, two pages of data, status.
    const TABLE: u32 = 0x100_0000;
    const AVAILABLE: u32 = 0x101_0000;
    const USED: u32 = 0x102_0000;
    const HEADER: u32 = 0x103_0000;
    const DATA: u32 = 0x104_0000;
    // mov $address, %edi; then a mov of 1, 2 or 4 bytes to (%rdi).
    let write = |address: u32, width: usize, value: u32| {
        let code: &[u8] = match width {
            1 => &[0xc6, 0x07],
            2 => &[0x66, 0xc7, 0x07],
            _ => &[0xc7, 0x07],
        };
        [&[0xbf], &address.to_le_bytes()[..], code, &value.to_le_bytes()[..width]].concat()
    };
    let mut code = Vec::new();
    // Decoded at BAR; ACKNOWLEDGE, DRIVER; VERSION_1; FEATURES_OK; the only queue has 8 places; DRIVER_OK.
    for (address, width, value) in [
        (CONFIG + 0x10, 4, BAR),
        (CONFIG + 0x14, 4, 0),
        (CONFIG + 4, 2, 6),
        (BAR + 0x14, 1, 3),
        (BAR + 8, 4, 1),
        (BAR + 0xc, 4, 1),
        (BAR + 0x14, 1, 11),
        (BAR + 0x16, 2, 0),
        (BAR + 0x18, 2, 8),
        (BAR + 0x20, 4, TABLE),
        (BAR + 0x28, 4, AVAILABLE),
        (BAR + 0x30, 4, USED),
        (BAR + 0x1c, 2, 1),
        (BAR + 0x14, 1, 15),
        // Writes sector 1.
        (HEADER, 4, 1),
        (HEADER + 8, 4, 1),
        (DATA, 4, 0x6c6c_6548),
        (DATA + 508, 4, 0x216f),
        (TABLE, 4, HEADER),
        (TABLE + 8, 4, 16),
        (TABLE + 12, 4, 0x1_0001),
        (TABLE + 16, 4, DATA),
        (TABLE + 24, 4, 512),
        (TABLE + 28, 4, 0x2_0001),
        (TABLE + 32, 4, HEADER + 512),
        (TABLE + 40, 4, 1),
        (TABLE + 44, 4, 2),
        (AVAILABLE + 2, 2, 1),
        (BAR + 0x1000, 2, 0),
    ] {
        code.extend(write(address, width, value));
    }
    code.extend(SPIN);
    code
}
