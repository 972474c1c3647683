//! One SPDY connection with a peer that behaves as it likes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use kvmlet_server::streaming::PeerGone;
use kvmlet_server::streaming::spdy::frame::{Decoder, Encoder, Frame};
use kvmlet_server::streaming::spdy::{Connection, Headers, Limits};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio_util::codec::{Encoder as _, FramedRead};

use crate::support::soon;

const LIMITS: Limits = Limits {
    streams: 8,
    queue: 16,
    idle: Duration::from_secs(60),
};

/// The client's half, for tests.
pub(crate) struct Client<IO> {
    frames: FramedRead<ReadHalf<IO>, Decoder>,
    write: WriteHalf<IO>,
    encoder: Encoder,
}

impl<IO: AsyncRead + AsyncWrite> Client<IO> {
    pub(crate) fn new(io: IO) -> Self {
        let (read, write) = split(io);
        Self {
            frames: FramedRead::new(read, Decoder::default()),
            write,
            encoder: Encoder::default(),
        }
    }

    pub(crate) async fn send(&mut self, frame: Frame) -> std::io::Result<()> {
        let mut wire = BytesMut::new();
        self.encoder.encode(&frame, &mut wire)?;
        self.write.write_all(&wire).await?;
        self.write.flush().await
    }

    pub(crate) async fn open(&mut self, stream: u32, kind: &str) -> std::io::Result<()> {
        let headers: Headers = [("streamType", kind)].into_iter().collect();
        self.send(Frame::SynStream {
            stream,
            fin: false,
            unidirectional: false,
            headers,
        })
        .await
    }

    pub(crate) async fn data(&mut self, stream: u32, payload: &[u8], fin: bool) -> std::io::Result<()> {
        self.send(Frame::Data {
            stream,
            fin,
            payload: Bytes::copy_from_slice(payload),
        })
        .await
    }

    /// The next frame; none when the server has hung up.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        match soon("a frame", self.frames.next()).await {
            Some(Ok(frame)) => Some(frame),
            // A cut connection is an end too.
            Some(Err(_)) | None => None,
        }
    }
}

