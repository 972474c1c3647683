//! An API server for tests of whoever looks after nodes: it has nodes and pods, notes what it was asked, and refuses what it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt as _;
use hyper::{Request, Response};
use kube::{Client, client::Body, runtime::watcher::Event};
use serde_json::{Value, json};

use super::{
    KvmletRuntime, PreflightCheck,
    decide::tests::runtime,
    keep::{Keeper, News},
};

#[derive(Default)]
struct Seen {
    nodes: Vec<String>,
    /// Node and name.
    pods: Vec<(String, String)>,
    /// By method and the end of the path.
    refused: BTreeMap<(String, String), u16>,
    asked: Vec<(String, String)>,
    message: String,
}

/// The server.
#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<Seen>>);

impl FakeApi {
    /// With these nodes, and pods by node and name.
    pub(super) fn new(nodes: &[&str], pods: &[(&str, &str)]) -> Self {
        let api = Self::default();
        api.0.lock().unwrap().nodes = nodes.iter().map(|&name| name.into()).collect();
        api.put(pods);
        api
    }

    /// These are the pods from now on.
    pub(super) fn put(&self, pods: &[(&str, &str)]) {
        self.0.lock().unwrap().pods = pods.iter().map(|&(node, name)| (node.into(), name.into())).collect();
    }

    /// Answers requests of this method whose path ends so with this code; 200 lets them be.
    pub(super) fn refuse(&self, method: &str, path: &str, code: u16) {
        let mut seen = self.0.lock().unwrap();
        match code {
            200 => _ = seen.refused.remove(&(method.into(), path.into())),
            _ => _ = seen.refused.insert((method.into(), path.into()), code),
        }
    }

    /// Whether it was asked for this.
    pub(super) fn has_asked(&self, method: &str, path: &str) -> bool {
        let seen = self.0.lock().unwrap();
        seen.asked.iter().any(|(asked, at)| asked == method && at.ends_with(path))
    }

    /// What the switch's status says.
    pub(super) fn message(&self) -> String {
        self.0.lock().unwrap().message.clone()
    }

    fn answer(&self, method: &str, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        let mut seen = self.0.lock().unwrap();
        seen.asked.push((method.into(), path.into()));
        let refused = seen
            .refused
            .iter()
            .find(|((of, end), _)| of == method && path.ends_with(end.as_str()));
        if let Some((_, code)) = refused {
            let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "No", "code": code});
            return (*code, status);
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        let done = match (method, path) {
            ("GET", "/api/v1/pods") => {
                let here = seen
                    .pods
                    .iter()
                    .filter(|(node, _)| query.ends_with(&format!("spec.nodeName%3D{node}")));
                // The webhook's own have its name.
                let pods: Vec<_> = here
                    .map(|(node, name)| json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app.kubernetes.io/name": name}}, "spec": {"nodeName": node, "containers": []}}))
                    .collect();
                json!({"metadata": {}, "items": pods})
            }
            ("GET", _) if path.starts_with("/api/v1/nodes/") => node(name),
            ("PATCH", _) if path.ends_with("/status") => {
                let told: Value = serde_json::from_slice(body).unwrap();
                seen.message = told["status"]["message"].as_str().unwrap_or_default().into();
                json!({"metadata": {"name": "kvmlet"}, "spec": {"enabled": true}})
            }
            ("PATCH", _) if path.starts_with("/api/v1/nodes/") => node(name),
            ("PATCH", _) => json!({"metadata": {"name": "kvmlet"}, "spec": {"enabled": true}}),
            ("POST", _) if path.ends_with("/events") => json!({"metadata": {}, "involvedObject": {}}),
            _ => json!({"kind": "Status", "status": "Success"}),
        };
        (200, done)
    }

    fn client(&self) -> Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (code, answer) = api.answer(
                    parts.method.as_str(),
                    parts.uri.path(),
                    parts.uri.query().unwrap_or_default(),
                    &body,
                );
                let answer = Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(answer.expect("an answer"))
            }
        });
        Client::new(service, "default")
    }
}

fn node(name: &str) -> Value {
    let info = json!({"containerRuntimeVersion": "kvmlet://0.1.0", "architecture": "", "bootID": "", "kernelVersion": "", "kubeProxyVersion": "",
        "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "", "systemUUID": ""});
    json!({"metadata": {"name": name, "uid": "u", "resourceVersion": "1"}, "spec": {}, "status": {"nodeInfo": info}})
}

/// Whoever looks after the nodes of this server, with a switch that is on or off, and these checks.
pub(super) fn keeper(api: &FakeApi, enabled: bool, checks: &[PreflightCheck]) -> Keeper {
    let mut keeper = Keeper::new(api.client());
    keeper.take(News::Runtime(Event::Init));
    keeper.take(News::Runtime(Event::InitApply(runtime(enabled))));
    keeper.take(News::Runtime(Event::<KvmletRuntime>::InitDone));
    keeper.take(News::Node(Box::new(Event::Init)));
    for name in &api.0.lock().unwrap().nodes {
        let node = serde_json::from_value(node(name)).unwrap();
        keeper.take(News::Node(Box::new(Event::InitApply(node))));
    }
    keeper.take(News::Node(Box::new(Event::InitDone)));
    keeper.take(News::Check(Event::Init));
    for check in checks {
        keeper.take(News::Check(Event::InitApply(check.clone())));
    }
    keeper.take(News::Check(Event::<PreflightCheck>::InitDone));
    keeper
}
