//! One line of a log file in the CRI format: `<RFC 3339 with nanoseconds> stdout|stderr F|P <text>\n`.

use kvmlet_protocol::{LogRecord, LogStream};

/// Appends the line of `record`.
pub(super) fn append(record: &LogRecord, to: &mut Vec<u8>) {
    append_time(record.time, to);
    to.extend_from_slice(match record.stream {
        LogStream::Stdout => b" stdout ",
        LogStream::Stderr => b" stderr ",
    });
    to.extend_from_slice(if record.partial { b"P " } else { b"F " });
    to.extend_from_slice(&record.data);
    to.push(b'\n');
}

/// Appends nanoseconds since 1970 as `2026-11-21T08:00:00.000000001Z`.
fn append_time(time: u64, to: &mut Vec<u8>) {
    let (seconds, nanos) = (time / 1_000_000_000, time % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    to.extend_from_slice(format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z").as_bytes());
}

/// Days since 1970 as a date of the Gregorian calendar. Years are counted from March on, so that the leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_IN_400_YEARS: u64 = 146_097;
    // From 0000-03-01.
    let days = days + 719_468;
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_time_stream_and_tag() {
        let mut record = LogRecord {
            container: "a".into(),
            sequence: 1,
            stream: LogStream::Stderr,
            time: 1_582_934_399_000_000_001,
            partial: true,
            data: b"so far".to_vec(),
        };
        let mut line = Vec::new();
        append(&record, &mut line);
        assert_eq!(line, b"2020-02-28T23:59:59.000000001Z stderr P so far\n");
        (record.stream, record.partial, record.time) = (LogStream::Stdout, false, 1_582_934_400_123_000_000);
        line.clear();
        append(&record, &mut line);
        assert_eq!(line, b"2020-02-29T00:00:00.123000000Z stdout F so far\n");
    }

    #[test]
    fn dates_are_right_at_the_edges() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_778, (2026, 11, 21)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(date(days), expected, "{days}");
        }
        let mut line = Vec::new();
        append_time(u64::MAX, &mut line);
        assert_eq!(line, b"2554-07-21T23:34:33.709551615Z");
    }
}
