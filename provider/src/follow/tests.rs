//! A pod's volumes follow an API server and reach an agent that are both played here, over real sockets.

use std::time::Duration;

use kube::{Client, Config};
use kvmlet_protocol::{Hello, Response, VERSION, VolumeContent, Welcome};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixListener},
    sync::mpsc,
    time::timeout,
};

use super::*;
use crate::{
    agent::{receive, send},
    objects::Objects,
};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// An API server of one secret `s`, tokens that are counted, and events.
#[derive(Default)]
struct Api {
    /// The secret's value and version; nothing while it does not exist.
    secret: Option<(String, u32)>,
    /// The watch of the secret.
    watch: Option<mpsc::UnboundedSender<Value>>,
    tokens: u32,
    refuses_tokens: bool,
    /// Whether the secret is immutable.
    immutable: bool,
    /// Watches of the secret that were begun.
    watches: u32,
    events: Vec<String>,
    /// What was asked for, besides services.
    asked: Vec<String>,
}

fn secret(value: &str, version: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "n", "uid": "u", "resourceVersion": version.to_string()},
        "data": {"key": value}})
}

async fn serve(api: Arc<Mutex<Api>>, stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        let request = line.clone();
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let path = request.split(' ').nth(1).unwrap().trim_end_matches('?').to_owned();
        if path.contains("/secrets") && path.contains("watch=") {
            let (sender, mut events) = mpsc::unbounded_channel();
            {
                let mut api = api.lock().unwrap();
                api.watch = Some(sender);
                api.watches += 1;
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while let Some(event) = events.recv().await {
                let line = format!("{event}\n");
                if stream
                    .write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())
                    .await
                    .is_err()
                {
                    return;
                }
            }
            return;
        }
        let (code, answer) = answer(&mut api.lock().unwrap(), &path, &body);
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {code} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
    }
}

fn answer(api: &mut Api, path: &str, body: &[u8]) -> (u32, Value) {
    let list = |kind: &str, items: Vec<Value>| {
        let meta = json!({"resourceVersion": "1"});
        (200, json!({"apiVersion": "v1", "kind": kind, "metadata": meta, "items": items}))
    };
    if path.starts_with("/api/v1/services") {
        return list("ServiceList", Vec::new());
    }
    api.asked.push(path.to_owned());
    if path.contains("/events") {
        let event: Value = serde_json::from_slice(body).unwrap();
        api.events.push(event["message"].as_str().unwrap().to_owned());
        return (201, event);
    }
    if path.ends_with("/token") && api.refuses_tokens {
        let status =
            json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": "not today", "reason": "Forbidden", "code": 403});
        return (403, status);
    }
    if path.ends_with("/token") {
        api.tokens += 1;
        let token = format!("token {}", api.tokens);
        let status = json!({"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"});
        return (
            201,
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
                "spec": {"audiences": [], "expirationSeconds": 600}, "status": status}),
        );
    }
    assert!(path.contains("/namespaces/n/secrets"), "{path}");
    let immutable = api.immutable;
    let one = |(value, version): &(String, u32)| {
        let mut secret = secret(value, *version);
        secret["immutable"] = immutable.into();
        secret
    };
    let items: Vec<Value> = api.secret.iter().map(one).collect();
    if path.contains("/secrets?") {
        return list("SecretList", items);
    }
    match items.into_iter().next() {
        Some(secret) => (200, secret),
        None => (
            404,
            json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}),
        ),
    }
}

/// An agent that takes volumes, and tells of each.
async fn agent(listener: UnixListener, taken: mpsc::UnboundedSender<(String, Vec<(String, String)>)>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = vec![0; "CONNECT 1024\n".len()];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"OK 1\n").await.unwrap();
        receive::<Hello>(&mut stream).await.unwrap();
        let welcome = Welcome {
            version: VERSION,
            agent: String::new(),
            kernel: String::new(),
        };
        send(&mut stream, &welcome).await.unwrap();
        let Request::PutVolume { volume, content } = receive(&mut stream).await.unwrap() else {
            panic!("something else was asked")
        };
        send(&mut stream, &Response::Done).await.unwrap();
        taken.send((volume, text(content))).unwrap();
    }
}

fn text(content: VolumeContent) -> Vec<(String, String)> {
    let file = |file: kvmlet_protocol::File| (file.path, String::from_utf8(file.data).unwrap());
    content.files.into_iter().map(file).collect()
}

struct Scene {
    dir: tempfile::TempDir,
    api: Arc<Mutex<Api>>,
    client: Client,
    taken: mpsc::UnboundedReceiver<(String, Vec<(String, String)>)>,
}

fn pod(label: &str) -> Arc<DesiredPod> {
    let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": label}}, "spec": {"containers": [{"name": "c"}], "volumes": [
        {"name": "keys", "secret": {"secretName": "s", "optional": true}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}},
        {"name": "labels", "downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}}]}});
    Arc::new(DesiredPod::read(Arc::new(serde_json::from_value(pod).unwrap())).0)
}

