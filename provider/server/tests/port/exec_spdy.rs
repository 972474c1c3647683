//! `exec` over SPDY/3.1, as the API server asks for it.

use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::Upgraded;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use kvmlet_server::streaming::spdy::frame::Frame;

use crate::fake::Fake;
use crate::spdy_connection::Client;
use crate::support::{AUTHORITY, Port, reach, soon};

pub(crate) type Spdy = Client<TokioIo<Upgraded>>;

/// Asks for an upgrade; the client, or the status and text of the refusal.
pub(crate) async fn upgrade(port: &Port, path: &str, versions: &[&str]) -> Result<(Spdy, String), (u16, String)> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "node-1")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1");
    for version in versions {
        request = request.header("X-Stream-Protocol-Version", *version);
    }
    let request = request.body(Empty::new()).expect("valid request");
    let response = port.request(Some(AUTHORITY.client("admin")), request).await.expect("an answer");
    let status = response.status().as_u16();
    if status != 101 {
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        return Err((status, String::from_utf8_lossy(&body).into_owned()));
    }
    let version = response.headers()["x-stream-protocol-version"].to_str().expect("text").to_owned();
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    let io = soon("the upgrade", hyper::upgrade::on(response)).await.expect("upgraded");
    Ok((Client::new(TokioIo::new(io)), version))
}

/// An upgrade that is refused with this status and these words.
pub(crate) async fn refused(port: &Port, path: &str, versions: &[&str], (status, words): (u16, &str)) {
    let Err(refusal) = upgrade(port, path, versions).await else {
        panic!("{path} was not refused")
    };
    assert_eq!(refusal.0, status, "{path}");
    assert!(refusal.1.contains(words), "{path}: {}", refusal.1);
}

/// A client that reads nothing of a flood holds it up, and sets it going again by reading.
pub(crate) async fn slow_reader(client: &mut Spdy, flooded: &AtomicU64) {
    let before = settled(flooded).await;
    assert!(before < 16 << 20, "{before} bytes were taken for a client that reads nothing");
    let mut read = 0;
    while read < before {
        if let Some(Frame::Data { payload, .. }) = client.next().await {
            read += payload.len() as u64;
        }
    }
    assert!(flooded.load(Ordering::Relaxed) > before, "goes on when the client reads");
}

/// The count once it has stood still for a while.
async fn settled(count: &AtomicU64) -> u64 {
    soon("a standstill", async {
        let mut last = 0;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let now = count.load(Ordering::Relaxed);
            if now == last && now > 0 {
                return now;
            }
            last = now;
        }
    })
    .await
}

/// What the streams of a finished command held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) error: Vec<u8>,
}

/// Opens the streams named by `kinds`, numbered 1, 3, 5, …
pub(crate) async fn open(client: &mut Spdy, kinds: &[&str]) {
    for (stream, kind) in (1..).step_by(2).zip(kinds) {
        client.open(stream, kind).await.expect("written");
    }
    for _ in kinds {
        assert!(matches!(client.next().await, Some(Frame::SynReply { .. })));
    }
}

/// Reads until GOAWAY.
pub(crate) async fn outcome(client: &mut Spdy, kinds: &[&str]) -> Outcome {
    let mut outcome = Outcome::default();
    loop {
        match client.next().await {
            Some(Frame::Data { stream, payload, .. }) => {
                let bytes = match kinds[(stream as usize - 1) / 2] {
                    "stdout" => &mut outcome.stdout,
                    "stderr" => &mut outcome.stderr,
                    _ => &mut outcome.error,
                };
                bytes.extend_from_slice(&payload);
            }
            Some(Frame::GoAway { status: 0, .. }) => return outcome,
            Some(Frame::RstStream { .. } | Frame::Ping { .. }) => {}
            other => panic!("{other:?} before the end"),
        }
    }
}

const OUTPUTS: [&str; 3] = ["error", "stdout", "stderr"];

async fn run(port: &Port, query: &str, version: &str) -> Outcome {
    let path = format!("/exec/ns/p/c?{query}&output=1&error=1");
    let (mut client, chosen) = upgrade(port, &path, &[version]).await.expect("upgraded");
    assert_eq!(chosen, version);
    open(&mut client, &OUTPUTS).await;
    outcome(&mut client, &OUTPUTS).await
}

#[tokio::test]
async fn output_and_exit_codes_arrive_in_version_4() {
    let port = Port::serve(Fake::new()).await;
    let v4 = "v4.channel.k8s.io";
    let status = |outcome: &Outcome| serde_json::from_slice::<serde_json::Value>(&outcome.error).expect("JSON");
    let echo = run(&port, "command=echo&command=hello", v4).await;
    assert_eq!((&echo.stdout[..], &status(&echo)["status"]), (&b"hello"[..], &"Success".into()));
    let complain = run(&port, "command=complain&command=oh", v4).await;
    assert_eq!(
        (&complain.stderr[..], &status(&complain)["reason"]),
        (&b"oh"[..], &"NonZeroExitCode".into())
    );
    let exit = run(&port, "command=exit&command=42", v4).await;
    assert_eq!(status(&exit)["details"]["causes"][0]["message"], "42");
    let signalled = run(&port, "command=signalled", v4).await;
    assert_eq!(status(&signalled)["details"]["causes"][0]["message"], "143");
    let missing = run(&port, "command=missing", v4).await;
    assert_eq!(status(&missing)["reason"], "InternalError");
    port.stop().await;
}

#[tokio::test]
async fn older_versions_tell_failures_as_text() {
    let port = Port::serve(Fake::new()).await;
    for version in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        assert_eq!(run(&port, "command=exit&command=0", version).await, Outcome::default());
        let failed = run(&port, "command=exit&command=3", version).await;
        assert!(failed.error.ends_with(b"exit code 3"), "{version}");
    }
    port.stop().await;
}

