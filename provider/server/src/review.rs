//! An [`Authorizer`] that asks the API server by SubjectAccessReview and remembers the answers for a while.
//!
//! Errors are never remembered. Knows no API client: the provider gives a [`Reviewer`].

use std::time::Duration;

use crate::auth::{Attributes, AuthorizeError, Authorizer, BoxFuture, Decision, Identity};
use crate::cache::Cache;

/// How long a yes counts (authorization.webhook.cacheAuthorizedTTL).
pub const ALLOW_FOR: Duration = Duration::from_secs(5 * 60);
/// How long a no does (authorization.webhook.cacheUnauthorizedTTL).
pub const DENY_FOR: Duration = Duration::from_secs(30);

/// Asks the API server: creates one SubjectAccessReview for the user and groups with `resourceAttributes` verb,
/// version `v1`, resource `nodes`, subresource and name.
pub trait Reviewer: Send + Sync + 'static {
    /// One review.
    fn review<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>>;
}

/// Remembers what a [`Reviewer`] said: 5 minutes if it allowed, 30 seconds if not.
#[derive(Debug)]
pub struct CachedReviews<R> {
    reviewer: R,
    answers: Cache<(Identity, Attributes), Decision>,
}

impl<R: Reviewer> CachedReviews<R> {
    /// Nothing is remembered yet.
    pub fn new(reviewer: R) -> Self {
        Self {
            reviewer,
            answers: Cache::new(),
        }
    }
}

impl<R: Reviewer> Authorizer for CachedReviews<R> {
    fn authorize<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>> {
        Box::pin(async move {
            let key = (identity.clone(), attributes.clone());
            if let Some(decision) = self.answers.get(&key) {
                return Ok(decision);
            }
            let decision = self.reviewer.review(identity, attributes).await?;
            let lifetime = match decision {
                Decision::Allow => ALLOW_FOR,
                Decision::Deny => DENY_FOR,
            };
            self.answers.put(key, decision, lifetime);
            Ok(decision)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CAPACITY;
    use crate::cache::testing::{Count, twice};

    /// Allows `admin`, fails for `broken`, denies others; counts.
    #[derive(Default)]
    struct Counting(Count);

    impl Reviewer for Counting {
        fn review<'a>(&'a self, identity: &'a Identity, _: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>> {
            self.0.one();
            Box::pin(async move {
                match identity.user.as_str() {
                    "admin" => Ok(Decision::Allow),
                    "broken" => Err(AuthorizeError("API server is away".into())),
                    _ => Ok(Decision::Deny),
                }
            })
        }
    }

    fn question(user: &str) -> (Identity, Attributes) {
        let identity = Identity {
            user: user.into(),
            ..Identity::default()
        };
        let attributes = Attributes {
            verb: "get",
            subresource: "proxy",
            node: "n".into(),
        };
        (identity, attributes)
    }

    async fn asked_after(user: &str, seconds: u64) -> usize {
        let reviews = CachedReviews::new(Counting::default());
        let (identity, attributes) = question(user);
        twice(seconds, || reviews.authorize(&identity, &attributes)).await;
        reviews.reviewer.0.get()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_remembered_for_their_time_and_errors_never() {
        for (user, seconds, asked) in [
            ("admin", 299, 1),
            ("admin", 301, 2),
            ("nobody", 29, 1),
            ("nobody", 31, 2),
            ("broken", 0, 2),
        ] {
            assert_eq!(asked_after(user, seconds).await, asked, "{user} after {seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_stays_bounded() {
        let reviews = CachedReviews::new(Counting::default());
        for number in 0..3 * CAPACITY {
            let (identity, attributes) = question(&number.to_string());
            assert!(reviews.authorize(&identity, &attributes).await.is_ok());
        }
        assert!(reviews.answers.len() <= CAPACITY);
    }
}
