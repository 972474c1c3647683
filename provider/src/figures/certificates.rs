//! How long the node's certificates live, by the kubelet's names, as far as they are had by request.

use jiff::Timestamp;
use prometheus::proto::MetricFamily;

use super::text::Family;
use crate::certificates::{figures::Figures, plan::Kind};

pub(super) fn families(figures: &Figures, now: Timestamp) -> Vec<MetricFamily> {
    let kinds = [
        (
            Kind::Client,
            "kubelet_certificate_manager_client_ttl_seconds",
            "[ALPHA] Gauge of the TTL (time-to-live) of the Kubelet's client certificate. The value is in seconds until certificate expiry \
             (negative if already expired). If client certificate is invalid or unused, the value will be +INF.",
            "kubelet_certificate_manager_client_expiration_renew_errors",
        ),
        (
            Kind::Serving,
            "kubelet_certificate_manager_server_ttl_seconds",
            "[ALPHA] Gauge of the shortest TTL (time-to-live) of the Kubelet's serving certificate. The value is in seconds until certificate \
             expiry (negative if already expired). If serving certificate is invalid or unused, the value will be +INF.",
            "kubelet_server_expiration_renew_errors",
        ),
    ];
    let mut families = Vec::new();
    for (kind, left, help, errors) in kinds {
        let figure = figures.get(kind);
        if !figure.managed {
            continue;
        }
        let mut family = Family::gauge(left, help);
        family.add(&[], figure.left(now), None);
        families.push(family.done());
        let mut family = Family::counter(errors, "[ALPHA] Counter of certificate renewal errors.");
        family.add(&[], figure.failures as f64, None);
        families.push(family.done());
    }
    families
}

#[cfg(test)]
mod tests {
    use super::{super::text::encode, *};

    #[test]
    fn what_is_read_from_files_is_not_shown_and_what_is_not_there_has_no_end() {
        let figures = Figures::default();
        let now = Timestamp::from_second(1000).unwrap();
        let text = |figures| encode(families(figures, now)).unwrap();
        assert_eq!(text(&figures), "");
        figures.managed(Kind::Client);
        figures.holds(Kind::Client, Timestamp::from_second(990).unwrap());
        figures.managed(Kind::Serving);
        figures.failed(Kind::Serving);
        let text = text(&figures);
        for line in [
            "kubelet_certificate_manager_client_ttl_seconds -10",
            "kubelet_certificate_manager_client_expiration_renew_errors 0",
            "kubelet_certificate_manager_server_ttl_seconds inf",
            "kubelet_server_expiration_renew_errors 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
