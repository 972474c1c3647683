//! When an image is pulled, what came of it, and the words of a failure while the next try is waited for.

use jiff::Timestamp;

use super::{Action, FIRST_BACKOFF, MAX_BACKOFF, PULL_ERROR_SHOWN, PullFailure, later};
use crate::{
    events::Note,
    state::{ImageFacts, ImageState},
};

/// Takes what came of a pull; `field` is what of the pod the image is for, as events name it.
pub(super) fn ended(
    image: &mut ImageState,
    field: Option<String>,
    result: Result<ImageFacts, PullFailure>,
    now: Timestamp,
    actions: &mut Vec<Action>,
) {
    let attempts = if let ImageState::Failed { attempts, .. } = image {
        *attempts
    } else {
        0
    };
    *image = match result {
        Ok(facts) => ImageState::Ready(facts),
        Err(failure) => {
            let wait = (FIRST_BACKOFF << attempts.min(6)).min(MAX_BACKOFF);
            for words in [failure.message.clone(), format!("Error: {}", failure.reason)] {
                actions.push(Action::Tell(Note::warning("Failed", field.clone(), words)));
            }
            ImageState::Failed {
                reason: failure.reason.into(),
                message: failure.message,
                at: now,
                not_before: later(now, wait),
                attempts: attempts + 1,
            }
        }
    };
}

/// Whether it is time to pull. A failure that has been shown long enough becomes a wait, and is told once.
/// `name` is the image's, `field` what of the pod it is for.
pub(super) fn is_due(image: &mut ImageState, name: &str, field: Option<String>, now: Timestamp, actions: &mut Vec<Action>) -> bool {
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
                let waits = format!("Back-off pulling image {name:?}");
                *reason = "ImagePullBackOff".into();
                *message = format!("{waits}: ErrImagePull: {message}");
                actions.push(Action::Tell(Note::normal("BackOff", field, waits)));
            }
            *not_before <= now
        }
    }
}
