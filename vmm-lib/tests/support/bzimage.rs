//! A kernel around a few instructions. Tests of other crates include this file too.

/// Where the payload is loaded and entered.
pub(crate) const LOAD: u64 = 0x10_0000;

/// A bzImage of protocol 2.12 whose 64-bit entry is `code`.
pub(crate) fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 1024];
    let mut payload = vec![0u8; 0x200];
    payload.extend(code);
    payload.resize(payload.len().next_multiple_of(16), 0x90);
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&((payload.len() / 16) as u32).to_le_bytes());
    image[0x201] = 0x66;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20cu16.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&1u16.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&LOAD.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
    image.extend(payload);
    image
}
