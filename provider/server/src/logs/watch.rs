//! Waits for changes in a log directory by inotify.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::sleep;

/// How often a directory is looked at that cannot be watched.
const FALLBACK: Duration = Duration::from_secs(1);
/// Room for some tens of events; more are read in turn.
const EVENTS: usize = 4096;

/// A watched directory, or one that is looked at each second because it cannot be watched (it is not there yet, or the
/// user's inotify instances are used up).
pub(super) struct DirectoryWatch(Option<EventStream<[u8; EVENTS]>>);

impl fmt::Debug for DirectoryWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirectoryWatch").field(&self.is_watching()).finish()
    }
}

impl DirectoryWatch {
    /// Watches `directory`; changes from here on are seen.
    pub(super) fn new(directory: &Path) -> Self {
        Self(
            watch(directory)
                .inspect_err(|error| tracing::debug!(%error, "watch log directory"))
                .ok(),
        )
    }

    /// Whether changes are told; if not, [`DirectoryWatch::changed`] returns each second.
    pub(super) fn is_watching(&self) -> bool {
        self.0.is_some()
    }

    /// Returns after a change since the last call.
    pub(super) async fn changed(&mut self) {
        let Some(events) = &mut self.0 else { return sleep(FALLBACK).await };
        match events.next().await {
            // Which changes they are does not matter: those that are there already count as this one.
            Some(Ok(_)) => while let Some(Some(Ok(_))) = events.next().now_or_never() {},
            Some(Err(error)) => {
                tracing::warn!(%error, "read log directory's changes");
                self.0 = None;
            }
            None => self.0 = None,
        }
    }
}

fn watch(directory: &Path) -> io::Result<EventStream<[u8; EVENTS]>> {
    let inotify = Inotify::init()?;
    let changes = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVE | WatchMask::DELETE;
    inotify.watches().add(directory, changes | WatchMask::ONLYDIR)?;
    inotify.into_event_stream([0; EVENTS])
}
