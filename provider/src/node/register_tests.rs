use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use http_body_util::BodyExt as _;
use hyper::{Request, Response};
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;
use crate::{config::Config, node::Host};

/// A cluster that has the Node or not, and tells of each that is made.
#[derive(Clone)]
struct FakeApi {
    has_node: Arc<AtomicBool>,
    made: mpsc::UnboundedSender<Value>,
}

impl FakeApi {
    fn client(self) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = self.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
                let is_there = api.has_node.load(Ordering::SeqCst);
                let node = json!({"metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}});
                let (code, answer) = match (parts.method.as_str(), path) {
                    // Nothing happens but what is done here.
                    ("GET", "/api/v1/nodes") if query.contains("watch=true") => std::future::pending().await,
                    ("GET", "/api/v1/nodes") => {
                        let items = if is_there { vec![node] } else { Vec::new() };
                        (200, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
                    }
                    ("POST", "/api/v1/nodes") => {
                        api.has_node.store(true, Ordering::SeqCst);
                        api.made.send(serde_json::from_slice(&body).unwrap()).expect("somebody looks");
                        (201, node)
                    }
                    (_, "/api/v1/nodes/n" | "/api/v1/nodes/n/status") if !is_there => (
                        404,
                        json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "NotFound", "code": 404}),
                    ),
                    (_, "/api/v1/nodes/n" | "/api/v1/nodes/n/status") => (200, node),
                    _ => (200, json!({"metadata": {}})),
                };
                let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(answer.expect("an answer"))
            }
        });
        Client::new(service, "default")
    }
}

/// What belongs to a keeper of the node in such a cluster.
struct Rig {
    keeper: NodeKeeper,
    made: mpsc::UnboundedReceiver<Value>,
    /// What the cluster says.
    says: Arc<Mutex<Entry>>,
    tell: watch::Sender<Entry>,
    _directory: tempfile::TempDir,
    _channels: Vec<Box<dyn std::any::Any + Send>>,
}

impl Rig {
    fn new(has_node: bool, entry: Entry) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "{{apiVersion: kvmlet.io/v1alpha1, kind: KvmletConfiguration, nodeName: n, nodeIP: 192.0.2.1, kubeconfig: /k, stateDir: {}, \
             tls: {{certFile: /c, keyFile: /k, clientCAFile: /a}}}}",
            directory.path().display()
        );
        let config = Config::parse(std::path::Path::new("test"), &text).unwrap();
        let (made_here, made) = mpsc::unbounded_channel();
        let api = FakeApi {
            has_node: Arc::new(AtomicBool::new(has_node)),
            made: made_here,
        };
        let says = Arc::new(Mutex::new(entry.clone()));
        let (tell, told) = watch::channel(entry);
        let asked = says.clone();
        let (pressure, shutdown, shared, nesting) = (
            watch::Sender::default(),
            watch::Sender::default(),
            watch::Sender::default(),
            watch::Sender::default(),
        );
        let (farewell, farewells) = mpsc::channel(1);
        let keeper = NodeKeeper {
            client: api.client(),
            host: Host::measure(&config).unwrap(),
            troubles: Arc::default(),
            pressure: pressure.subscribe(),
            shutdown: shutdown.subscribe(),
            images: Arc::new(
                kvmlet_image::ImageStore::open(directory.path().join("images"), kvmlet_image::StoreConfig::default()).unwrap(),
            ),
            network: Arc::default(),
            nesting: nesting.subscribe(),
            shared: shared.subscribe(),
            gate: Gate {
                ask: Arc::new(move || {
                    let entry = asked.lock().unwrap().clone();
                    Box::pin(async move { Ok(entry) })
                }),
                told,
            },
            farewells,
            config: Arc::new(config),
        };
        Self {
            keeper,
            made,
            says,
            tell,
            _directory: directory,
            _channels: vec![Box::new((pressure, shutdown, shared, nesting, farewell))],
        }
    }
}

fn preflight() -> Taint {
    Taint {
        key: "kvmlet.io/preflight".into(),
        value: Some("checking".into()),
        effect: "NoSchedule".into(),
        ..Taint::default()
    }
}

fn taints(made: &Value) -> Vec<&str> {
    let taints = made["spec"]["taints"].as_array().unwrap();
    taints.iter().map(|taint| taint["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_node_comes_with_the_taint_that_the_cluster_asks_for_from_its_first_moment() {
    let mut rig = Rig::new(false, Entry::Open(Some(preflight())));
    assert!(rig.keeper.register().await.is_some());
    let made = rig.made.recv().await.unwrap();
    assert_eq!(taints(&made), ["virtual-kubelet.io/provider", "kvmlet.io/preflight"]);
    let mut rig = Rig::new(false, Entry::Open(None));
    assert!(rig.keeper.register().await.is_some());
    assert_eq!(taints(&rig.made.recv().await.unwrap()), ["virtual-kubelet.io/provider"]);
}

#[tokio::test]
async fn a_node_makes_no_node_while_the_gate_is_closed_and_keeps_one_that_is_there() {
    let mut rig = Rig::new(false, Entry::Closed);
    assert!(rig.keeper.register().await.is_none());
    assert!(rig.made.try_recv().is_err());
    let mut rig = Rig::new(true, Entry::Closed);
    assert!(rig.keeper.register().await.is_some());
    assert!(rig.made.try_recv().is_err());
}

#[tokio::test]
async fn a_node_that_stays_away_comes_as_soon_as_it_is_told_that_it_may() {
    let Rig {
        keeper,
        mut made,
        says,
        tell,
        _directory,
        _channels,
    } = Rig::new(false, Entry::Closed);
    let keeping = tokio::spawn(keeper.keep());
    *says.lock().unwrap() = Entry::Open(Some(preflight()));
    tell.send_replace(Entry::Open(Some(preflight())));
    let made = tokio::time::timeout(Duration::from_secs(60), made.recv()).await.unwrap().unwrap();
    assert_eq!(taints(&made), ["virtual-kubelet.io/provider", "kvmlet.io/preflight"]);
    keeping.abort();
}
