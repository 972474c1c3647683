//! One line of a CRI log file: `<RFC 3339 time> <stdout|stderr> <P|F>[:more] <content>`.

use jiff::Timestamp;

/// The longest head of a record: what precedes its content.
pub(super) const MAX_HEAD: usize = 96;

/// Which output a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// A parsed line, without its newline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) time: &'a str,
    pub(super) stream: Stream,
    /// The line of the container goes on in the next record of this stream.
    pub(super) partial: bool,
    pub(super) content: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses a line; none if it is not in the format.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let (time, rest) = split(line)?;
        let (stream, rest) = split(rest)?;
        let (tags, content) = split(rest)?;
        let stream = match stream {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let time = std::str::from_utf8(time).ok().filter(|time| time.len() >= 20)?;
        Some(Self {
            time,
            stream,
            partial: is_partial(tags),
            content,
        })
    }

    /// The record's time; none if it is no time.
    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Whether the record that begins with `head` is a partial one. What is malformed counts as a whole line.
pub(super) fn head_is_partial(head: &[u8]) -> bool {
    let tags = split(head).and_then(|(_, rest)| split(rest)).and_then(|(_, rest)| split(rest));
    tags.is_some_and(|(tags, _)| is_partial(tags))
}

/// `time` with nine digits of a second, as the kubelet prints it.
pub(super) fn push_time(out: &mut Vec<u8>, time: &str) {
    const FIXED: usize = "2026-01-02T03:04:05.000000000Z".len();
    match time.parse::<Timestamp>() {
        Ok(parsed) if time.len() != FIXED || !time.ends_with('Z') => {
            out.extend_from_slice(format!("{parsed:.9}").as_bytes());
        }
        _ => out.extend_from_slice(time.as_bytes()),
    }
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().take(MAX_HEAD).position(|byte| *byte == b' ')?;
    Some((&bytes[..space], &bytes[space + 1..]))
}

fn is_partial(tags: &[u8]) -> bool {
    tags.split(|byte| *byte == b':').next() == Some(b"P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_what_is_none_is_refused() {
        let time = "2026-01-02T03:04:05.123456789Z";
        let line = |rest: &str| format!("{time} {rest}").into_bytes();
        let expected = |stream, partial, content: &'static [u8]| {
            Some(Record {
                time,
                stream,
                partial,
                content,
            })
        };
        assert_eq!(
            Record::parse(&line("stdout F hello there")),
            expected(Stream::Stdout, false, b"hello there")
        );
        assert_eq!(Record::parse(&line("stderr P:x ")), expected(Stream::Stderr, true, b""));
        for bad in ["stdin F x", "stdout F", "stdout"] {
            assert_eq!(Record::parse(&line(bad)), None, "{bad}");
        }
        assert_eq!(Record::parse(b"{\"log\":\"docker\"}"), None);
        assert!(head_is_partial(&line("stdout P x")) && !head_is_partial(b"garbage"));
    }

    #[test]
    fn times_are_printed_with_nine_digits() {
        for (time, printed) in [
            ("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:05.500000000Z"),
            ("2026-01-02T03:04:05.123456789Z", "2026-01-02T03:04:05.123456789Z"),
            ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05.000000000Z"),
        ] {
            let mut out = Vec::new();
            push_time(&mut out, time);
            assert_eq!(String::from_utf8(out).as_deref(), Ok(printed));
        }
    }
}