fn known(label: &str) -> Known {
    Known {
        desired: pod(label),
        ips: Vec::new(),
    }
}

impl Scene {
    async fn new() -> Self {
        let api = Arc::<Mutex<Api>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = api.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(serving.clone(), stream));
            }
        });
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (sender, taken) = mpsc::unbounded_channel();
        tokio::spawn(agent(UnixListener::bind(dir.path().join("vsock.sock")).unwrap(), sender));
        std::fs::create_dir_all(dir.path().join("pods/u")).unwrap();
        Self { dir, api, client, taken }
    }

    fn store(&self) -> Store {
        Store::open(self.dir.path()).unwrap()
    }

    /// A daemon that takes the pod's machine over: knows what the record says.
    fn daemon(&self, label: &str) -> (watch::Sender<Known>, AbortOnDropHandle<()>) {
        let objects = Arc::new(PodObjects::new(Objects::start(self.client.clone())));
        objects.keep(Some(&pod(label)));
        let holding = Holding {
            delivered: self.store().delivered("u").unwrap_or_default(),
            ..Holding::default()
        };
        let work = Work {
            socket: self.dir.path().join("vsock.sock"),
            watched: watched(&objects, &pod(label)),
            objects,
            store: self.store(),
            recorder: Recorder::start(self.client.clone(), "node".into()),
            facts: Facts::default(),
            holding: Arc::new(Mutex::new(holding)),
            failures: BTreeMap::new(),
            put: None,
            told: BTreeMap::new(),
        };
        let (sender, receiver) = watch::channel(known(label));
        (sender, AbortOnDropHandle::new(tokio::spawn(work.run(receiver))))
    }

    /// The next volume that the guest is given, and its files.
    async fn next(&mut self) -> (String, Vec<(String, String)>) {
        timeout(PATIENCE, self.taken.recv()).await.expect("nothing was delivered").unwrap()
    }

    /// The volumes that the guest is given next, in the order of their names.
    async fn next_of(&mut self, count: usize) -> Vec<(String, Vec<(String, String)>)> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(self.next().await);
        }
        all.sort();
        all
    }

    /// Waits until the record is as told.
    async fn until_recorded(&self, condition: impl Fn(&Delivered) -> bool) -> Delivered {
        let look = async {
            loop {
                match self.store().delivered("u").filter(|delivered| condition(delivered)) {
                    Some(delivered) => return delivered,
                    None => tokio::time::sleep(POLL).await,
                }
            }
        };
        timeout(PATIENCE, look).await.expect("it was not recorded")
    }

    /// Waits until something is true of the API server.
    async fn until<T>(&self, look: impl Fn(&mut Api) -> Option<T>) -> T {
        let look = async {
            loop {
                let found = look(&mut self.api.lock().unwrap());
                match found {
                    Some(found) => return found,
                    None => tokio::time::sleep(POLL).await,
                }
            }
        };
        timeout(PATIENCE, look).await.expect("the API server was not asked")
    }

    async fn change(&self, kind: &str, value: &str, version: u32) {
        self.api.lock().unwrap().secret = (kind != "DELETED").then(|| (value.into(), version));
        let watch = self.until(|api| api.watch.clone()).await;
        watch.send(json!({"type": kind, "object": secret(value, version)})).unwrap();
    }
}

fn files(volume: &str, files: &[(&str, &str)]) -> (String, Vec<(String, String)>) {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    (volume.into(), files.collect())
}

// Values of secrets are base64 on the wire: "b25l" is one, "dHdv" is two.

