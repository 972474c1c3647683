//! PAX extended headers: `length key=value\n` records. Lengths rule, not newlines, as values of attributes are binary.

use crate::erofs::Time;

/// The records this store understands; all others describe nothing that an image keeps.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: bool,
}

impl Pax {
    /// Adds the records of one header, later ones winning.
    pub(super) fn read(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        const BROKEN: &str = "malformed PAX header";
        while !data.is_empty() && data[0] != 0 {
            let space = data.iter().position(|byte| *byte == b' ').ok_or(BROKEN)?;
            let length = number(&data[..space]).ok_or(BROKEN)? as usize;
            let record = data.get(space + 1..length).ok_or(BROKEN)?;
            data = &data[length..];
            let record = record.strip_suffix(b"\n").ok_or(BROKEN)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BROKEN)?;
            self.record(&record[..equals], &record[equals + 1..]).ok_or(BROKEN)?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if key.starts_with(b"GNU.sparse.") {
                    self.sparse = true;
                }
            }
        }
        Some(())
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with an optional fraction, possibly before 1970.
fn time(text: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        // The fraction counts away from zero, nanoseconds count upwards.
        Some(Time {
            secs: secs.checked_sub(1)?,
            nanos: 1_000_000_000 - nanos,
        })
    } else {
        Some(Time { secs, nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_contain_newlines() {
        let mut pax = Pax::default();
        pax.read(b"28 SCHILY.xattr.user.a=x\ny\0\n11 path=a\n\n").unwrap();
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"x\ny\0".to_vec())]);
        assert_eq!(pax.path.as_deref(), Some(&b"a\n"[..]));
    }

    #[test]
    fn broken_records_are_errors() {
        for data in [&b"99 path=a\n"[..], b"path=a\n", b"7 path\n", b"10 size=x\n", b"3 =\n", b"0 a=b\n"] {
            assert!(Pax::default().read(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_may_be_negative() {
        assert_eq!(
            time(b"1.5"),
            Some(Time {
                secs: 1,
                nanos: 500_000_000
            })
        );
        assert_eq!(
            time(b"-1.25"),
            Some(Time {
                secs: -2,
                nanos: 750_000_000
            })
        );
        assert_eq!(time(b"7"), Some(Time { secs: 7, nanos: 0 }));
        assert_eq!(time(b"1.x"), None);
    }
}
