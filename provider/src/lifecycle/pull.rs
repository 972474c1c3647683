//! When a container's image is pulled, and the words of a failure while the next try is waited for.

use jiff::Timestamp;

use super::{Action, PULL_ERROR_SHOWN};
use crate::{desired::DesiredContainer, events::Note, state::ImageState};

/// Whether it is time to pull. A failure that has been shown long enough becomes a wait, and is told once.
pub(super) fn is_due(image: &mut ImageState, container: &DesiredContainer, now: Timestamp, actions: &mut Vec<Action>) -> bool {
    match image {
        ImageState::Wanted => true,
        ImageState::Ready(_) => false,
        ImageState::Failed {
            reason,
            message,
            at,
            not_before,
            ..
        } => {
            if reason == "ErrImagePull" && at.saturating_add(PULL_ERROR_SHOWN).is_ok_and(|t| t <= now) {
                let waits = format!("Back-off pulling image {:?}", container.image);
                *reason = "ImagePullBackOff".into();
                *message = format!("{waits}: ErrImagePull: {message}");
                actions.push(Action::Tell(Note::normal("BackOff", Some(container.field_path()), waits)));
            }
            *not_before <= now
        }
    }
}
