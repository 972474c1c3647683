//! An API server for tests: it knows clients by their certificates or a bootstrap token, signs requests, and can be watched.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{plan::Template, testing::Authority};

/// The bootstrap token.
pub(super) const TOKEN: &str = "abcdef.0123456789abcdef";

/// Far more than anything here takes.
pub(super) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future)
        .await
        .expect("what is waited for")
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Signed for so many seconds.
    Sign(i64),
    /// Denied.
    Deny,
    /// Left alone.
    Leave,
}

/// What it was asked, and what it will do.
#[derive(Default)]
struct Seen {
    /// Verdicts to come; the last stays.
    verdicts: VecDeque<Verdict>,
    /// Who asked, and what for.
    requests: Vec<(String, Value)>,
    /// Reasons of events.
    events: Vec<String>,
    /// Who has asked for `/whoami`, with the number of the connection.
    connections: u32,
}

/// The server. Clients are known by the serial numbers of their certificates, or as `token`.
#[derive(Clone)]
pub(super) struct FakeApi {
    pub(super) authority: Arc<Authority>,
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Counts what happens.
    changed: watch::Sender<u32>,
    /// Lines for whoever watches.
    lines: watch::Sender<u32>,
}

impl FakeApi {
    pub(super) async fn start(verdicts: &[Verdict]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Self {
            authority: Arc::new(Authority::new()),
            address: listener.local_addr().unwrap(),
            seen: Arc::new(Mutex::new(Seen {
                verdicts: verdicts.iter().cloned().collect(),
                ..Seen::default()
            })),
            changed: watch::Sender::new(0),
            lines: watch::Sender::new(0),
        };
        let acceptor = TlsAcceptor::from(Arc::new(api.tls()));
        let serving = api.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serving.clone().serve(stream, acceptor.clone()));
            }
        });
        api
    }

    fn tls(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.certificate.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let (chain, key) = self.authority.fresh(&Template::serving("api", [127, 0, 0, 1].into()), 3600).der();
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(chain, key)
            .unwrap()
    }

    /// Who asked for certificates.
    pub(super) fn askers(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.iter().map(|(who, _)| who.clone()).collect()
    }

    /// `spec` of the request by this number.
    pub(super) fn asked(&self, number: usize) -> Value {
        self.seen.lock().unwrap().requests[number].1.clone()
    }

    pub(super) fn events(&self) -> Vec<String> {
        self.seen.lock().unwrap().events.clone()
    }

    /// Decides on all requests from now on, those that wait included.
    pub(super) fn decide(&self, verdict: Verdict) {
        self.seen.lock().unwrap().verdicts = [verdict].into();
        self.changed.send_modify(|count| *count += 1);
    }

    /// Gives those that watch a line.
    pub(super) fn line(&self) {
        self.lines.send_modify(|count| *count += 1);
    }

    /// Waits until it has seen what is meant.
    pub(super) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        soon(async {
            while !condition(self) {
                changed.changed().await.unwrap();
            }
        })
        .await;
    }

    async fn serve(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let serial = stream.get_ref().1.peer_certificates().map(|chain| {
            let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
            leaf.raw_serial_as_string()
        });
        let connection = {
            let mut seen = self.seen.lock().unwrap();
            seen.connections += 1;
            seen.connections
        };
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length, mut token) = (String::new(), 0, false);
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let path = line.split(' ').nth(1).unwrap().to_owned();
            while line.trim() != "" {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                let line = line.to_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                token |= line.trim() == format!("authorization: bearer {TOKEN}");
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let who = serial.clone().unwrap_or_else(|| if token { "token" } else { "nobody" }.to_owned());
            if path.contains("watch=") || path == "/lines" {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                let (mut changed, mut lines) = (self.changed.subscribe(), self.lines.subscribe());
                loop {
                    stream.flush().await.unwrap();
                    let text = tokio::select! {
                        _ = changed.changed(), if path != "/lines" => match self.objects(&path).pop() {
                            Some(object) => json!({"type": "MODIFIED", "object": object}).to_string(),
                            None => continue,
                        },
                        _ = lines.changed(), if path == "/lines" => who.clone(),
                    };
                    let chunk = format!("{:x}\r\n{text}\n\r\n", text.len() + 1);
                    if stream.write_all(chunk.as_bytes()).await.is_err() {
                        return;
                    }
                }
            }
            let (code, answer) = self.answer(&path, &who, connection, &body);
            let answer = answer.to_string();
            let head = format!(
                "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                answer.len()
            );
            stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The requests that a list or a watch is of, as they are now.
    fn objects(&self, path: &str) -> Vec<Value> {
        let mut seen = self.seen.lock().unwrap();
        let number = seen
            .requests
            .iter()
            .enumerate()
            .position(|(number, _)| path.contains(&format!("csr-{number}")));
        let Some(number) = number else { return Vec::new() };
        let spec = seen.requests[number].1.clone();
        let verdict = if seen.verdicts.len() > 1 {
            seen.verdicts.pop_front()
        } else {
            seen.verdicts.front().cloned()
        };
        let status = match verdict {
            Some(Verdict::Sign(seconds)) => {
                let request = STANDARD.decode(spec["request"].as_str().unwrap()).unwrap();
                let certificate = self.authority.sign(&String::from_utf8(request).unwrap(), seconds);
                json!({"certificate": STANDARD.encode(certificate)})
            }
            Some(Verdict::Deny) => json!({"conditions": [{"type": "Denied", "status": "True", "message": "no"}]}),
            Some(Verdict::Leave) | None => json!({}),
        };
        let metadata = json!({"name": format!("csr-{number}"), "resourceVersion": "1"});
        vec![
            json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": metadata, "spec": spec,
            "status": status}),
        ]
    }

    fn answer(&self, path: &str, who: &str, connection: u32, body: &[u8]) -> (u32, Value) {
        if path == "/whoami" {
            return (200, json!({"who": who, "connection": connection}));
        }
        if path.contains("/events") {
            let event: Value = serde_json::from_slice(body).unwrap();
            self.seen.lock().unwrap().events.push(event["reason"].as_str().unwrap().to_owned());
            return (201, event);
        }
        assert!(
            path.starts_with("/apis/certificates.k8s.io/v1/certificatesigningrequests"),
            "{path}"
        );
        if body.is_empty() {
            let list = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequestList",
                "metadata": {"resourceVersion": "1"}, "items": self.objects(path)});
            return (200, list);
        }
        let mut request: Value = serde_json::from_slice(body).unwrap();
        let requests = &mut self.seen.lock().unwrap().requests;
        request["metadata"]["name"] = format!("csr-{}", requests.len()).into();
        requests.push((who.to_owned(), request["spec"].clone()));
        (201, request)
    }
}
