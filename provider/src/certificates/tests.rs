//! Certificates are asked of an API server that is played here, over real connections.

use std::{path::PathBuf, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::Request;
use jiff::Timestamp;
use kube::Client;
use kvmlet_server::ServingCertificate;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    NodeClient, PortCertificate,
    figures::Figures,
    files::Directory,
    keeper::Teller,
    plan::{Kind, Template},
    testing_api::{FakeApi, TOKEN, Verdict, soon},
};
use crate::{config::Config, events::Recorder};

/// A node's files, beside an API server.
struct Node {
    root: TempDir,
    api: FakeApi,
    figures: Arc<Figures>,
}

impl Node {
    async fn new(verdicts: &[Verdict]) -> Self {
        // Kube takes the process's provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let node = Self {
            root: tempfile::tempdir().unwrap(),
            api: FakeApi::start(verdicts).await,
            figures: Arc::default(),
        };
        std::fs::write(node.path("bootstrap"), node.kubeconfig(json!({"token": TOKEN}))).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn kubeconfig(&self, user: Value) -> String {
        let cluster = json!({"server": format!("https://{}", self.api.address),
            "certificate-authority-data": STANDARD.encode(&self.api.authority.certificate)});
        json!({"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}], "clusters": [{"name": "k", "cluster": cluster}]})
        .to_string()
    }

    fn config(&self, keys: &str) -> Config {
        let root = self.root.path().display();
        let text = format!(
            "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletConfiguration\nnodeName: n\nnodeIP: 10.0.0.1\nkubeconfig: {root}/kubeconfig\n\
             stateDir: {root}\nserverTLSBootstrap: true\ntls: {{clientCAFile: /a}}\n{keys}"
        );
        Config::parse(std::path::Path::new("config.yaml"), &text).unwrap()
    }

    fn bootstraps(&self) -> Config {
        self.config(&format!("bootstrapKubeconfig: {}\n", self.path("bootstrap").display()))
    }

    /// A certificate is on disk, between these seconds from now.
    fn keeps(&self, kind: Kind, template: &Template, begins: i64, ends: i64) -> String {
        let now = Timestamp::now().as_second();
        let pair = self.api.authority.pair(template, now + begins, now + ends);
        Directory::new(self.path("pki"), kind).write(&pair, Timestamp::now()).unwrap();
        // Serial numbers are when certificates begin.
        let hexadecimal = format!("{:08x}", now + begins);
        let pairs = hexadecimal.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.collect::<Vec<_>>().join(":")
    }

    /// The daemon starts.
    async fn start(&self, config: &Config) -> Client {
        let node = NodeClient::open(config, &self.figures).await.unwrap();
        let client = node.client.clone();
        let teller = self.teller(&client);
        node.keep(teller);
        client
    }

    fn teller(&self, client: &Client) -> Teller {
        Teller {
            recorder: Recorder::start(client.clone(), "n".into()),
            node: "n".into(),
        }
    }
}

/// Who the API server says that this is, and by which connection.
async fn whoami(client: &Client) -> (String, u64) {
    let request = Request::get("/whoami").body(Vec::new()).unwrap();
    let answer: Value = soon(client.request(request)).await.unwrap();
    (answer["who"].as_str().unwrap().to_owned(), answer["connection"].as_u64().unwrap())
}

#[tokio::test]
async fn the_first_certificate_is_asked_for_by_token_and_is_there_after_a_restart() {
    let node = Node::new(&[Verdict::Sign(3600)]).await;
    let config = node.config(&format!(
        "certificateExpirationSeconds: 3600\nbootstrapKubeconfig: {}\n",
        node.path("bootstrap").display()
    ));
    let client = node.start(&config).await;
    let (who, _) = whoami(&client).await;
    assert!(who.contains(':'), "known by a certificate, not as {who}");
    assert_eq!(node.api.askers(), ["token"]);
    let spec = node.api.asked(0);
    assert_eq!(spec["signerName"], "kubernetes.io/kube-apiserver-client-kubelet");
    assert_eq!(spec["usages"], json!(["digital signature", "client auth"]));
    assert_eq!(spec["expirationSeconds"], 3600);
    let left = node.figures.get(Kind::Client).left(Timestamp::now());
    assert!((3500.0..3601.0).contains(&left), "{left}");

    // The token may go with its kubeconfig: the node has its own.
    let written = std::fs::read_to_string(node.path("kubeconfig")).unwrap();
    assert!(
        written.contains("kubelet-client-current.pem") && !written.contains(TOKEN),
        "{written}"
    );
    std::fs::remove_file(node.path("bootstrap")).unwrap();
    let again = node.start(&config).await;
    assert_eq!(whoami(&again).await.0, who);
    let others = super::client::of_kubeconfig(&node.path("kubeconfig")).await.unwrap();
    assert_eq!(whoami(&others).await.0, who, "as others read the kubeconfig");
    assert_eq!(node.api.askers().len(), 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_by_itself_and_nothing_that_is_under_way_is_cut() {
    let node = Node::new(&[Verdict::Leave]).await;
    let old = node.keeps(Kind::Client, &Template::client("n"), -1000, 100);
    let client = node.start(&node.bootstraps()).await;
    let (who, connection) = whoami(&client).await;
    assert_eq!(who, old);
    let request = Request::get("/lines").body(Vec::new()).unwrap();
    let mut lines = std::pin::pin!(client.request_stream(request).await.unwrap());
    let mut line = String::new();
    node.api.line();
    read_line(&mut lines, &mut line).await;
    assert_eq!(line.trim(), old);

    node.api.until(|api| !api.askers().is_empty()).await;
    assert_eq!(node.api.askers(), [&*old], "the certificate itself asks");
    node.api.decide(Verdict::Sign(3600));
    let new = soon(async {
        loop {
            let new = whoami(&client).await;
            if new.0 != old {
                break new;
            }
        }
    })
    .await;
    assert_ne!(new.1, connection, "a connection of the old one");
    node.api.line();
    read_line(&mut lines, &mut line).await;
    assert_eq!(line.trim(), old, "the stream goes on where it began");
    assert_eq!(node.api.askers().len(), 1);
}

async fn read_line(from: &mut (impl futures_util::AsyncBufRead + Unpin), line: &mut String) {
    use futures_util::AsyncBufReadExt as _;
    line.clear();
    soon(from.read_line(line)).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_has_ended_or_is_anothers_is_asked_for_again_by_token() {
    for (name, begins, ends) in [("n", -100, -1), ("m", -1, 3600)] {
        let node = Node::new(&[Verdict::Sign(3600)]).await;
        let old = node.keeps(Kind::Client, &Template::client(name), begins, ends);
        let client = node.start(&node.bootstraps()).await;
        assert_ne!(whoami(&client).await.0, old);
        assert_eq!(node.api.askers(), ["token"], "{name}");

        // Without a way to another the daemon says so, and does not begin.
        node.keeps(Kind::Client, &Template::client(name), begins, ends);
        std::fs::write(node.path("kubeconfig"), node.kubeconfig(json!({}))).unwrap();
        let refused = NodeClient::open(&node.config("rotateCertificates: true\n"), &node.figures).await;
        let error = refused.err().unwrap().to_string();
        assert!(error.contains("bootstrapKubeconfig") && error.contains("/pki"), "{error}");
    }
}

#[tokio::test]
async fn a_kubeconfigs_own_certificate_is_where_renewal_begins() {
    let node = Node::new(&[Verdict::Sign(3600)]).await;
    let now = Timestamp::now().as_second();
    let pair = node.api.authority.pair(&Template::client("n"), now - 1000, now + 100);
    let user = json!({"client-certificate-data": STANDARD.encode(&pair.certificate), "client-key-data": STANDARD.encode(&pair.key)});
    std::fs::write(node.path("kubeconfig"), node.kubeconfig(user)).unwrap();
    let static_one = NodeClient::open(&node.config(""), &node.figures).await.unwrap();
    let (old, _) = whoami(&static_one.client).await;
    let client = node.start(&node.config("rotateCertificates: true\n")).await;
    node.api.until(|api| !api.askers().is_empty()).await;
    assert_eq!(node.api.askers(), [old]);
    drop(client);
}

#[tokio::test]
async fn a_refusal_is_told_once_and_the_next_request_may_do() {
    let node = Node::new(&[Verdict::Deny, Verdict::Deny, Verdict::Sign(3600)]).await;
    let client = node.start(&node.bootstraps()).await;
    assert!(whoami(&client).await.0.contains(':'));
    assert_eq!(node.api.askers(), ["token"; 3]);
    assert_eq!(node.figures.get(Kind::Client).failures, 2);
    // Nobody could write it before.
    node.api.until(|api| !api.events().is_empty()).await;
    assert_eq!(node.api.events(), ["ClientCertificateNotRenewed"]);
}

fn shown(certificate: &ServingCertificate) -> Option<Vec<u8>> {
    certificate.present().map(|key| key.cert[0].to_vec())
}

#[tokio::test]
async fn the_port_shows_nothing_until_its_certificate_is_approved() {
    let node = Node::new(&[Verdict::Leave]).await;
    node.keeps(Kind::Client, &Template::client("n"), -1, 3600);
    let client = node.start(&node.bootstraps()).await;
    let config = node.bootstraps();
    let port = PortCertificate::open(&config, &client, &node.figures).unwrap();
    let certificate = port.certificate.clone();
    port.keep(node.teller(&client));
    node.api.until(|api| !api.askers().is_empty()).await;
    assert_eq!(shown(&certificate), None);
    let spec = node.api.asked(0);
    assert_eq!(spec["signerName"], "kubernetes.io/kubelet-serving");
    assert_eq!(spec["usages"], json!(["digital signature", "server auth"]));
    node.api.decide(Verdict::Sign(3600));
    let directory = Directory::new(config.pki_dir(), Kind::Serving);
    soon(async {
        while shown(&certificate).is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let kept = directory.read().unwrap().unwrap();
    assert_eq!(shown(&certificate).unwrap(), kept.der().0[0].to_vec());
    assert_eq!(
        (kept.facts.names, kept.facts.addresses),
        (["n".into()].into(), ["10.0.0.1".parse().unwrap()].into())
    );

    // After a restart at another address it will not do.
    let again = PortCertificate::open(&config, &client, &node.figures).unwrap();
    assert!(shown(&again.certificate).is_some());
    let mut moved = config;
    moved.node_ip = "10.0.0.2".parse().unwrap();
    let moved = PortCertificate::open(&moved, &client, &node.figures).unwrap();
    assert_eq!(shown(&moved.certificate), None);
}
