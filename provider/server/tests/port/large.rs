//! More than a gigabyte through one session, each way: at no time is more under way than buffers of a fixed size hold.

use std::sync::atomic::Ordering;

use futures_util::{SinkExt as _, StreamExt as _};
use kvmlet_server::streaming::spdy::frame::Frame;
use tokio_tungstenite::tungstenite::Message;

use crate::exec_spdy::{open, upgrade};
use crate::exec_websocket::connect;
use crate::fake::Fake;
use crate::support::{Port, soon};

/// What goes through, bytes.
const ALL: u64 = 1_200_000_000;
/// What the port's own buffers and its client's may hold, bytes.
const OWN: u64 = 6 << 20;
/// One message.
const PIECE: usize = 32 << 10;

const FLOOD: &str = "/exec/ns/p/c?command=flood&output=1";
const SINK: &str = "/exec/ns/p/c?command=sink&input=1";

/// What may be under way between the command and its client: own buffers, and the kernel's of a connection to loopback, which it lets grow as far as
/// it was told (tcp(7); a receiver's up to 6 MiB or, by newer kernels, 32 MiB).
fn most() -> u64 {
    let largest = |name: &str| -> u64 {
        let sizes = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).expect("the kernel says it");
        sizes
            .split_ascii_whitespace()
            .next_back()
            .expect("three sizes")
            .parse()
            .expect("a number")
    };
    OWN + largest("tcp_rmem") + largest("tcp_wmem")
}

/// How far one end may be ahead of the other.
fn between(ahead: u64, behind: u64, most: u64) {
    let held = ahead.saturating_sub(behind);
    assert!(held <= most, "{held} bytes are under way, and buffers hold {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spdy_holds_no_more_of_a_gigabyte_than_its_buffers() {
    let most = most();
    let fake = Fake::new();
    let flooded = fake.flooded.clone();
    let port = Port::serve(fake).await;
    let (mut client, _) = upgrade(&port, FLOOD, &["v4.channel.k8s.io"]).await.expect("upgraded");
    open(&mut client, &["error", "stdout"]).await;
    let mut read = 0;
    while read < ALL {
        match client.next().await {
            Some(Frame::Data { payload, .. }) => read += payload.len() as u64,
            Some(_) => {}
            None => panic!("it ends after {read} bytes"),
        }
        between(flooded.load(Ordering::Relaxed), read, most);
    }
    drop(client);

    let fake = Fake::new();
    let swallowed = fake.flooded.clone();
    let other = Port::serve(fake).await;
    let (mut client, _) = upgrade(&other, SINK, &["v4.channel.k8s.io"]).await.expect("upgraded");
    open(&mut client, &["error", "stdin"]).await;
    let (piece, mut sent) = (vec![7; PIECE], 0);
    while sent < ALL {
        soon("a piece", client.data(3, &piece, false)).await.expect("taken");
        sent += PIECE as u64;
        between(sent, swallowed.load(Ordering::Relaxed), most);
    }
    client.data(3, b"", true).await.expect("taken");
    while client.next().await.is_some_and(|frame| !matches!(frame, Frame::GoAway { .. })) {}
    assert_eq!(swallowed.load(Ordering::Relaxed), sent, "all of it has arrived");
    port.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_holds_no_more_of_a_gigabyte_than_its_buffers() {
    let most = most();
    let fake = Fake::new();
    let flooded = fake.flooded.clone();
    let port = Port::serve(fake).await;
    let mut socket = connect(&port, FLOOD, "v5.channel.k8s.io").await.expect("upgraded");
    let mut read = 0;
    while read < ALL {
        match soon("a message", socket.next()).await {
            Some(Ok(Message::Binary(bytes))) => read += bytes.len() as u64 - 1,
            Some(Ok(_)) => {}
            other => panic!("{other:?} after {read} bytes"),
        }
        between(flooded.load(Ordering::Relaxed), read, most);
    }
    drop(socket);

    let fake = Fake::new();
    let swallowed = fake.flooded.clone();
    let other = Port::serve(fake).await;
    let mut socket = connect(&other, SINK, "v5.channel.k8s.io").await.expect("upgraded");
    let piece = bytes::Bytes::from([vec![0], vec![7; PIECE]].concat());
    let mut sent = 0;
    while sent < ALL {
        soon("a piece", socket.send(Message::Binary(piece.clone()))).await.expect("taken");
        sent += PIECE as u64;
        between(sent, swallowed.load(Ordering::Relaxed), most);
    }
    // The end of channel 0.
    socket
        .send(Message::Binary(bytes::Bytes::from_static(&[255, 0])))
        .await
        .expect("taken");
    while let Some(Ok(message)) = soon("the end", socket.next()).await {
        if message.is_close() {
            break;
        }
    }
    assert_eq!(swallowed.load(Ordering::Relaxed), sent, "all of it has arrived");
    port.stop().await;
    other.stop().await;
}
