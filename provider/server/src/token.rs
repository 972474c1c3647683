//! An [`Authenticator`] that asks the API server by TokenReview and remembers the answers for a while. Of a token only its digest is kept.
//! Errors are never remembered.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::auth::{Authenticator, AuthorizeError, BoxFuture, Identity};
use crate::cache::Cache;

/// How long a token counts that was known (the kubelet's authentication.webhook.cacheTTL).
pub const KNOWN_FOR: Duration = Duration::from_secs(2 * 60);
/// How long one that was not: it may be a new one of whose user the API server has not heard everywhere.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// Longer than any token of a service account; the API server is not asked about more.
const LONGEST: usize = 16 << 10;

/// Asks the API server: creates one TokenReview with `spec.token`.
pub trait TokenReviewer: Send + Sync + 'static {
    /// One review: the token's user, or nobody.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>>;
}

/// Remembers what a [`TokenReviewer`] said: 2 minutes of a token that is known, 10 seconds of another.
#[derive(Debug)]
pub struct CachedTokens<R> {
    reviewer: R,
    answers: Cache<[u8; 32], Option<Identity>>,
}

impl<R: TokenReviewer> CachedTokens<R> {
    /// Nothing is remembered yet.
    pub fn new(reviewer: R) -> Self {
        Self {
            reviewer,
            answers: Cache::new(),
        }
    }
}

impl<R: TokenReviewer> Authenticator for CachedTokens<R> {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>> {
        Box::pin(async move {
            if token.len() > LONGEST {
                return Ok(None);
            }
            let key = Sha256::digest(token).into();
            if let Some(answer) = self.answers.get(&key) {
                return Ok(answer);
            }
            let answer = self.reviewer.review(token).await?;
            let lifetime = if answer.is_some() { KNOWN_FOR } else { UNKNOWN_FOR };
            self.answers.put(key, answer.clone(), lifetime);
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{Count, twice};

    /// Knows `good`, fails for `broken`; counts.
    #[derive(Default)]
    struct Counting(Count);

    impl TokenReviewer for Counting {
        fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>> {
            self.0.one();
            Box::pin(async move {
                match token {
                    "good" => Ok(Some(Identity::default())),
                    "broken" => Err(AuthorizeError("API server is away".into())),
                    _ => Ok(None),
                }
            })
        }
    }

    async fn asked_after(token: &str, seconds: u64) -> usize {
        let tokens = CachedTokens::new(Counting::default());
        twice(seconds, || tokens.authenticate(token)).await;
        tokens.reviewer.0.get()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_remembered_for_their_time_and_errors_never() {
        for (token, seconds, asked) in [("good", 119, 1), ("good", 121, 2), ("bad", 9, 1), ("bad", 11, 2), ("broken", 0, 2)] {
            assert_eq!(asked_after(token, seconds).await, asked, "{token} after {seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_about_what_is_longer_than_any_token() {
        assert_eq!(asked_after(&"x".repeat(LONGEST + 1), 11).await, 0);
    }
}
