//! `exec` over WebSocket, as clients that are passed through ask for it.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::fake::Fake;
use crate::support::{AUTHORITY, Port, reach, soon};

pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

pub(crate) async fn connect(port: &Port, path: &str, protocol: &str) -> Result<Socket, Error> {
    let stream = port.tls(Some(AUTHORITY.client("admin"))).await.expect("handshake");
    let mut request = format!("wss://node-1{path}").into_client_request().expect("valid request");
    if !protocol.is_empty() {
        request
            .headers_mut()
            .insert("sec-websocket-protocol", protocol.parse().expect("text"));
    }
    let (socket, response) = soon("the upgrade", tokio_tungstenite::client_async(request, stream)).await?;
    let chosen = response
        .headers()
        .get("sec-websocket-protocol")
        .map_or("", |name| name.to_str().expect("text"));
    assert_eq!(chosen, protocol);
    Ok(socket)
}

/// An upgrade that is refused with this status.
pub(crate) async fn refused(port: &Port, path: &str, protocol: &str, status: u16) {
    match connect(port, path, protocol).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), status, "{path}"),
        other => panic!("{path}: {:?} instead of a refusal", other.map(|_| "a session")),
    }
}

/// All messages by channel until the close, decoded from base64 by `channel` if they are text.
pub(crate) async fn messages(socket: &mut Socket) -> Vec<(u8, Vec<u8>)> {
    let mut messages = Vec::new();
    loop {
        match soon("a message", socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => messages.push((bytes[0], bytes[1..].to_vec())),
            Some(Ok(Message::Text(text))) => messages.push((text.as_bytes()[0], text.as_bytes()[1..].to_vec())),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return messages,
            other => panic!("{other:?} before the close"),
        }
    }
}

#[tokio::test]
async fn binary_channels_carry_output_and_the_status_of_version_4() {
    let port = Port::serve(Fake::new()).await;
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let path = "/exec/ns/p/c?command=echo&command=hello&output=1&error=1";
        let mut socket = connect(&port, path, protocol).await.expect("upgraded");
        let messages = messages(&mut socket).await;
        assert_eq!(messages[0], (1, Vec::new()), "first an empty message");
        assert_eq!(messages[1], (1, b"hello".to_vec()));
        assert_eq!(messages[2], (3, br#"{"metadata":{},"status":"Success"}"#.to_vec()));
        assert_eq!(messages.len(), 3);
    }
    port.stop().await;
}

#[tokio::test]
async fn base64_channels_are_text_both_ways() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/terminal?command=size&input=1&output=1&tty=1";
    let mut socket = connect(&port, path, "base64.channel.k8s.io").await.expect("upgraded");
    // {"Width":1,"Height":2}
    socket
        .send(Message::Text("4eyJXaWR0aCI6MSwiSGVpZ2h0IjoyfQ==".into()))
        .await
        .expect("sent");
    let messages = messages(&mut socket).await;
    assert_eq!(messages[0], (b'1', Vec::new()));
    let size = "U29tZShUZXJtaW5hbFNpemUgeyB3aWR0aDogMSwgaGVpZ2h0OiAyIH0p";
    assert_eq!(messages[1], (b'1', size.as_bytes().to_vec()));
    assert_eq!(messages.len(), 2, "a success is not told before version 4");
    port.stop().await;
}

#[tokio::test]
async fn without_a_protocol_channels_are_binary_and_failures_are_text() {
    let port = Port::serve(Fake::new()).await;
    let mut socket = connect(&port, "/exec/ns/p/c?command=exit&command=4&error=1", "")
        .await
        .expect("upgraded");
    let messages = messages(&mut socket).await;
    assert_eq!(messages[0], (2, Vec::new()), "the lowest channel that is written to");
    assert!(messages[1].0 == 3 && messages[1].1.ends_with(b"exit code 4"));
    port.stop().await;
}

#[tokio::test]
async fn version_5_ends_the_input_of_cat() {
    let port = Port::serve(Fake::new()).await;
    let path = "/exec/ns/p/c?command=cat&input=1&output=1";
    let mut socket = connect(&port, path, "v5.channel.k8s.io").await.expect("upgraded");
    socket.send(Message::binary(b"\x00some ".to_vec())).await.expect("sent");
    socket.send(Message::binary(b"\x00input".to_vec())).await.expect("sent");
    socket.send(Message::binary(vec![255, 0])).await.expect("sent");
    let messages = messages(&mut socket).await;
    let stdout: Vec<u8> = messages
        .iter()
        .filter(|(channel, _)| *channel == 1)
        .flat_map(|(_, bytes)| bytes.clone())
        .collect();
    assert_eq!(stdout, b"some input");
    assert!(messages.last().is_some_and(|(channel, _)| *channel == 3));
    port.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_takes_its_command_along() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    for politely in [true, false] {
        let path = "/exec/ns/p/c?command=hang&input=1&output=1";
        let mut socket = connect(&port, path, "v4.channel.k8s.io").await.expect("upgraded");
        reach(&mut sessions, 1, "the session").await;
        if politely {
            socket.close(None).await.expect("closed");
        }
        drop(socket);
        reach(&mut sessions, 0, "the end of the session").await;
    }
    port.stop().await;
}

#[tokio::test]
async fn oversized_messages_end_the_command_and_odd_ones_are_forgotten() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let mut socket = connect(&port, "/exec/ns/p/c?command=cat&input=1&output=1", "v4.channel.k8s.io")
        .await
        .expect("upgraded");
    reach(&mut sessions, 1, "the session").await;
    for odd in [vec![], vec![1, 2, 3], vec![77], vec![255, 0]] {
        socket.send(Message::binary(odd)).await.expect("sent");
    }
    socket.send(Message::binary(b"\x00on".to_vec())).await.expect("sent");
    let mut seen = Vec::new();
    while seen != b"on" {
        let Some(Ok(Message::Binary(bytes))) = soon("output", socket.next()).await else {
            panic!("no output")
        };
        seen.extend_from_slice(&bytes[1..]);
    }
    // May fail: the server hangs up while it is sent.
    let _ = socket.send(Message::binary(vec![0; 5 << 20])).await;
    reach(&mut sessions, 0, "the end of the session").await;
    port.stop().await;
}

#[tokio::test]
async fn refusals_are_http_statuses() {
    let port = Port::serve(Fake::new()).await;
    for (path, protocol, expected) in [
        ("/exec/ns/p/d?command=a&output=1", "v4.channel.k8s.io", 404),
        ("/exec/ns/p/ended?command=a&output=1", "v4.channel.k8s.io", 400),
        ("/exec/ns/p/c?command=a&output=1", "chat", 403),
    ] {
        refused(&port, path, protocol, expected).await;
    }
    port.stop().await;
}
