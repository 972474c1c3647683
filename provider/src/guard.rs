//! Who may use the kubelet port: a TokenReview for each bearer token, a SubjectAccessReview for each kind of request, both remembered by the
//! server.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use kvmlet_server::{Attributes, AuthorizeError, BoxFuture, Decision, Identity, Reviewer, TokenReviewer};

/// Asks the API server.
#[derive(Clone)]
pub struct AccessReviews(pub Client);

impl Reviewer for AccessReviews {
    fn review<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>> {
        Box::pin(async move {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(identity.user.clone()),
                    uid: identity.uid.clone(),
                    groups: Some(identity.groups.clone()),
                    extra: (!identity.extra.is_empty()).then(|| identity.extra.clone()),
                    resource_attributes: Some(ResourceAttributes {
                        verb: Some(attributes.verb.into()),
                        version: Some("v1".into()),
                        resource: Some("nodes".into()),
                        subresource: Some(attributes.subresource.into()),
                        name: Some(attributes.node.clone()),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = Api::<SubjectAccessReview>::all(self.0.clone())
                .create(&PostParams::default(), &review)
                .await
                .map_err(|e| AuthorizeError(e.to_string()))?;
            let allowed = answer.status.is_some_and(|s| s.allowed);
            Ok(if allowed { Decision::Allow } else { Decision::Deny })
        })
    }
}

impl TokenReviewer for AccessReviews {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<Identity>, AuthorizeError>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: token.to_owned(),
                    ..TokenReviewSpec::default()
                },
                ..TokenReview::default()
            };
            let answer = Api::<TokenReview>::all(self.0.clone())
                .create(&PostParams::default(), &review)
                .await
                .map_err(|e| AuthorizeError(e.to_string()))?;
            let status = answer.status.unwrap_or_default();
            let user = status.user.filter(|_| status.authenticated == Some(true));
            Ok(user.and_then(|user| {
                Some(Identity {
                    user: user.username?,
                    uid: user.uid,
                    groups: user.groups.unwrap_or_default(),
                    extra: user.extra.unwrap_or_default(),
                })
            }))
        })
    }
}
