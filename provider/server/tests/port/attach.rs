//! `attach` over SPDY and WebSocket: the same streams as a command's, of a container that runs already.

use futures_util::SinkExt as _;
use tokio_tungstenite::tungstenite::Message;

use crate::exec_spdy::{open, outcome, refused, upgrade};
use crate::exec_websocket::{connect, messages};
use crate::fake::Fake;
use crate::support::Port;

#[tokio::test]
async fn a_containers_streams_are_a_clients() {
    let port = Port::serve(Fake::new()).await;
    for path in ["/attach/ns/p/c?input=1&output=1", "/attach/ns/p/uid-1/c?input=1&output=1"] {
        let (mut client, _) = upgrade(&port, path, &["v4.channel.k8s.io"]).await.expect("upgraded");
        let kinds = ["error", "stdin", "stdout"];
        open(&mut client, &kinds).await;
        client.data(3, b"said and heard", true).await.expect("written");
        let outcome = outcome(&mut client, &kinds).await;
        assert_eq!(outcome.stdout, b"said and heard");
        assert!(String::from_utf8_lossy(&outcome.error).contains("Success"));
    }
    let mut socket = connect(&port, "/attach/ns/p/c?input=1&output=1", "v5.channel.k8s.io")
        .await
        .expect("upgraded");
    socket.send(Message::binary(b"\x00heard".to_vec())).await.expect("sent");
    socket.send(Message::binary(vec![255, 0])).await.expect("sent");
    let messages = messages(&mut socket).await;
    assert!(messages.contains(&(1, b"heard".to_vec())), "{messages:?}");
    port.stop().await;
}

#[tokio::test]
async fn what_cannot_be_attached_to_is_refused_before_the_upgrade() {
    let port = Port::serve(Fake::new()).await;
    for (path, status, words) in [
        ("/attach/ns/other/c?output=1", 404, "pod does not exist"),
        ("/attach/ns/p/uid-2/c?output=1", 404, "pod does not exist"),
        ("/attach/ns/p/d?output=1", 404, r#"container not found ("d")"#),
        ("/attach/ns/p/c", 400, "you must specify at least 1 of stdin, stdout, stderr"),
    ] {
        refused(&port, path, &["v4.channel.k8s.io"], (status, words)).await;
    }
    port.stop().await;
}
