//! Extended attributes, kept inline behind their inode.
//!
//! Namespaces that EROFS has no index for, and `trusted.overlay.*`, which the guest's overlayfs would take for its own
//! bookkeeping, cannot be kept.

/// Header before the entries: name filter, count of shared attributes, reserved.
const HEADER: usize = 12;
/// The inode counts its attributes in words of four bytes, in sixteen bits.
const MAX_BYTES: usize = HEADER + 4 * (u16::MAX as usize - 1);

/// Longest prefix first where one contains another.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Splits a name into its namespace's index and the rest, where EROFS can keep it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    NAMESPACES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // The two ACLs are whole names, the others need something behind the dot.
        (rest.is_empty() == matches!(index, 2 | 3)).then_some((*index, rest))
    })
}

/// Whether an attribute of this name belongs into an image.
pub(crate) fn supported(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.overlay.") && split(name).is_some_and(|(_, rest)| rest.len() <= u8::MAX as usize)
}

/// Whether a file's attributes fit behind one inode.
pub(crate) fn fit(xattrs: &[(Vec<u8>, Vec<u8>)]) -> bool {
    xattrs.iter().all(|(_, value)| value.len() <= u16::MAX as usize) && encoded_len(xattrs) <= MAX_BYTES
}

/// Bytes that the attributes take behind their inode.
pub(super) fn encoded_len(xattrs: &[(Vec<u8>, Vec<u8>)]) -> usize {
    let entries: usize = xattrs
        .iter()
        .filter_map(|(name, value)| split(name).map(|(_, rest)| (4 + rest.len() + value.len()).next_multiple_of(4)))
        .sum();
    if entries == 0 { 0 } else { HEADER + entries }
}

/// What the inode says of that many bytes.
pub(super) fn icount(len: usize) -> u16 {
    if len == 0 {
        0
    } else {
        u16::try_from((len - HEADER) / 4 + 1).expect("`fit` was asked when the file was read")
    }
}

/// Appends the attributes in the order given.
pub(super) fn encode(xattrs: &[(Vec<u8>, Vec<u8>)], out: &mut Vec<u8>) {
    if encoded_len(xattrs) == 0 {
        return;
    }
    out.extend_from_slice(&[0; HEADER]);
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else { continue };
        let value_len = u16::try_from(value.len()).expect("`fit` was asked when the file was read");
        out.push(u8::try_from(rest.len()).expect("`supported` was asked when the file was read"));
        out.push(index);
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_that_erofs_knows_are_kept() {
        for name in [&b"user.a"[..], b"security.capability", b"system.posix_acl_access", b"trusted.x"] {
            assert!(supported(name));
        }
        for name in [
            &b"user."[..],
            b"system.nfs4_acl",
            b"trusted.overlay.opaque",
            b"a",
            b"system.posix_acl_accessx",
        ] {
            assert!(!supported(name));
        }
    }

    #[test]
    fn the_length_foretold_is_the_length_written() {
        let xattrs = vec![
            (b"user.a".to_vec(), b"12345".to_vec()),
            (b"security.capability".to_vec(), vec![0; 20]),
        ];
        let mut out = Vec::new();
        encode(&xattrs, &mut out);
        assert_eq!(out.len(), encoded_len(&xattrs));
    }
}
