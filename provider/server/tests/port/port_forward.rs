//! Forwarded ports over SPDY/3.1, as the API server and `kubectl port-forward` ask for them. Port 7 of the fake echoes, 13
//! greets and ends its direction, 19 floods, all others are closed.

use bytes::Bytes;
use kvmlet_server::streaming::spdy::Headers;
use kvmlet_server::streaming::spdy::frame::Frame;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::exec_spdy::{Spdy, refused, slow_reader, upgrade};
use crate::fake::Fake;
use crate::spdy_connection::Client;
use crate::support::{Port, reach};

const VERSION: &[&str] = &["portforward.k8s.io"];

async fn forward(port: &Port) -> Spdy {
    let (client, version) = upgrade(port, "/portForward/ns/p", VERSION).await.expect("upgraded");
    assert_eq!(version, "portforward.k8s.io");
    client
}

/// Opens a stream of connection `request`.
pub(crate) async fn open<IO: AsyncRead + AsyncWrite>(client: &mut Client<IO>, stream: u32, kind: &str, port: &str, request: &str) {
    let pairs = [("streamType", kind), ("port", port), ("requestID", request)];
    let headers: Headers = pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    let frame = Frame::SynStream {
        stream,
        fin: false,
        unidirectional: false,
        headers,
    };
    client.send(frame).await.expect("written");
}

/// Opens the two streams of a connection, numbered `stream` and `stream + 2`, as kubectl does: it ends its side of the first.
pub(crate) async fn connect<IO: AsyncRead + AsyncWrite>(client: &mut Client<IO>, stream: u32, port: &str, request: &str) {
    open(client, stream, "error", port, request).await;
    client.data(stream, b"", true).await.expect("written");
    open(client, stream + 2, "data", port, request).await;
    for stream in [stream, stream + 2] {
        assert!(matches!(client.next().await, Some(Frame::SynReply { stream: replied, .. }) if replied == stream));
    }
}

fn ended(stream: u32) -> Option<Frame> {
    Some(Frame::Data {
        stream,
        fin: true,
        payload: Bytes::new(),
    })
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let mut client = forward(&port).await;
    connect(&mut client, 1, "7", "0").await;
    client.data(3, b"there and back", false).await.expect("written");
    let Some(Frame::Data { stream: 3, payload, .. }) = client.next().await else {
        panic!("no echo")
    };
    assert_eq!(payload, "there and back");
    client.data(3, b"", true).await.expect("written");
    assert_eq!(client.next().await, ended(3));
    assert_eq!(client.next().await, ended(1), "nothing went wrong");

    connect(&mut client, 5, "13", "1").await;
    assert!(matches!(client.next().await, Some(Frame::Data { stream: 7, payload, .. }) if payload == "hello"));
    assert_eq!((client.next().await, client.next().await), (ended(7), ended(5)));
    client.data(7, b"still heard", false).await.expect("written");
    assert_eq!(*sessions.borrow_and_update(), 1, "the pod still listens");
    client.data(7, b"", true).await.expect("written");
    reach(&mut sessions, 0, "the end of the connection").await;
    port.stop().await;
}

#[tokio::test]
async fn a_closed_port_says_so_and_others_go_on() {
    let port = Port::serve(Fake::new()).await;
    let mut client = forward(&port).await;
    connect(&mut client, 1, "7", "0").await;
    connect(&mut client, 5, "81", "1").await;
    let Some(Frame::Data { stream: 5, payload, .. }) = client.next().await else {
        panic!("no reason")
    };
    assert_eq!(payload, "error forwarding port 81 to pod p_ns, uid : connection refused");
    assert_eq!(client.next().await, ended(5));
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 7, status: 5 }));
    client.data(3, b"here", false).await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::Data { stream: 3, payload, .. }) if payload == "here"));
    port.stop().await;
}

