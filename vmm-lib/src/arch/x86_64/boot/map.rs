//! The memory map that both boot protocols hand to the kernel. Pure.

use super::{HIGH_START, LOW_END};
use crate::arch::layout::{ABOVE_HOLE, ECAM, ECAM_SIZE};
use crate::memory::Layout;

/// RAM that the kernel may use.
const USABLE: u32 = 1;
/// Nothing that the kernel may use.
const RESERVED: u32 = 2;

/// A range with its E820 type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) kind: u32,
}

/// All ranges, in order. The ECAM is among them, else Linux does not trust it.
pub(super) fn ranges(layout: &Layout) -> Vec<Range> {
    let mut ranges = vec![
        Range {
            start: 0,
            size: LOW_END,
            kind: USABLE,
        },
        Range {
            start: LOW_END,
            size: HIGH_START - LOW_END,
            kind: RESERVED,
        },
        Range {
            start: HIGH_START,
            size: layout.low - HIGH_START,
            kind: USABLE,
        },
        Range {
            start: ECAM,
            size: ECAM_SIZE,
            kind: RESERVED,
        },
    ];
    if layout.high > 0 {
        ranges.push(Range {
            start: ABOVE_HOLE,
            size: layout.high,
            kind: USABLE,
        });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usable_ranges_are_the_memory_less_the_firmwares() {
        let layout = Layout::new(4 << 30, 0, &[], (0, 0), 40).expect("fits");
        let usable: u64 = ranges(&layout)
            .iter()
            .filter(|range| range.kind == USABLE)
            .map(|range| range.size)
            .sum();
        assert_eq!(usable, (4 << 30) - (HIGH_START - LOW_END));
        assert!(ranges(&layout).is_sorted_by(|a, b| a.start + a.size <= b.start));
    }
}
