//! Kernel command lines, changed for those who look on. Pure. Words are put in front: what follows a `--` is the first process's.

/// This command line with the kernel's log and console on COM1 ([`Serial`](crate::spec::Serial)): whatever says that there is no serial
/// port, or that the log shall be quiet, is left out.
///
/// ```
/// let line = vmm_lib::boot::with_console("quiet 8250.nr_uarts=0 panic=-1");
/// assert_eq!(line, "8250.nr_uarts=1 console=ttyS0 panic=-1");
/// ```
pub fn with_console(line: &str) -> String {
    let silent = |word: &str| word == "quiet" || word == "console=ttyS0" || word.starts_with("8250.nr_uarts=");
    changed(&["8250.nr_uarts=1", "console=ttyS0"], line, silent)
}

/// This command line with the kernel's log and console on the virtio console ([`Console`](crate::spec::Console)): any other, and the wish that
/// the log shall be quiet, are left out.
///
/// ```
/// let line = vmm_lib::boot::with_virtio_console("quiet 8250.nr_uarts=0 panic=-1");
/// assert_eq!(line, "console=hvc0 8250.nr_uarts=0 panic=-1");
/// ```
pub fn with_virtio_console(line: &str) -> String {
    changed(&["console=hvc0"], line, |word| word == "quiet" || word.starts_with("console="))
}

/// This command line [with a console](with_console) on which Linux says how long each of its initcalls took. Costs time: each character is
/// an exit or more.
pub fn with_initcalls(line: &str) -> String {
    changed(&["initcall_debug", "ignore_loglevel"], &with_console(line), |word| {
        word == "initcall_debug" || word == "ignore_loglevel"
    })
}

fn changed(first: &[&str], line: &str, drop: impl Fn(&str) -> bool) -> String {
    let kept = line.split_ascii_whitespace().filter(|word| !drop(word));
    first.iter().copied().chain(kept).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::FAST_COMMAND_LINE;

    #[test]
    fn a_console_is_not_silenced_by_what_was_there_and_the_rest_stays() {
        let line = with_console(FAST_COMMAND_LINE);
        let words: Vec<_> = line.split(' ').collect();
        assert!(!words.contains(&"quiet") && !words.contains(&"8250.nr_uarts=0"), "{line}");
        assert!(words.contains(&"8250.nr_uarts=1") && words.contains(&"console=ttyS0"), "{line}");
        for word in FAST_COMMAND_LINE
            .split(' ')
            .filter(|word| !["quiet", "8250.nr_uarts=0"].contains(word))
        {
            assert!(words.contains(&word), "{word} is missing in {line}");
        }
        assert_eq!(with_console(&line), line);
    }

    #[test]
    fn the_first_processs_own_words_stay_behind() {
        let line = with_initcalls("root=/dev/vda quiet -- single");
        assert_eq!(
            line,
            "initcall_debug ignore_loglevel 8250.nr_uarts=1 console=ttyS0 root=/dev/vda -- single"
        );
        assert_eq!(with_initcalls(&line), line);
    }
}
