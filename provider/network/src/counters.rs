//! What goes through pods' taps, as the host's kernel counts it: read inside each pod's namespace, by one thread that goes from one to the next.

use std::fs::{self, File};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

use crate::join::TAP;

/// What has gone through a pod's tap since it was made. Of the pod's view: what it received is what the tap sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the pod received.
    pub received: u64,
    /// Bytes that it sent.
    pub sent: u64,
    /// Frames that it received.
    pub packets_received: u64,
    /// Frames that it sent.
    pub packets_sent: u64,
    /// Frames that it was sent and had no room for.
    pub dropped: u64,
}

/// Reads the taps of these namespaces, in their order; `None` of one that is gone, or has no tap. Blocks.
#[must_use]
pub fn counters(namespaces: &[PathBuf]) -> Vec<Option<Counters>> {
    // The thread stays where it was last, and ends there.
    let read = || namespaces.iter().map(read).collect();
    std::thread::scope(|scope| scope.spawn(read).join()).unwrap_or_else(|_| vec![None; namespaces.len()])
}

fn read(namespace: &PathBuf) -> Option<Counters> {
    setns(File::open(namespace).ok()?, CloneFlags::CLONE_NEWNET).ok()?;
    parse(&fs::read_to_string("/proc/thread-self/net/dev").ok()?)
}

/// The tap's line (proc_net_dev): bytes, packets, errors, drops … received, then the same sent. A tap sends to the machine.
fn parse(text: &str) -> Option<Counters> {
    let numbers = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(TAP)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    Some(Counters {
        sent: *numbers.first()?,
        packets_sent: *numbers.get(1)?,
        received: *numbers.get(8)?,
        packets_received: *numbers.get(9)?,
        dropped: *numbers.get(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tap_sends_its_pod_receives() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n  \
            tap0:     101     2    3    4    5     6          7         8      901      10   11   12   13    14      15         16\n";
        let expected = Counters {
            received: 901,
            sent: 101,
            packets_received: 10,
            packets_sent: 2,
            dropped: 12,
        };
        assert_eq!(parse(text), Some(expected));
        assert_eq!(parse("eth0: 1 2 3\n"), None);
    }

    #[test]
    fn a_namespace_that_is_gone_has_no_counters() {
        assert_eq!(counters(&["/nonexistent/netns".into()]), [None]);
        assert_eq!(counters(&[]), []);
    }
}
