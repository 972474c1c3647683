//! The guard before every path: no identity is a 401, no right is a 403.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::auth::{Attributes, Authenticator, Authorizer, Decision, Identity, attributes};

/// What the guard needs to know.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) node: Arc<str>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
}

/// Lets a request pass, or answers it.
pub(crate) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let by_certificate = request.extensions().get::<Identity>().cloned();
    let identity = match by_certificate {
        Some(identity) => Some(identity),
        None => guard.by_token(request.headers()).await,
    };
    let Some(identity) = identity else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    match guard.refusal(&identity, request.method(), request.uri().path()).await {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// The bearer token of a request (RFC 6750, section 2.1).
fn token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' ')).then_some(token)
}

impl Guard {
    /// Whose bearer token a request has. One that cannot be asked about counts as nobody's, as with the kubelet.
    async fn by_token(&self, headers: &HeaderMap) -> Option<Identity> {
        match self.authenticator.authenticate(token(headers)?).await {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "authenticate request");
                None
            }
        }
    }

    async fn refusal(&self, identity: &Identity, method: &Method, path: &str) -> Option<Response> {
        let questions = attributes(method, path, &self.node);
        let user = &identity.user;
        for question in &questions {
            match self.authorizer.authorize(identity, question).await {
                Ok(Decision::Allow) => return None,
                Ok(Decision::Deny) => {}
                Err(error) => {
                    tracing::warn!(%error, user, "authorize request");
                    let Attributes { verb, subresource, .. } = question;
                    let text = format!("Authorization error (user={user}, verb={verb}, resource=nodes, subresource={subresource})");
                    return Some((StatusCode::INTERNAL_SERVER_ERROR, text).into_response());
                }
            }
        }
        let text = match questions.first() {
            None => "Authorization error: could not determine attributes for request".to_owned(),
            Some(first) => {
                let subresources: Vec<_> = questions.iter().map(|question| question.subresource).collect();
                let (verb, subresources) = (first.verb, subresources.join(" "));
                format!("Forbidden (user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])\n")
            }
        };
        Some((StatusCode::FORBIDDEN, text).into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_after_bearer() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().expect("a header's value"));
            token(&headers).map(str::to_owned)
        };
        assert_eq!(read("Bearer abc"), Some("abc".into()));
        assert_eq!(read("bearer  abc "), Some("abc".into()));
        for none in ["", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "abc"] {
            assert_eq!(read(none), None, "{none:?}");
        }
        assert_eq!(token(&HeaderMap::new()), None);
    }
}
