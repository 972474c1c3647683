//! Why an attempt to pull failed, and what to tell when all did.

use crate::error::PullError;
use crate::registry::FetchError;

/// Why one attempt failed, and whether another endpoint or credential may do better.
pub(super) enum Failure {
    Fetch { what: String, error: FetchError },
    Final(PullError),
}

/// What came of a layer.
pub(super) fn failed(layer: &str, error: FetchError) -> Failure {
    Failure::Fetch {
        what: format!("layer {layer}"),
        error,
    }
}

/// What to tell when no endpoint gave the image: the most telling of their answers, with all of them as detail.
pub(super) fn verdict(image: &str, failures: Vec<(String, FetchError)>) -> PullError {
    let detail = failures
        .iter()
        .map(|(what, error)| format!("{what}: {error}"))
        .collect::<Vec<_>>()
        .join("; ");
    let image = image.to_owned();
    let rank = |error: &FetchError| match error {
        FetchError::Digest { .. } => 0,
        FetchError::Unauthorized(_) => 1,
        FetchError::NotFound(_) => 2,
        FetchError::Protocol(_) => 3,
        FetchError::Unreachable(_) => 4,
    };
    match failures.into_iter().min_by_key(|(_, error)| rank(error)) {
        Some((what, FetchError::Digest { expected, actual })) => PullError::DigestMismatch {
            image,
            what,
            expected,
            actual,
        },
        Some((_, FetchError::Unauthorized(_))) => PullError::Unauthorized { image, detail },
        Some((_, FetchError::NotFound(_))) => PullError::NotFound { image, detail },
        Some((_, FetchError::Protocol(_))) => PullError::InvalidImage { image, reason: detail },
        Some((_, FetchError::Unreachable(_))) => PullError::Unreachable { image, detail },
        None => PullError::Unreachable {
            image,
            detail: "no endpoint is configured".to_owned(),
        },
    }
}
