//! What all machines together may use of a shared host. Pure; `cgroup.rs` writes it.

use crate::{cgroup::Together, desired::Amounts};

/// Milliseconds of processor time a second that are left in any case, for a template in the making.
const LEAST_CPU: u64 = 500;
/// Bytes of memory, likewise.
const LEAST_MEMORY: u64 = 256 << 20;

/// What the reservation holds; where that has become less than what pods were `given` and what is `kept` beside it, that, and as much memory as machines
/// that are `running` may use by now, bytes: from them nothing is taken, also of what they may have beyond what they request.
pub(super) fn together(held: Amounts, given: Amounts, kept: Amounts, running: u64) -> Together {
    let all = held.max(given.plus(kept));
    Together {
        memory: all.memory.value().max(running).max(LEAST_MEMORY),
        cpu: all.cpu.milli_value().max(LEAST_CPU),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(cpu: u64, mebibytes: u64) -> Amounts {
        Amounts::read([cpu, mebibytes << 20, 0])
    }

    #[test]
    fn machines_have_what_is_reserved_and_those_that_run_what_they_were_given() {
        let kept = amounts(0, 512);
        let of = |held, given| {
            let limits = together(held, given, kept, 0);
            (limits.cpu, limits.memory >> 20)
        };
        assert_eq!(of(amounts(2000, 4096), amounts(500, 1024)), (2000, 4096));
        assert_eq!(of(amounts(0, 0), amounts(1500, 2048)), (1500, 2560), "a reservation that is gone");
        assert_eq!(of(amounts(1000, 4096), amounts(1500, 2048)), (1500, 4096), "one that is smaller");
        assert_eq!(of(amounts(0, 0), amounts(0, 0)), (500, 512));
        let burst = together(amounts(0, 0), amounts(100, 64), kept, 3 << 30);
        assert_eq!(
            (burst.cpu, burst.memory),
            (500, 3 << 30),
            "machines that may use more than they request"
        );
    }
}
