//! Reads Linux's log of a boot with `initcall_debug`: lines in, what they say of time out. Pure; whatever it does not know it leaves out.

use std::time::Duration;

/// What a line of the kernel's log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The kernel's clock, where it prints times.
    pub(super) at: Option<Duration>,
    /// What happened.
    pub(super) said: Said,
}

/// What the kernel says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// An initcall begins.
    Calling(String),
    /// An initcall has returned.
    Returned(Work),
    /// A driver's probe of a device has returned. It happens in an initcall, mostly.
    Probed(Work),
    /// The first process begins.
    Init(String),
    /// Anything else.
    Other,
}

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Work {
    /// The function's name without its offset, with its module where it has one; a device's name.
    pub(super) name: String,
    /// How long it took, by the kernel's own clock.
    pub(super) took: Duration,
}

/// Reads one line, without its end.
pub(super) fn parse(line: &str) -> Record {
    let (at, text) = prefix(line.trim_end());
    let said = calling(text)
        .or_else(|| Some(Said::Returned(work(text.strip_prefix("initcall ")?)?)))
        .or_else(|| Some(Said::Probed(work(text.strip_prefix("probe of ")?)?)))
        .or_else(|| init(text))
        .unwrap_or(Said::Other);
    Record { at, said }
}

/// `[    0.123456] text`, and with the caller: `[    0.123456][    T1] text`.
fn prefix(line: &str) -> (Option<Duration>, &str) {
    let time = || {
        let (inside, rest) = line.strip_prefix('[')?.split_once(']')?;
        let (seconds, micros) = inside.trim().split_once('.')?;
        let exact = micros.len() == 6 && micros.bytes().all(|byte| byte.is_ascii_digit());
        let at = Duration::new(seconds.parse().ok()?, micros.parse::<u32>().ok().filter(|_| exact)? * 1000);
        let rest = rest
            .strip_prefix('[')
            .and_then(|rest| Some(rest.split_once(']')?.1))
            .unwrap_or(rest);
        Some((at, rest.strip_prefix(' ').unwrap_or(rest)))
    };
    time().map_or((None, line), |(at, rest)| (Some(at), rest))
}

/// `calling  acpi_init+0x0/0x2f0 @ 1`.
fn calling(text: &str) -> Option<Said> {
    let (name, process) = text.strip_prefix("calling ")?.split_once(" @ ")?;
    process.split(' ').next()?.parse::<u32>().ok()?;
    Some(Said::Calling(function(name)))
}

/// `acpi_init+0x0/0x2f0 returned 0 after 1234 usecs`, `0000:00:01.0 returned 0 after 56 usecs`.
fn work(text: &str) -> Option<Work> {
    let (name, rest) = text.split_once(" returned ")?;
    let (_, took) = rest.split_once(" after ")?;
    let micros = took.strip_suffix(" usecs")?.parse().ok()?;
    Some(Work {
        name: function(name),
        took: Duration::from_micros(micros),
    })
}

/// `acpi_init+0x0/0x2f0 [module]` without what is behind the plus.
fn function(text: &str) -> String {
    let mut words = text.split_ascii_whitespace();
    let name = words.next().unwrap_or_default();
    let name = name.split_once("+0x").map_or(name, |(name, _)| name);
    match words.next() {
        Some(module) => format!("{name} {module}"),
        None => name.to_owned(),
    }
}

/// `Run /init as init process`.
fn init(text: &str) -> Option<Said> {
    let program = text.strip_prefix("Run ")?.strip_suffix(" as init process")?;
    Some(Said::Init(program.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Said {
        parse(line).said
    }

    fn work(name: &str, micros: u64) -> Work {
        Work {
            name: name.into(),
            took: Duration::from_micros(micros),
        }
    }

    #[test]
    fn initcalls_probes_and_the_first_process_are_read_with_their_times() {
        let record = parse("[    0.123456] initcall acpi_init+0x0/0x2f0 returned 0 after 1234 usecs\r");
        assert_eq!(record.at, Some(Duration::from_micros(123_456)));
        assert_eq!(record.said, Said::Returned(work("acpi_init", 1234)));
        assert_eq!(
            said("[   12.000001] calling  acpi_init+0x0/0x2f0 @ 1"),
            Said::Calling("acpi_init".into())
        );
        assert_eq!(
            said("[    0.5] probe of 0000:00:01.0 returned 0 after 56 usecs"),
            Said::Other,
            "no time of the kernel's"
        );
        assert_eq!(
            said("[    0.500000] probe of 0000:00:01.0 returned 0 after 56 usecs"),
            Said::Probed(work("0000:00:01.0", 56))
        );
        assert_eq!(
            said("[    0.500000] Run /sbin/init as init process"),
            Said::Init("/sbin/init".into())
        );
    }

    #[test]
    fn a_failed_initcall_a_module_and_a_kernel_that_names_the_caller_are_read_too() {
        assert_eq!(
            said("[    0.1] initcall x+0x0/0x1 returned 0 after 1 usecs"),
            Said::Other,
            "a time has six digits behind its point"
        );
        let line = "[    1.000000][    T1] initcall i8042_init+0x0/0x130 returned -19 after 800123 usecs";
        assert_eq!(said(line), Said::Returned(work("i8042_init", 800_123)));
        let line = "[    1.000000][  C0] initcall init_module+0x0/0x1000 [virtio_net] returned 0 after 7 usecs";
        assert_eq!(said(line), Said::Returned(work("init_module [virtio_net]", 7)));
    }

    #[test]
    fn durations_are_read_where_the_kernel_prints_no_times() {
        let record = parse("initcall acpi_init+0x0/0x2f0 returned 0 after 1234 usecs");
        assert_eq!((record.at, record.said), (None, Said::Returned(work("acpi_init", 1234))));
    }

    #[test]
    fn nothing_that_a_guest_writes_is_more_than_a_line_that_says_nothing() {
        for line in [
            "",
            "[",
            "[]",
            "[    0.000000]",
            "[99999999999999999999.000000] x",
            "[    0.+00001] x",
            "calling  x",
            "calling  x @ y",
            "initcall  returned  after ",
            "initcall x returned 0 after -1 usecs",
            "initcall x returned 0 after 99999999999999999999999 usecs",
            "initcall x returned with preemption imbalance",
            "probe of",
            "Run  as",
            "\u{fffd}\u{fffd}",
        ] {
            assert_eq!(said(line), Said::Other, "{line:?}");
        }
    }
}
