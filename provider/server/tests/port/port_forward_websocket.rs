//! Forwarded ports over WebSocket: SPDY in a tunnel, as kubectl speaks it, and channels.

use futures_util::{SinkExt as _, StreamExt as _};
use kvmlet_server::streaming::spdy::frame::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::Message;

use crate::exec_websocket::{Socket, connect, messages, refused};
use crate::fake::Fake;
use crate::port_forward;
use crate::spdy_connection::Client;
use crate::support::{Port, reach, soon};

/// The client's end of a tunnel: bytes to messages and back, cut as it comes.
fn dig(socket: Socket) -> DuplexStream {
    let (near, far) = duplex(1 << 16);
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = [0; 1000];
        loop {
            match read.read(&mut buffer).await {
                Ok(n) if n > 0 => sink.send(Message::binary(buffer[..n].to_vec())).await.expect("sent"),
                _ => return sink.close().await,
            }
        }
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message
                && write.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
    });
    near
}

#[tokio::test]
async fn spdy_goes_through_a_tunnel() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    let socket = connect(&port, "/portForward/ns/p", "SPDY/3.1+portforward.k8s.io")
        .await
        .expect("upgraded");
    let mut client = Client::new(dig(socket));
    port_forward::connect(&mut client, 1, "7", "0").await;
    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let mut seen = Vec::new();
    for piece in sent.chunks(20_000) {
        client.data(3, piece, false).await.expect("written");
        let so_far = seen.len() + piece.len();
        while seen.len() < so_far {
            match client.next().await {
                Some(Frame::Data { stream: 3, payload, .. }) => seen.extend_from_slice(&payload),
                other => panic!("{other:?} instead of an echo"),
            }
        }
    }
    assert!(seen == sent, "bytes changed on the way");
    drop(client);
    reach(&mut sessions, 0, "the end of the connection").await;
    port.stop().await;
}

#[tokio::test]
async fn channels_name_their_port_first_and_then_carry_bytes() {
    let port = Port::serve(Fake::new()).await;
    let mut socket = connect(&port, "/portForward/ns/p?port=13,258", "v4.channel.k8s.io")
        .await
        .expect("upgraded");
    let mut messages = messages(&mut socket).await;
    // Between ports there is no order.
    messages.sort_by_key(|(channel, _)| *channel);
    let words = b"error forwarding port 258 to pod p_ns, uid : connection refused";
    assert_eq!(
        messages,
        [
            (0, vec![13, 0]),
            (0, b"hello".to_vec()),
            (1, vec![13, 0]),
            (2, vec![2, 1]),
            (3, vec![2, 1]),
            (3, words.to_vec()),
        ]
    );
    let mut socket = connect(&port, "/portForward/ns/p?port=7", "").await.expect("upgraded");
    socket.send(Message::binary(b"\x00echo".to_vec())).await.expect("sent");
    loop {
        match soon("an echo", socket.next()).await {
            Some(Ok(Message::Binary(bytes))) if bytes == b"\x00echo"[..] => break,
            Some(Ok(Message::Binary(_))) => {}
            other => panic!("{other:?} instead of an echo"),
        }
    }
    port.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_ends_its_connections() {
    let fake = Fake::new();
    let mut sessions = fake.sessions.subscribe();
    let port = Port::serve(fake).await;
    for (path, protocol) in [("/portForward/ns/p?port=7&port=19", "v4.channel.k8s.io")] {
        let socket = connect(&port, path, protocol).await.expect("upgraded");
        reach(&mut sessions, 2, "the connections").await;
        drop(socket);
        reach(&mut sessions, 0, "their end").await;
    }
    port.stop().await;
}

#[tokio::test]
async fn refusals_are_http_statuses() {
    let port = Port::serve(Fake::new()).await;
    for (path, protocol, expected) in [
        ("/portForward/ns/other", "SPDY/3.1+portforward.k8s.io", 404),
        ("/portForward/ns/p", "v4.channel.k8s.io", 400),
        ("/portForward/ns/p?port=x", "v4.channel.k8s.io", 400),
        ("/portForward/ns/p?port=7", "v5.channel.k8s.io", 403),
    ] {
        refused(&port, path, protocol, expected).await;
    }
    port.stop().await;
}
