//! Requests to the API server, counted as the kubelet's client counts its own (`rest_client_requests_total`).

use kube::{Client, client::Body};
use prometheus::IntCounterVec;

/// The client, whose requests are counted by status code and method; one without an answer has the code `<error>`.
pub fn counted(client: Client, requests: IntCounterVec) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: hyper::Request<Body>| {
        let (client, requests) = (client.clone(), requests.clone());
        async move {
            let method = request.method().clone();
            let answer = client.send(request).await;
            let code = answer.as_ref().map(|answer| answer.status().as_u16().to_string());
            let code = code.as_deref().unwrap_or("<error>");
            requests.with_label_values(&[code, method.as_str()]).inc();
            answer
        }
    });
    Client::new(service, namespace)
}

#[cfg(test)]
mod tests {
    use super::{super::Meters, *};

    #[tokio::test]
    async fn each_request_counts_once_by_what_came_of_it() {
        let api = tower::service_fn(|request: hyper::Request<Body>| async move {
            match request.uri().path() {
                "/gone" => Err(kube::Error::Service("nobody is there".into())),
                _ => Ok(hyper::Response::builder().status(404).body(Body::empty()).unwrap()),
            }
        });
        let meters = Meters::new();
        let client = counted(Client::new(api, "default"), meters.requests());
        for path in ["/here", "/here", "/gone"] {
            let request = hyper::Request::patch(path).body(Body::empty()).unwrap();
            let _ = client.send(request).await;
        }
        let text = super::super::text::encode(meters.own()).unwrap();
        for line in [
            "rest_client_requests_total{code=\"404\",method=\"PATCH\"} 2",
            "rest_client_requests_total{code=\"<error>\",method=\"PATCH\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
