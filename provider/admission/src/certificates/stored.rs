//! Where certificates are: keys of the Secret, `caBundle` of the configuration's webhooks. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};

use super::{
    make::{Pair, read_all, read_pair},
    plan::{Facts, State},
};

/// The serving certificate and its key, the names that `kubernetes.io/tls` has for them.
const SERVING: [&str; 2] = ["tls.crt", "tls.key"];
/// The authority and its key.
const AUTHORITY: [&str; 2] = ["ca.crt", "ca.key"];
/// Authorities before it.
const EARLIER: &str = "earlier-ca.crt";

fn field<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
}

/// A pair of the Secret, whatever it is.
pub(super) fn serving(secret: &Secret) -> (&[u8], &[u8]) {
    (field(secret, SERVING[0]), field(secret, SERVING[1]))
}

/// The authority with its key.
pub(super) fn authority(secret: &Secret) -> Pair {
    let text = |key: &str| String::from_utf8_lossy(field(secret, key)).into_owned();
    Pair {
        certificate: text(AUTHORITY[0]),
        key: text(AUTHORITY[1]),
    }
}

/// What both say.
pub(super) fn state(secret: &Secret, configuration: &MutatingWebhookConfiguration) -> State {
    let told = configuration.webhooks.iter().flatten().map(|webhook| {
        let bundle = webhook.client_config.ca_bundle.as_ref();
        bundle.map(|bytes| read_all(&bytes.0)).unwrap_or_default()
    });
    let pair = |keys: [&str; 2]| read_pair(field(secret, keys[0]), field(secret, keys[1]));
    State {
        authority: pair(AUTHORITY),
        serving: pair(SERVING),
        earlier: read_all(field(secret, EARLIER)),
        told: told.collect(),
    }
}

fn data(secret: &mut Secret) -> &mut BTreeMap<String, ByteString> {
    secret.data.get_or_insert_default()
}

fn bundle(all: &[Facts]) -> ByteString {
    let text: String = all.iter().map(|facts| facts.pem.as_str()).collect();
    ByteString(text.into_bytes())
}

/// Puts a new authority in place of the old one.
pub(super) fn set_authority(secret: &mut Secret, authority: Pair, earlier: &[Facts]) {
    let data = data(secret);
    data.insert(AUTHORITY[0].into(), ByteString(authority.certificate.into_bytes()));
    data.insert(AUTHORITY[1].into(), ByteString(authority.key.into_bytes()));
    data.insert(EARLIER.into(), bundle(earlier));
}

/// Puts a new serving certificate in place of the old one.
pub(super) fn set_serving(secret: &mut Secret, serving: Pair) {
    let data = data(secret);
    data.insert(SERVING[0].into(), ByteString(serving.certificate.into_bytes()));
    data.insert(SERVING[1].into(), ByteString(serving.key.into_bytes()));
}

/// Tells all webhooks of the configuration.
pub(super) fn tell(configuration: &mut MutatingWebhookConfiguration, all: &[Facts]) {
    for webhook in configuration.webhooks.iter_mut().flatten() {
        webhook.client_config.ca_bundle = Some(bundle(all));
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use serde_json::json;

    use super::{
        super::{
            config::CertConfig,
            make,
            plan::{Step, next},
        },
        *,
    };

    #[test]
    fn steps_that_are_written_are_read_back_until_nothing_is_to_be_done() {
        let webhook = |name: &str| json!({"name": name, "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None"});
        let document = json!({"metadata": {}, "webhooks": [webhook("a"), webhook("b")]});
        let mut configuration: MutatingWebhookConfiguration = serde_json::from_value(document).unwrap();
        let mut secret = Secret::default();
        let now = Timestamp::now();
        let mut steps = 0;
        while let Some(step) = next(&state(&secret, &configuration), &CertConfig::default(), now) {
            match step {
                Step::NewAuthority { earlier } => {
                    let made = make::authority(now, SignedDuration::from_hours(48)).unwrap();
                    set_authority(&mut secret, made, &earlier);
                }
                Step::Tell(all) => tell(&mut configuration, &all),
                Step::NewServing { ends } => {
                    let made = make::serving(&authority(&secret), &["n".into()], now, ends).unwrap();
                    set_serving(&mut secret, made);
                }
            }
            steps += 1;
            assert!(steps < 10);
        }
        assert_eq!(steps, 3);
        assert!(make::der(serving(&secret).0, serving(&secret).1).is_some());
    }
}