#[tokio::test]
async fn what_a_pod_refers_to_reaches_its_guest_when_it_comes_changes_and_goes() {
    let mut scene = Scene::new().await;
    let (sender, _task) = scene.daemon("web");
    // Without a record all is delivered.
    assert_eq!(
        scene.next_of(3).await,
        [
            files("keys", &[]),
            files("labels", &[("app", "web")]),
            files("token", &[("token", "token 1")])
        ]
    );
    scene.change("ADDED", "b25l", 2).await;
    assert_eq!(scene.next().await, files("keys", &[("key", "one")]));
    scene.change("MODIFIED", "dHdv", 3).await;
    assert_eq!(scene.next().await, files("keys", &[("key", "two")]));
    sender.send_replace(known("other"));
    assert_eq!(scene.next().await, files("labels", &[("app", "other")]));
    scene.change("DELETED", "dHdv", 4).await;
    assert_eq!(scene.next().await, files("keys", &[]));
    let asked = scene.api.lock().unwrap().asked.clone();
    // One list of the one secret, and one token: nothing is asked for again.
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(
        asked.iter().any(|path| path.contains("fieldSelector=metadata.name%3Ds")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn a_daemon_that_comes_back_delivers_what_changed_meanwhile_and_no_more() {
    let mut scene = Scene::new().await;
    scene.api.lock().unwrap().secret = Some(("b25l".into(), 2));
    let first = scene.daemon("web");
    scene.next_of(3).await;
    let delivered = scene.until_recorded(|delivered| delivered.volumes.len() == 3).await;
    assert_eq!(delivered.tokens.len(), 1);
    drop(first);
    let text = std::fs::read_to_string(scene.dir.path().join("pods/u/volumes.json")).unwrap();
    assert!(
        !text.contains("one") && !text.contains("b25l") && !text.contains("token 1"),
        "{text}"
    );
    scene.api.lock().unwrap().secret = Some(("dHdv".into(), 5));
    let _second = scene.daemon("web");
    assert_eq!(scene.next().await, files("keys", &[("key", "two")]));
    let now = scene.until_recorded(|now| *now != delivered).await;
    assert_eq!(now.tokens, delivered.tokens);
    assert_eq!(scene.api.lock().unwrap().tokens, 1);
}

#[tokio::test]
async fn a_token_past_its_time_is_renewed_by_the_daemon_that_comes_back() {
    let mut scene = Scene::new().await;
    let first = scene.daemon("web");
    scene.next_of(3).await;
    let mut delivered = scene.until_recorded(|delivered| delivered.volumes.len() == 3).await;
    drop(first);
    let hour = jiff::SignedDuration::from_hours(1);
    for at in [
        &mut delivered.tokens[0].issue.at,
        delivered.volumes.get_mut("token").unwrap().tokens[0].as_mut().unwrap(),
    ] {
        *at -= hour;
    }
    scene.store().save_delivered("u", &delivered).unwrap();
    let _second = scene.daemon("web");
    assert_eq!(scene.next().await, files("token", &[("token", "token 2")]));
}

#[tokio::test]
async fn a_token_that_is_refused_is_told_once_asked_for_again_and_leaves_the_old_one() {
    let mut scene = Scene::new().await;
    scene.api.lock().unwrap().refuses_tokens = true;
    let _daemon = scene.daemon("web");
    // The others do not wait for it.
    assert_eq!(scene.next_of(2).await, [files("keys", &[]), files("labels", &[("app", "web")])]);
    let asked = |api: &mut Api| api.asked.iter().filter(|path| path.ends_with("/token")).count();
    scene.until(|api| (asked(api) >= 2).then_some(())).await;
    scene.until(|api| (!api.events.is_empty()).then_some(())).await;
    let events = scene.api.lock().unwrap().events.clone();
    assert_eq!(events.len(), 1, "{events:?}");
    assert!(
        events[0].starts_with("MountVolume.SetUp failed for volume \"token\" : failed to fetch token:") && events[0].contains("not today"),
        "{events:?}"
    );
    scene.api.lock().unwrap().refuses_tokens = false;
    assert_eq!(scene.next().await, files("token", &[("token", "token 1")]));
}

#[tokio::test]
async fn an_immutable_secret_is_read_once_and_never_watched() {
    for (immutable, watches) in [(false, 1), (true, 0)] {
        let mut scene = Scene::new().await;
        (scene.api.lock().unwrap().secret, scene.api.lock().unwrap().immutable) = (Some(("b25l".into(), 2)), immutable);
        let (sender, _task) = scene.daemon("web");
        assert_eq!(scene.next_of(3).await[0], files("keys", &[("key", "one")]));
        // Time for a watch to be begun: other things come and go.
        for label in ["a", "b", "c"] {
            sender.send_replace(known(label));
            assert_eq!(scene.next().await, files("labels", &[("app", label)]));
        }
        if !immutable {
            scene.until(|api| (api.watches > 0).then_some(())).await;
        }
        let api = scene.api.lock().unwrap();
        assert_eq!(api.watches, watches);
        assert_eq!(
            api.asked.iter().filter(|path| path.contains("/secrets")).count(),
            1,
            "{:?}",
            api.asked
        );
    }
}

#[tokio::test]
async fn a_pod_whose_first_token_is_refused_is_told_so_and_begins_when_it_is_had() {
    let scene = Scene::new().await;
    scene.api.lock().unwrap().refuses_tokens = true;
    let objects = PodObjects::new(Objects::start(scene.client.clone()));
    objects.keep(Some(&pod("web")));
    let pod = pod("web");
    let resolve = async || volumes::resolve(&pod, &Facts::default(), &objects, &[], &BTreeMap::new()).await;
    let error = resolve().await.unwrap_err();
    assert!(
        error.starts_with("MountVolume.SetUp failed for volume \"token\" : failed to fetch token:") && error.contains("not today"),
        "{error}"
    );
    scene.api.lock().unwrap().refuses_tokens = false;
    let (specs, delivered, tokens) = resolve().await.unwrap();
    assert_eq!((specs.len(), delivered.volumes.len(), tokens.len()), (3, 3, 1));
}
