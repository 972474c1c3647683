//! Who may use the kubelet port: a SubjectAccessReview for each kind of request, remembered by the server.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use kvmlet_server::{Attributes, AuthorizeError, BoxFuture, Decision, Identity, Reviewer};

/// Asks the API server.
#[derive(Clone)]
pub struct AccessReviews(pub Client);

impl Reviewer for AccessReviews {
    fn review<'a>(&'a self, identity: &'a Identity, attributes: &'a Attributes) -> BoxFuture<'a, Result<Decision, AuthorizeError>> {
        Box::pin(async move {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(identity.user.clone()),
                    groups: Some(identity.groups.clone()),
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
