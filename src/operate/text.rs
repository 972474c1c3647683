//! How figures look. Pure.

use std::time::Duration;

/// Of what is not known, or not there.
pub(super) const NONE: &str = "-";

/// A text, if it is known and says something.
pub(super) fn or_none(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| NONE.into())
}

/// Bytes, to three figures: `17`, `4.0Ki`, `129Mi`.
pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["", "Ki", "Mi", "Gi", "Ti"] {
        if value < 999.5 || unit == "Ti" {
            return match unit {
                "" => count.to_string(),
                _ if value < 9.95 => format!("{value:.1}{unit}"),
                _ => format!("{value:.0}{unit}"),
            };
        }
        value /= 1024.0;
    }
    unreachable!("the last unit returns")
}

/// How long something is ago, in its two largest units at most: `41s`, `3m5s`, `2h7m`, `4d3h`.
pub(super) fn age(ago: Duration) -> String {
    let seconds = ago.as_secs();
    let two = |large: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{smaller}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

/// A short time: `0.4ms`, `87ms`, `1.32s`.
pub(super) fn span(microseconds: u64) -> String {
    match microseconds {
        0..9_950 => format!("{:.1}ms", microseconds as f64 / 1e3),
        9_950..999_500 => format!("{:.0}ms", microseconds as f64 / 1e3),
        _ => format!("{:.2}s", microseconds as f64 / 1e6),
    }
}

/// Processor time: `0.04s`, `12.3s`, then as [`age`].
pub(super) fn processor_time(nanoseconds: u64) -> String {
    let seconds = nanoseconds as f64 / 1e9;
    match seconds {
        ..9.995 => format!("{seconds:.2}s"),
        ..59.95 => format!("{seconds:.1}s"),
        _ => age(Duration::from_nanos(nanoseconds)),
    }
}

/// What a guest has written, for a terminal: it shall not steer it. Line ends and tabs stay.
pub(super) fn visible(raw: &[u8]) -> Vec<u8> {
    let mut seen = Vec::with_capacity(raw.len());
    for byte in raw {
        match byte {
            b'\n' | b'\t' | b'\r' | b' '..=b'~' => seen.push(*byte),
            0..0x20 => seen.extend([b'^', byte + b'@']),
            0x7f => seen.extend(*b"^?"),
            // Among these are the controls of 8 bits.
            _ => seen.extend(format!("\\x{byte:02x}").bytes()),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_or_empty_is_a_dash() {
        let texts = [None, Some(String::new()), Some("7".to_owned())];
        assert_eq!(texts.map(or_none), ["-", "-", "7"]);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(
            [0, 999, 1000, 4096, 10 << 20, 1000 << 20].map(bytes),
            ["0", "999", "1.0Ki", "4.0Ki", "10Mi", "1.0Gi"]
        );
        assert_eq!(bytes(u64::MAX), "16777216Ti");
        let ages = [0, 59, 60, 185, 7_620, 86_400 + 3 * 3_600].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(ages, ["0s", "59s", "1m", "3m5s", "2h7m", "1d3h"]);
        assert_eq!([400, 87_000, 1_320_000].map(span), ["0.4ms", "87ms", "1.32s"]);
        assert_eq!(
            [40_000_000, 12_340_000_000, 185_000_000_000].map(processor_time),
            ["0.04s", "12.3s", "3m5s"]
        );
    }

    #[test]
    fn what_a_guest_writes_does_not_steer_the_terminal() {
        assert_eq!(visible(b"a\tb\r\n\x1b[2J\x7f\xff"), b"a\tb\r\n^[[2J^?\\xff");
    }
}
