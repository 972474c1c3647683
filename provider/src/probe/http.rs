//! An HTTP request, for the status it is answered with. Certificates are not verified, proxies not asked, redirects followed only to the same
//! host, connections not kept (pkg/probe/http). Over TLS a probe speaks HTTP/2 where the server offers it, as the kubelet's transport
//! (SetTransportDefaults of k8s.io/apimachinery/pkg/util/net); a hook does not, as that of its hooks is Go's with a TLS configuration of its own.

use std::{error::Error, time::Duration};

use reqwest::{
    Client, ClientBuilder, Response, Url,
    header::{ACCEPT, CONNECTION, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
    redirect::Policy,
};
use tokio::time::{Instant, timeout_at};

use super::{
    ask::{MOST, Outcome},
    spec::HttpGet,
    tcp::{dial_error, join},
};
use crate::node::KUBELET_VERSION;

/// Redirects that are followed at most.
const REDIRECTS: usize = 10;

/// The clients of all probes and hooks.
#[derive(Debug, Clone)]
pub struct HttpClients {
    /// Speaks HTTP/2 where it is offered over TLS.
    newest: Client,
    /// Does not.
    first: Client,
}

impl HttpClients {
    /// New ones.
    ///
    /// # Errors
    /// When there is no TLS.
    pub fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            newest: builder().build()?,
            first: builder().http1_only().build()?,
        })
    }

    /// For a probe. One with a header `Host` speaks HTTP/1.1: in HTTP/2 a request's host is that of its address (`:authority`), and servers
    /// refuse two that differ.
    fn of_probe(&self, get: &HttpGet) -> &Client {
        if get.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            &self.first
        } else {
            &self.newest
        }
    }

    /// For a hook.
    pub(super) fn of_hooks(&self) -> &Client {
        &self.first
    }
}

fn builder() -> ClientBuilder {
    let redirects = Policy::custom(|attempt| {
        let elsewhere = attempt
            .previous()
            .first()
            .is_some_and(|first| first.host_str() != attempt.url().host_str());
        if elsewhere {
            attempt.stop()
        } else if attempt.previous().len() >= REDIRECTS {
            attempt.error("stopped after 10 redirects")
        } else {
            attempt.follow()
        }
    });
    Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .no_proxy()
        .referer(false)
        .redirect(redirects)
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
}

/// Asks once, and judges by the answer.
pub(super) async fn get(clients: &HttpClients, get: &HttpGet, address: &str, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    let host = get.host.as_deref().unwrap_or(address);
    let mut response = match send(clients.of_probe(get), get, address, "probe", deadline).await {
        Ok(response) => response,
        Err(outcome) => return outcome,
    };
    let mut body = Vec::new();
    while body.len() < MOST {
        match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk[..chunk.len().min(MOST - body.len())]),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Outcome::Errored(describe(&error, host, get.port)),
            Err(_) => {
                return Outcome::Errored("context deadline exceeded (Client.Timeout or context cancellation while reading body)".into());
            }
        }
    }
    match response.status().as_u16() {
        200..300 => Outcome::Success,
        300..400 => Outcome::Warning(format!(
            "Probe terminated redirects, Response body: {}",
            String::from_utf8_lossy(&body)
        )),
        // The body is not told: it may hold what is secret.
        status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// Tells by a request, whatever it is answered with. A server that speaks HTTP where HTTPS is asked for is told so, without what proves who asks, and the
/// warning for the pod's owner says it (the kubelet's runHTTPHandler).
pub(super) async fn tell(clients: &HttpClients, get: &HttpGet, address: &str, limit: Duration) -> Result<Option<String>, Outcome> {
    let deadline = Instant::now() + limit;
    let first = match send(clients.of_hooks(), get, address, "lifecycle", deadline).await {
        Ok(_) => return Ok(None),
        Err(Outcome::Failure(why)) if get.tls && why.ends_with(PLAIN) => Outcome::Failure(why),
        Err(outcome) => return Err(outcome),
    };
    let proves = |name: &str| name.eq_ignore_ascii_case("authorization");
    let plainly = HttpGet {
        tls: false,
        headers: get.headers.iter().filter(|(name, _)| !proves(name)).cloned().collect(),
        ..get.clone()
    };
    match send(clients.of_hooks(), &plainly, address, "lifecycle", deadline).await {
        Ok(_) => Ok(Some(format!(
            "request to HTTPS lifecycle hook {} got HTTP response, retry with HTTP succeeded",
            join(get.host.as_deref().unwrap_or(address), get.port)
        ))),
        Err(_) => Err(first),
    }
}

/// Sends the request; an answer, whichever it is, or why there is none.
pub(super) async fn send(client: &Client, get: &HttpGet, address: &str, purpose: &str, deadline: Instant) -> Result<Response, Outcome> {
    let url = url(get, address).map_err(Outcome::Errored)?;
    let headers = headers(get, purpose).map_err(Outcome::Errored)?;
    let host = get.host.as_deref().unwrap_or(address);
    let said = |what: String| Outcome::Failure(format!("Get \"{url}\": {what}"));
    match timeout_at(deadline, client.get(url.clone()).headers(headers).send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(said(describe(&error, host, get.port))),
        Err(_) => Err(said(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        )),
    }
}

fn url(get: &HttpGet, address: &str) -> Result<Url, String> {
    let scheme = if get.tls { "https" } else { "http" };
    let slash = if get.path.starts_with('/') { "" } else { "/" };
    let text = format!(
        "{scheme}://{}{slash}{}",
        join(get.host.as_deref().unwrap_or(address), get.port),
        get.path
    );
    Url::parse(&text).map_err(|e| format!("parse {text:?}: {e}"))
}

fn headers(get: &HttpGet, purpose: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in &get.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| format!("invalid header field name {name:?}: {e}"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("invalid header field value for {:?}", name.as_str()))?;
        headers.append(name, value);
    }
    let agent = user_agent(purpose);
    let own = [
        (USER_AGENT, HeaderValue::from_str(&agent).expect("letters and digits")),
        (ACCEPT, HeaderValue::from_static("*/*")),
        (CONNECTION, HeaderValue::from_static("close")),
    ];
    for (name, value) in own {
        headers.entry(name).or_insert(value);
    }
    Ok(headers)
}