fn connect() -> (Client<DuplexStream>, Connection) {
    let (near, far) = duplex(16 * 1024);
    (Client::new(near), Connection::start(far, LIMITS))
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end_one_way_at_a_time() {
    let (mut client, mut connection) = connect();
    client.open(1, "stdin").await.expect("written");
    let stream = soon("a stream", connection.accept()).await.expect("opened");
    assert_eq!((stream.id(), stream.headers().get("StreamType")), (1, Some("stdin")));
    let (mut input, output) = stream.accept().await.expect("accepted");
    assert_eq!(
        client.next().await,
        Some(Frame::SynReply {
            stream: 1,
            fin: false,
            headers: Headers::default()
        })
    );
    client.data(1, b"in", true).await.expect("written");
    assert_eq!(soon("input", input.recv()).await, Some(Bytes::from_static(b"in")));
    assert_eq!(soon("the end of input", input.recv()).await, None);
    output.send(Bytes::from_static(b"out")).await.expect("sent");
    output.finish().await.expect("sent");
    assert_eq!(
        client.next().await,
        Some(Frame::Data {
            stream: 1,
            fin: false,
            payload: "out".into()
        })
    );
    assert_eq!(
        client.next().await,
        Some(Frame::Data {
            stream: 1,
            fin: true,
            payload: Bytes::new()
        })
    );
    client.send(Frame::Ping { id: 9 }).await.expect("written");
    assert_eq!(client.next().await, Some(Frame::Ping { id: 9 }), "pings come back");
    let closing = tokio::spawn(connection.close());
    assert_eq!(client.next().await, Some(Frame::GoAway { last_good: 0, status: 0 }));
    drop(client);
    soon("the end of the connection", closing).await.expect("no panic");
}

#[tokio::test]
async fn thousands_of_streams_are_refused_and_the_first_ones_still_work() {
    let (mut client, mut connection) = connect();
    let opening = tokio::spawn(async move {
        let mut refused = 0;
        for number in 0..5000 {
            client.open(2 * number + 1, "stdin").await.expect("written");
            if number >= 8 {
                match client.next().await {
                    Some(Frame::RstStream { status: 3, stream }) if stream == 2 * number + 1 => refused += 1,
                    other => panic!("{other:?} instead of a refusal"),
                }
            }
        }
        (client, refused)
    });
    let (mut client, refused) = soon("the refusals", opening).await.expect("no panic");
    assert_eq!(refused, 4992);
    let (mut input, _output) = soon("a stream", connection.accept())
        .await
        .expect("opened")
        .accept()
        .await
        .expect("ok");
    client.data(1, b"still here", false).await.expect("written");
    assert_eq!(soon("input", input.recv()).await, Some(Bytes::from_static(b"still here")));
}

#[tokio::test]
async fn a_stream_that_ended_makes_room_for_another() {
    let (mut client, mut connection) = connect();
    for number in 0..100 {
        let stream = 2 * number + 1;
        client.open(stream, "data").await.expect("written");
        let (mut input, output) = soon("a stream", connection.accept())
            .await
            .expect("open")
            .accept()
            .await
            .expect("ok");
        assert!(matches!(client.next().await, Some(Frame::SynReply { .. })));
        if number % 2 == 0 {
            client.send(Frame::RstStream { stream, status: 5 }).await.expect("written");
            assert_eq!(soon("the end of input", input.recv()).await, None);
            assert_eq!(output.send(Bytes::from_static(b"late")).await, Err(PeerGone));
        } else {
            output.finish().await.expect("sent");
            assert!(matches!(client.next().await, Some(Frame::Data { fin: true, .. })));
            client.data(stream, b"", true).await.expect("written");
            assert_eq!(soon("the end of input", input.recv()).await, None);
        }
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_cut_off() {
    let headers: Headers = [("a", "b".repeat(4 << 20))].into_iter().collect();
    let mut bomb = BytesMut::new();
    let bomb_frame = Frame::SynStream {
        stream: 1,
        fin: false,
        unidirectional: false,
        headers,
    };
    Encoder::default().encode(&bomb_frame, &mut bomb).expect("encodes");
    let table: [(&str, &[u8]); 5] = [
        ("a header bomb", &bomb),
        ("an oversized frame", &[0x80, 3, 0, 1, 0, 255, 255, 255]),
        ("another version", &[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("an unknown type", &[0x80, 3, 1, 0, 0, 0, 0, 0]),
        ("HTTP", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff"),
    ];
    for (name, bytes) in table {
        let (mut client, mut connection) = connect();
        client.write.write_all(bytes).await.expect("written");
        if name == "HTTP" {
            // Its first bytes are a DATA frame's head for a stream that was never opened; its length never comes.
            assert!(matches!(client.next().await, Some(Frame::RstStream { status: 2, .. })), "{name}");
            continue;
        }
        assert_eq!(client.next().await, Some(Frame::GoAway { last_good: 0, status: 1 }), "{name}");
        assert_eq!(client.next().await, None, "{name}");
        assert!(soon("the end", connection.accept()).await.is_none(), "{name}");
    }
}

#[tokio::test]
async fn streams_out_of_order_end_the_connection() {
    for second in [2, 3, 1] {
        let (mut client, connection) = connect();
        client.open(3, "stdin").await.expect("written");
        client.open(second, "stdin").await.expect("written");
        assert_eq!(client.next().await, Some(Frame::GoAway { last_good: 3, status: 1 }), "{second}");
        soon("the end", connection.closed().cancelled()).await;
    }
}

#[tokio::test]
async fn data_for_no_stream_is_refused_and_data_for_an_ended_one_forgotten() {
    let (mut client, mut connection) = connect();
    client.data(7, b"x", false).await.expect("written");
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 7, status: 2 }));
    client.open(9, "stdin").await.expect("written");
    let stream = soon("a stream", connection.accept()).await.expect("opened");
    stream.refuse(3).await.expect("sent");
    assert_eq!(client.next().await, Some(Frame::RstStream { stream: 9, status: 3 }));
    client.data(9, b"x", false).await.expect("written");
    client.send(Frame::Ping { id: 1 }).await.expect("written");
    assert_eq!(client.next().await, Some(Frame::Ping { id: 1 }), "nothing came before it");
}

#[tokio::test]
async fn a_peer_that_vanishes_ends_the_connection_in_the_middle_of_a_frame() {
    let (mut client, mut connection) = connect();
    client.open(1, "stdin").await.expect("written");
    let (mut input, output) = soon("a stream", connection.accept())
        .await
        .expect("open")
        .accept()
        .await
        .expect("ok");
    client.write.write_all(&[0, 0, 0, 1, 0, 0, 0, 100, b'x']).await.expect("written");
    assert_eq!(soon("input", input.recv()).await, Some(Bytes::from_static(b"x")));
    drop(client);
    soon("the end", connection.closed().cancelled()).await;
    assert_eq!(soon("the end of input", input.recv()).await, None);
    assert_eq!(output.send(Bytes::from_static(b"late")).await, Err(PeerGone));
}

#[tokio::test]
async fn a_peer_that_does_not_read_stops_the_sender_after_a_bounded_amount() {
    let (mut client, mut connection) = connect();
    client.open(1, "stdout").await.expect("written");
    let (_input, output) = soon("a stream", connection.accept())
        .await
        .expect("open")
        .accept()
        .await
        .expect("ok");
    let mut sent = 0;
    let piece = Bytes::from(vec![0; 32 * 1024]);
    while tokio::time::timeout(Duration::from_millis(200), output.send(piece.clone()))
        .await
        .is_ok()
    {
        sent += 1;
        assert!(sent < 100, "more than 3 MB were taken for a peer that reads nothing");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_and_in_the_end_given_up() {
    let (mut client, connection) = connect();
    assert_eq!(client.next_without_deadline().await, Some(Frame::Ping { id: 2 }));
    connection.closed().cancelled().await;
}

impl<IO: AsyncRead + AsyncWrite> Client<IO> {
    async fn next_without_deadline(&mut self) -> Option<Frame> {
        self.frames.next().await.and_then(Result::ok)
    }
}
