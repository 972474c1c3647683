//! The guard before every path: no identity is a 401, no right is a 403.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::auth::{Attributes, Authorizer, Decision, Identity, attributes};

/// What the guard needs to know.
#[derive(Clone)]
pub(crate) struct Guard {
    pub(crate) node: Arc<str>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
}

/// Lets a request pass, or answers it.
pub(crate) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let Some(identity) = request.extensions().get::<Identity>() else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    match guard.refusal(identity, request.method(), request.uri().path()).await {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

impl Guard {
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