#[tokio::test]
async fn megabytes_go_through_cat_unchanged_and_its_input_ends() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/uid-1/c?command=cat&input=1&output=1";
    let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
    let kinds = ["error", "stdin", "stdout"];
    open(&mut client, &kinds).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    // In turns, as this client has one task: what it does not read, the server does not take.
    let mut seen = Vec::new();
    let mut error = Vec::new();
    for (index, piece) in sent.chunks(50_000).enumerate() {
        client.data(3, piece, (index + 1) * 50_000 == sent.len()).await.expect("written");
        while seen.len() < (index + 1) * 50_000 {
            match client.next().await {
                Some(Frame::Data { stream: 5, payload, .. }) => seen.extend_from_slice(&payload),
                other => panic!("{other:?} instead of output"),
            }
        }
    }
    assert!(seen == sent, "bytes changed on the way");
    let rest = outcome(&mut client, &kinds).await;
    assert!(rest.stdout.is_empty());
    error.extend_from_slice(&rest.error);
    assert!(String::from_utf8_lossy(&error).contains("Success"));
    port.stop().await;
}

#[tokio::test]
async fn a_terminals_size_arrives_and_its_error_output_is_not_asked_for() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/terminal?command=size&input=1&output=1&error=1&tty=1";
    let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
    let kinds = ["error", "stdin", "stdout", "resize"];
    open(&mut client, &kinds).await;
    client.data(7, br#"{"Width":132,"Height":43}"#, false).await.expect("written");
    let outcome = outcome(&mut client, &kinds).await;
    assert_eq!(
        String::from_utf8_lossy(&outcome.stdout),
        "Some(TerminalSize { width: 132, height: 43 })"
    );
    port.stop().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_before_the_upgrade() {
    let port = Port::serve(Fake::new()).await;
    let v4: &[&str] = &["v4.channel.k8s.io"];
    let table: [(&str, &[&str], u16, &str); 8] = [
        ("/exec/ns/other/c?command=a&output=1", v4, 404, "pod does not exist"),
        ("/exec/ns/p/uid-2/c?command=a&output=1", v4, 404, "pod does not exist"),
        ("/exec/ns/p/d?command=a&output=1", v4, 404, r#"container not found ("d")"#),
        (
            "/exec/ns/p/ended?command=a&output=1",
            v4,
            400,
            r#"container "ended" in pod "p" is not running"#,
        ),
        (
            "/exec/ns/p/c?command=a",
            v4,
            400,
            "you must specify at least 1 of stdin, stdout, stderr",
        ),
        ("/exec/ns/p/c?output=1", v4, 400, "you must specify a command"),
        (
            "/exec/ns/p/c?command=a&output=1",
            &["v9.channel.k8s.io"],
            403,
            "unable to negotiate protocol",
        ),
        ("/exec/ns/p", v4, 404, "not found"),
    ];
    for (path, versions, status, words) in table {
        refused(&port, path, versions, (status, words)).await;
    }
    assert_eq!(port.get("/exec/ns/p/c?command=a&output=1").await.0, 400, "no upgrade");
    port.stop().await;
}

#[tokio::test]
async fn unknown_and_repeated_streams_are_refused_and_the_others_count() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/c?command=echo&command=hi&output=1";
    let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
    client.open(1, "bogus").await.expect("written");
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 1, status: 3 }));
    client.open(3, "error").await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::SynReply { stream: 3, .. })));
    client.open(5, "error").await.expect("written");
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 5, status: 3 }));
    client.open(7, "stdout").await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::SynReply { stream: 7, .. })));
    let outcome = outcome(&mut client, &["", "error", "", "stdout"]).await;
    assert_eq!(outcome.stdout, b"hi");
    port.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_takes_its_command_along() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    for command in ["hang", "flood", "cat"] {
        let path = format!("/exec/ns/p/c?command={command}&input=1&output=1&error=1");
        let (mut client, _) = upgrade(&port, &path, &["v4.channel.k8s.io"]).await.expect("upgraded");
        open(&mut client, &["error", "stdin", "stdout", "stderr"]).await;
        reach(&mut sessions, 1, "the session").await;
        drop(client);
        reach(&mut sessions, 0, "the end of the session").await;
    }
    port.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_command() {
    let fake = Fake::new();
    let flooded = fake.flooded.clone();
    let port = Port::serve(fake).await;
    let path = "/exec/ns/p/c?command=flood&output=1";
    let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
    open(&mut client, &["error", "stdout"]).await;
    slow_reader(&mut client, &flooded).await;
    drop(client);
    port.stop().await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_commands() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let (mut client, _) = upgrade(&port, "/exec/ns/p/c?command=hang&output=1", &["v4.channel.k8s.io"])
        .await
        .expect("upgraded");
    open(&mut client, &["error", "stdout"]).await;
    reach(&mut sessions, 1, "the session").await;
    port.stop().await;
    reach(&mut sessions, 0, "the end of the session").await;
    assert_eq!(client.next().await, None);
}

#[tokio::test]
async fn a_client_that_gives_up_one_output_still_learns_the_exit() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/c?command=flood&output=1";
    let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
    let kinds = ["error", "stdout"];
    open(&mut client, &kinds).await;
    client.send(Frame::RstStream { stream: 3, status: 5 }).await.expect("written");
    let outcome = outcome(&mut client, &kinds).await;
    assert!(
        String::from_utf8_lossy(&outcome.error).contains(r#""message":"141""#),
        "the command's pipe was closed"
    );
    port.stop().await;
}
