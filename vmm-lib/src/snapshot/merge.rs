//! A snapshot of what was written behind another one, and that one, as one snapshot of all of the machine. Refuses any other base, and files that
//! are not what was written. The state is written last: before that there is nothing that a machine could be made of.

use std::io;
use std::ops::Range;

use super::memory::{Checked, length, overlay};
use super::{Identity, Pages, RestoreError, SnapshotFiles, State, same};
use crate::dirty::PAGE;

/// Why two snapshots were not put together. What was to become of both is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The base cannot be used.
    #[error("use the base")]
    Base(#[source] RestoreError),
    /// The other one cannot be used.
    #[error("use what was written since")]
    Changes(#[source] RestoreError),
    /// The base is not all of a machine.
    #[error("the base is not all of a machine: it is to be merged with its own base first")]
    PartialBase,
    /// The other one is all of a machine.
    #[error("the snapshot is all of a machine: there is nothing to be merged")]
    Whole,
    /// It was taken behind another one.
    #[error("the snapshot has what was written since {wanted} was taken, and the base is {has}")]
    OtherBase {
        /// The one that it was taken behind.
        wanted: Identity,
        /// The one that was given.
        has: Identity,
    },
    /// The result could not be written.
    #[error("write the merged {0}")]
    Write(&'static str, #[source] io::Error),
}

/// Writes `base`, a snapshot of all of a machine, with what `changes` has of it `into` a snapshot of all of the machine, as it was when `changes`
/// was taken. Reads all of both to see that they are what was written.
pub fn merge(base: &SnapshotFiles, changes: &SnapshotFiles, into: &SnapshotFiles) -> Result<(), MergeError> {
    let old = State::read(&base.state).map_err(MergeError::Base)?;
    let mut state = State::read(&changes.state).map_err(MergeError::Changes)?;
    let Pages::All = old.pages else {
        return Err(MergeError::PartialBase);
    };
    let Pages::Since { base: wanted, runs } = std::mem::replace(&mut state.pages, Pages::All) else {
        return Err(MergeError::Whole);
    };
    if wanted != old.identity {
        let has = old.identity;
        return Err(MergeError::OtherBase { wanted, has });
    }
    let runs = unpack(&runs, state.memory).map_err(MergeError::Changes)?;
    same("memory, bytes,", &old.memory, &state.memory).map_err(MergeError::Changes)?;
    old.check_length(&base.memory, old.memory).map_err(MergeError::Base)?;
    state.check_length(&changes.memory, length(&runs)).map_err(MergeError::Changes)?;
    let below = Checked {
        file: &base.memory,
        checksum: old.memory_checksum,
    };
    let above = Checked {
        file: &changes.memory,
        checksum: state.memory_checksum,
    };
    state.memory_checksum = overlay(&below, &above, &runs, state.memory, &into.memory)?;
    state.write(&into.state).map_err(|error| MergeError::Write("state", error))
}

/// Runs of pages as they are written: pages that were not, then pages that were, in turns.
pub(crate) fn pack(runs: &[Range<u64>]) -> Vec<(u64, u64)> {
    let starts = std::iter::once(0).chain(runs.iter().map(|run| run.end));
    let pairs = starts.zip(runs);
    pairs.map(|(before, run)| (run.start - before, run.end - run.start)).collect()
}

/// The same read again: in order, none empty, within so many bytes of memory.
pub(crate) fn unpack(packed: &[(u64, u64)], memory: u64) -> Result<Vec<Range<u64>>, RestoreError> {
    let mut place = 0u64;
    let run = |(gap, count): &(u64, u64)| {
        let start = place.checked_add(*gap)?;
        place = start.checked_add(*count).filter(|end| *count > 0 && *end <= memory / PAGE)?;
        Some(start..place)
    };
    packed.iter().map(run).collect::<Option<_>>().ok_or(RestoreError::Runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_as_they_were_written_and_nonsense_is_refused() {
        for runs in [&[][..], &[(0, 1)], &[(0, 3), (3, 4), (9, 10)], &[(255, 256)]] {
            let runs: Vec<_> = runs.iter().map(|(start, end): &(u64, u64)| *start..*end).collect();
            assert_eq!(unpack(&pack(&runs), 256 * PAGE).expect("they lie within"), runs);
        }
        for packed in [
            vec![(0, 0)],
            vec![(256, 1)],
            vec![(0, 257)],
            vec![(u64::MAX, 1)],
            vec![(1, u64::MAX)],
            vec![(0, 256), (0, 1)],
            vec![(0, 1), (u64::MAX, u64::MAX)],
        ] {
            assert!(matches!(unpack(&packed, 256 * PAGE), Err(RestoreError::Runs)), "{packed:?}");
        }
    }
}
