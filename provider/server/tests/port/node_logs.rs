//! The host's own logs.

use std::os::unix::fs::symlink;

use hyper::{Method, StatusCode};

use crate::fake::Fake;
use crate::support::{AUTHORITY, Port, config};

#[tokio::test]
async fn logs_of_the_host_are_listed_and_read_and_nothing_outside_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let (outside, logs) = (dir.path().join("secret"), dir.path().join("log"));
    std::fs::create_dir_all(logs.join("pods/one")).expect("made");
    std::fs::write(&outside, "secret").expect("written");
    std::fs::write(logs.join("syslog"), "a line\n").expect("written");
    std::fs::write(logs.join("a <b>&c"), "odd").expect("written");
    std::fs::write(logs.join("pods/one/0.log"), "in the pod\n").expect("written");
    symlink(&outside, logs.join("absolute")).expect("linked");
    symlink("../secret", logs.join("relative")).expect("linked");
    symlink("pods/one/0.log", logs.join("within")).expect("linked");
    rustix::fs::mkfifoat(rustix::fs::CWD, logs.join("fifo"), rustix::fs::Mode::RUSR).expect("made");
    let port = Port::serve_config(
        Fake::new(),
        kvmlet_server::ServerConfig {
            node_logs: Some(logs),
            ..config()
        },
    )
    .await;

    let (status, text) = port.get("/logs/").await;
    assert_eq!(status, 200);
    for line in [
        "<a href=\"syslog\">syslog</a>",
        "<a href=\"pods/\">pods/</a>",
        "<a href=\"a%20%3Cb%3E%26c\">a &lt;b&gt;&amp;c</a>",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert_eq!(port.get("/logs/syslog").await, (200, "a line\n".into()));
    assert_eq!(port.get("/logs/a%20%3Cb%3E%26c").await, (200, "odd".into()));
    assert_eq!(port.get("/logs/pods/one/0.log").await, (200, "in the pod\n".into()));
    assert_eq!(port.get("/logs/within").await, (200, "in the pod\n".into()));
    assert_eq!(port.get("/logs/pods").await.0, 308);
    for outside in [
        "/logs/absolute",
        "/logs/relative",
        "/logs/../secret",
        "/logs/%2e%2e/secret",
        "/logs/fifo",
        "/logs/nothing",
    ] {
        let (status, text) = port.get(outside).await;
        assert!(status == 404 && !text.contains("secret"), "{outside}: {status} {text}");
    }
    assert_eq!(port.get("/logs/%zz").await.0, 400);
    let (status, text) = port.ask(Some(AUTHORITY.client("nobody")), Method::GET, "/logs/syslog").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    port.stop().await;
}

#[tokio::test]
async fn logs_of_the_host_that_are_not_to_be_read_are_said_to_be_disabled() {
    let port = Port::serve(Fake::new()).await;
    assert_eq!(port.get("/logs/").await, (405, "logs endpoint is disabled.\n".into()));
    port.stop().await;
}
