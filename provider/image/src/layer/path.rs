//! Paths of a layer made safe: no `..`, no NUL, nothing longer than a kernel takes; a leading `/` means the image's root.

use super::error::LayerError;
use super::limits::{Limit, Limits};
use crate::erofs::NAME_MAX;

/// A path for an error message, shortened.
pub(super) fn shown(raw: &[u8]) -> String {
    let head = &raw[..raw.len().min(256)];
    String::from_utf8_lossy(head).into_owned()
}

/// Components joined by single slashes, without one in front; empty for the root itself.
pub(super) fn normalize(raw: &[u8], limits: &Limits) -> Result<Vec<u8>, LayerError> {
    if raw.len() > limits.path_bytes {
        return Err(LayerError::TooLarge {
            limit: Limit::PathBytes,
            max: limits.path_bytes as u64,
        });
    }
    let bad = |reason: &str| LayerError::BadEntry {
        path: shown(raw),
        reason: reason.to_owned(),
    };
    if raw.contains(&0) {
        return Err(bad("its name contains a NUL byte"));
    }
    let mut path = Vec::with_capacity(raw.len());
    for component in raw.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => continue,
            b".." => return Err(LayerError::EscapingPath { path: shown(raw) }),
            _ if component.len() > NAME_MAX => return Err(bad("a part of its name is longer than 255 bytes")),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(component);
    }
    Ok(path)
}

/// The directory and the last component of a normalised path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_out_without_decoration() {
        let limits = Limits::default();
        for (raw, want) in [
            ("./a//b/./c/", "a/b/c"),
            ("/etc/passwd", "etc/passwd"),
            ("./", ""),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(normalize(raw.as_bytes(), &limits).unwrap(), want.as_bytes());
        }
    }

    #[test]
    fn paths_that_leave_the_image_are_refused() {
        let limits = Limits::default();
        for raw in ["..", "a/../b", "/../x", "a/.."] {
            assert!(
                matches!(normalize(raw.as_bytes(), &limits), Err(LayerError::EscapingPath { .. })),
                "{raw}"
            );
        }
        assert!(matches!(normalize(b"a\0b", &limits), Err(LayerError::BadEntry { .. })));
        assert!(matches!(normalize(&[b'a'; 256], &limits), Err(LayerError::BadEntry { .. })));
        assert!(matches!(
            normalize(&[b'/'; 5000], &limits),
            Err(LayerError::TooLarge {
                limit: Limit::PathBytes,
                ..
            })
        ));
    }
}