#[tokio::test]
async fn many_connections_at_once_keep_their_bytes_apart() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let mut client = forward(&port).await;
    for number in 0..100_u32 {
        // Clients of old name no connection.
        let request = if number % 2 == 0 { number.to_string() } else { String::new() };
        connect(&mut client, 4 * number + 1, "7", &request).await;
    }
    reach(&mut sessions, 100, "all connections").await;
    for number in 0..100_u32 {
        client
            .data(4 * number + 3, format!("I am {number}").as_bytes(), true)
            .await
            .expect("written");
    }
    let mut heard = 0;
    while heard < 100 {
        match client.next().await {
            Some(Frame::Data { stream, payload, .. }) if !payload.is_empty() => {
                assert_eq!(payload, format!("I am {}", (stream - 3) / 4));
                heard += 1;
            }
            Some(Frame::Data { .. }) => {}
            other => panic!("{other:?} instead of data"),
        }
    }
    reach(&mut sessions, 0, "the end of all connections").await;
    port.stop().await;
}

#[tokio::test]
async fn more_connections_than_a_client_may_have_are_refused() {
    let port = Port::serve(Fake::new()).await;
    let mut client = forward(&port).await;
    for number in 0..128_u32 {
        connect(&mut client, 4 * number + 1, "7", &number.to_string()).await;
    }
    // kubectl ends its side of each error stream, but the pod's stays open.
    open(&mut client, 1001, "error", "7", "x").await;
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 1001, status: 3 }));
    client.data(3, b"here", false).await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::Data { stream: 3, .. })));
    port.stop().await;
}

#[tokio::test]
async fn unfit_streams_are_refused_and_the_others_count() {
    let port = Port::serve(Fake::new()).await;
    let mut client = forward(&port).await;
    for (stream, kind, number) in [
        (1, "data", ""),
        (3, "data", "0"),
        (5, "data", "70000"),
        (7, "stdin", "7"),
        (9, "", "7"),
    ] {
        open(&mut client, stream, kind, number, "0").await;
        assert_eq!(
            client.next().await,
            Some(Frame::RstStream { stream, status: 3 }),
            "{kind:?} {number:?}"
        );
    }
    open(&mut client, 11, "error", "7", "0").await;
    assert!(matches!(client.next().await, Some(Frame::SynReply { stream: 11, .. })));
    open(&mut client, 13, "error", "7", "0").await;
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 13, status: 3 }));
    open(&mut client, 15, "data", "7", "0").await;
    assert!(matches!(client.next().await, Some(Frame::SynReply { stream: 15, .. })));
    client.data(15, b"here", false).await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::Data { stream: 15, .. })));
    port.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_pod_and_one_that_goes_ends_it() {
    let fake = Fake::new();
    let (flooded, mut sessions) = (fake.flooded.clone(), fake.sessions.subscribe());
    let port = Port::serve(fake).await;
    let mut client = forward(&port).await;
    connect(&mut client, 1, "19", "0").await;
    slow_reader(&mut client, &flooded).await;
    drop(client);
    reach(&mut sessions, 0, "the end of the connection").await;
    port.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_reset_ends_its_connection_alone() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let mut client = forward(&port).await;
    connect(&mut client, 1, "7", "0").await;
    connect(&mut client, 5, "7", "1").await;
    reach(&mut sessions, 2, "both connections").await;
    client.send(Frame::RstStream { stream: 3, status: 5 }).await.expect("written");
    assert_eq!(client.next().await, ended(1), "kubectl waits for this");
    reach(&mut sessions, 1, "the end of one").await;
    client.data(7, b"here", false).await.expect("written");
    assert!(matches!(client.next().await, Some(Frame::Data { stream: 7, .. })));
    port.stop().await;
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused_before_the_upgrade() {
    let port = Port::serve(Fake::new()).await;
    let table: [(&str, &[&str], u16, &str); 4] = [
        ("/portForward/ns/other", VERSION, 404, "pod does not exist"),
        ("/portForward/ns/p/uid-2", VERSION, 404, "pod does not exist"),
        ("/portForward/ns/pending", VERSION, 400, r#"pod "pending" is not running"#),
        ("/portForward/ns/p", &["v4.channel.k8s.io"], 403, "unable to negotiate protocol"),
    ];
    for (path, versions, status, words) in table {
        refused(&port, path, versions, (status, words)).await;
    }
    assert_eq!(port.get("/portForward/ns/p").await.0, 400, "no upgrade");
    port.stop().await;
}