/// `kube-probe/1.36`, as servers know it.
pub(super) fn user_agent(purpose: &str) -> String {
    let version = KUBELET_VERSION.trim_start_matches('v');
    let short = version.rsplit_once('.').map_or(version, |(short, _)| short);
    format!("kube-{purpose}/{short}")
}

/// Go's words for a server that answers TLS in HTTP.
const PLAIN: &str = "http: server gave HTTP response to HTTPS client";

/// Whether what came over TLS is no TLS. Errors of I/O hold others that are no sources of theirs.
fn is_plain(error: &(dyn Error + 'static)) -> bool {
    match error.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().is_some_and(|inner| is_plain(inner)),
        None => matches!(
            error.downcast_ref::<rustls::Error>(),
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
        ),
    }
}

/// A failure in words near Go's.
fn describe(error: &reqwest::Error, host: &str, port: u16) -> String {
    let mut last: &dyn Error = error;
    loop {
        if is_plain(last) {
            return PLAIN.into();
        }
        if let Some(io) = last.downcast_ref::<std::io::Error>()
            && io.raw_os_error().is_some()
        {
            return if error.is_connect() {
                dial_error(host, port, io)
            } else {
                io.to_string()
            };
        }
        match last.source() {
            Some(source) => last = source,
            None => return last.to_string(),
        }
    }
}

#[cfg(test)]
mod tls_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// A server that answers each request with the next of these, and tells what it was asked.
    pub(super) async fn server(answers: Vec<String>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, asked_of) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                asked.send(String::from_utf8(request).unwrap()).unwrap();
                stream
                    .write_all(answer.replace("PORT", &port.to_string()).as_bytes())
                    .await
                    .unwrap();
                if answer.is_empty() {
                    let _ = stream.read_u8().await;
                }
            }
        });
        (port, asked_of)
    }

    async fn ask(port: u16, path: &str, headers: &[(&str, &str)]) -> Outcome {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let spec = HttpGet {
            tls: false,
            host: None,
            port,
            path: path.into(),
            headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
        };
        get(&HttpClients::new().unwrap(), &spec, "127.0.0.1", Duration::from_secs(1)).await
    }

    pub(super) fn answer(status: &str, more: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n")
    }

    #[tokio::test]
    async fn the_status_decides_and_the_request_is_the_kubelets() {
        let (port, mut asked) = server(vec![answer("204 No Content", ""), answer("404 Not Found", "")]).await;
        assert_eq!(ask(port, "/x?y=1", &[("Host", "web"), ("X-A", "b")]).await, Outcome::Success);
        let request = asked.recv().await.unwrap().to_lowercase();
        for line in [
            "get /x?y=1 http/1.1",
            "host: web",
            "x-a: b",
            "user-agent: kube-probe/1.",
            "accept: */*",
            "connection: close",
        ] {
            assert!(request.contains(line), "{line} in {request}");
        }
        assert_eq!(
            ask(port, "", &[]).await,
            Outcome::Failure("HTTP probe failed with statuscode: 404".into())
        );
        assert!(asked.recv().await.unwrap().starts_with("GET / HTTP/1.1"));
    }

    #[tokio::test]
    async fn a_redirect_to_the_same_host_is_followed_and_one_to_another_is_a_warning() {
        let (port, _asked) = server(vec![
            answer("302 Found", "Location: /there\r\n"),
            answer("500 Internal Server Error", ""),
            answer("302 Found", "Location: http://elsewhere.invalid:PORT/\r\n"),
        ])
        .await;
        assert_eq!(
            ask(port, "/", &[]).await,
            Outcome::Failure("HTTP probe failed with statuscode: 500".into())
        );
        assert_eq!(
            ask(port, "/", &[]).await,
            Outcome::Warning("Probe terminated redirects, Response body: ".into())
        );
    }

    #[tokio::test]
    async fn a_redirect_in_a_circle_ends() {
        let (port, _asked) = server(vec![answer("302 Found", "Location: /\r\n"); 20]).await;
        assert_eq!(
            ask(port, "/", &[]).await,
            Outcome::Failure(format!("Get \"http://127.0.0.1:{port}/\": stopped after 10 redirects"))
        );
    }

    #[tokio::test]
    async fn a_server_that_hangs_or_is_not_there_is_a_failure_in_gos_words() {
        let (port, _asked) = server(vec![String::new()]).await;
        assert_eq!(
            ask(port, "/", &[]).await,
            Outcome::Failure(format!(
                "Get \"http://127.0.0.1:{port}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            ))
        );
        assert_eq!(
            ask(1, "/", &[]).await,
            Outcome::Failure("Get \"http://127.0.0.1:1/\": dial tcp 127.0.0.1:1: connect: connection refused".into())
        );
    }

    #[tokio::test]
    async fn a_body_without_end_costs_ten_kibibytes_and_no_more_time() {
        let (port, _asked) = server(vec![format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{}",
            "x".repeat(64 << 10)
        )])
        .await;
        assert_eq!(ask(port, "/", &[]).await, Outcome::Success);
    }
}
