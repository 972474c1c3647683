//! How fast a pod's network may be, by the annotations that the CNI bandwidth plugin's users know: quantities in bits per second, of what
//! comes to the pod (ingress) and of what leaves it (egress). Held by the machine's network device, whatever the node's CNI is. Refuses what
//! the kubelet calls unreasonable: below 1k and above 1P.

use std::collections::BTreeMap;

use vmm_lib::spec::{Bucket, Limits, NetLimits};

use crate::quantity::Quantity;

/// Bits per second to the pod.
pub const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Bits per second from the pod.
pub const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits per second.
const LEAST: u64 = 1_000;
/// Bits per second.
const MOST: u64 = 1_000_000_000_000_000;
/// What a bucket holds at least, bytes: a frame of the largest segment that guest and tap exchange.
const FRAME: u64 = 64 << 10;

/// The limits that a pod's annotations ask for; the error is all that is wrong with them, for the pod's owner.
pub fn limits(annotations: Option<&BTreeMap<String, String>>) -> Result<NetLimits, String> {
    let mut mistakes = Vec::new();
    let mut direction = |name: &str| {
        let text = annotations.and_then(|all| all.get(name))?;
        match bits(text) {
            Ok(bits) => Some(bucket(bits / 8)),
            Err(problem) => {
                mistakes.push(format!("metadata.annotations[{name}]: {text:?} {problem}"));
                None
            }
        }
    };
    let [receive, transmit] = [INGRESS, EGRESS].map(|name| Limits {
        bytes: direction(name),
        operations: None,
    });
    if mistakes.is_empty() {
        Ok(NetLimits { receive, transmit })
    } else {
        Err(mistakes.join("; "))
    }
}

fn bits(text: &str) -> Result<u64, String> {
    let bits = Quantity::parse(text).map_err(|_| "is not a quantity of bits per second, as 10M".to_owned())?;
    match bits.value() {
        ..LEAST => Err("is unreasonably small, below 1k bits per second".into()),
        bits if bits > MOST => Err("is unreasonably large, above 1P bits per second".into()),
        bits => Ok(bits),
    }
}

/// A tenth of a second's worth.
fn bucket(refill: u64) -> Bucket {
    Bucket {
        size: (refill / 10).max(FRAME),
        refill,
        burst: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::desired::DesiredPod;

    fn of(annotations: &[(&str, &str)]) -> Result<NetLimits, String> {
        limits(Some(
            &annotations.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
        ))
    }

    #[test]
    fn a_pod_that_asks_for_nothing_is_not_held_back() {
        assert_eq!(limits(None), Ok(NetLimits::default()));
        assert_eq!(of(&[("kubernetes.io/else", "1")]), Ok(NetLimits::default()));
    }

    #[test]
    fn each_direction_gets_the_bytes_a_second_of_its_own_annotation() {
        let both = of(&[(INGRESS, "10M"), (EGRESS, "1Gi")]).unwrap();
        assert_eq!(both.receive.bytes.unwrap().refill, 1_250_000);
        assert_eq!(both.transmit.bytes.unwrap().refill, 1 << 27);
        assert_eq!(both.transmit.bytes.unwrap().size, (1 << 27) / 10);
        let one = of(&[(EGRESS, "1k")]).unwrap();
        assert_eq!(one.receive, Limits::default());
        assert_eq!(one.transmit.bytes.map(|bucket| (bucket.refill, bucket.size)), Some((125, FRAME)));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_annotation_all_at_once() {
        let error = of(&[(INGRESS, "fast"), (EGRESS, "999")]).unwrap_err();
        for part in [INGRESS, "\"fast\" is not a quantity", EGRESS, "\"999\" is unreasonably small"] {
            assert!(error.contains(part), "{error}");
        }
        for text in ["", "-1M", "10 M", "10Mbit"] {
            assert!(of(&[(INGRESS, text)]).unwrap_err().contains("not a quantity"), "{text}");
        }
        assert!(of(&[(INGRESS, "0")]).is_err() && of(&[(INGRESS, "1P")]).is_ok());
        assert!(of(&[(INGRESS, "2P")]).unwrap_err().contains("unreasonably large"));
    }

    #[test]
    fn a_pod_with_nonsense_in_its_annotations_is_refused_with_its_words() {
        let pod = |rate: &str| {
            let pod = json!({"metadata": {"name": "p", "annotations": {EGRESS: rate}}, "spec": {"containers": []}});
            DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).1
        };
        assert_eq!(pod("10M"), None);
        let refusal = pod("10 apples").expect("it is no quantity");
        assert_eq!(refusal.reason, "InvalidBandwidth");
        assert!(
            refusal
                .message
                .contains("metadata.annotations[kubernetes.io/egress-bandwidth]: \"10 apples\""),
            "{refusal}"
        );
    }
}
