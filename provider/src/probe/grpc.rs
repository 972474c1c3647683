//! `grpc.health.v1.Health/Check` without TLS, in the words of grpc_health_probe (pkg/probe/grpc). Whatever goes wrong is a failure.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    ask::{MOST, Outcome},
    http::user_agent,
    tcp::join,
};
use crate::config::Span;

/// Between two attempts to connect (gRPC's first backoff).
const AGAIN: Duration = Duration::from_secs(1);

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct Check {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct Checked {
    #[prost(enumeration = "Health", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Health {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// An RPC that failed: the code's name and the message.
#[derive(Debug, PartialEq, Eq)]
struct Status(u32, String);

const DEADLINE_EXCEEDED: u32 = 4;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;
const UNAVAILABLE: u32 = 14;
/// Names of codes in Go.
const CODES: &[&str] = &[
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Asks once.
pub(super) async fn check(address: &str, port: u16, service: &str, limit: Duration) -> Outcome {
    let deadline = Instant::now() + limit;
    let authority = join(address, port);
    let Ok(stream) = timeout_at(deadline, connect(address, port)).await else {
        return Outcome::Failure(format!(
            "timeout: failed to connect service {authority:?} within {}: context deadline exceeded",
            Span(limit)
        ));
    };
    let result = timeout_at(deadline, call(stream, &authority, service))
        .await
        .unwrap_or_else(|_| Err(Status(DEADLINE_EXCEEDED, String::new())));
    match result {
        Ok(Health::Serving) => Outcome::Success,
        Ok(status) => Outcome::Failure(format!("service unhealthy (responded with {:?})", name(status))),
        Err(Status(UNIMPLEMENTED, message)) => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        )),
        Err(Status(DEADLINE_EXCEEDED, _)) => Outcome::Failure(format!("timeout: health rpc did not complete within {}", Span(limit))),
        Err(Status(code, message)) => {
            let code = CODES
                .get(code as usize)
                .map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
            Outcome::Failure(format!("error: health rpc probe failed: rpc error: code = {code} desc = {message}"))
        }
    }
}

/// Until somebody listens, or the caller has had enough.
async fn connect(address: &str, port: u16) -> TcpStream {
    loop {
        match TcpStream::connect((address, port)).await {
            Ok(stream) => return stream,
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

async fn call(stream: TcpStream, authority: &str, service: &str) -> Result<Health, Status> {
    let unavailable = |e: hyper::Error| Status(UNAVAILABLE, e.to_string());
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(16 << 10)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(unavailable)?;
    // Ends with this call.
    let connection = AbortOnDrop(tokio::spawn(connection));
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, user_agent("probe"))
        .body(Full::new(frame(&Check { service: service.into() })))
        .map_err(|e| Status(INTERNAL, e.to_string()))?;
    let response = sender.send_request(request).await.map_err(unavailable)?;
    if response.status() != 200 {
        let code = if response.status() == 404 { UNIMPLEMENTED } else { UNAVAILABLE };
        return Err(Status(
            code,
            format!("unexpected HTTP status code received from server: {}", response.status()),
        ));
    }
    // An answer without a body has its status here.
    if let Some(status) = status(response.headers()) {
        status?;
    }
    let body = Limited::new(response.into_body(), MOST)
        .collect()
        .await
        .map_err(|e| Status(INTERNAL, e.to_string()))?;
    drop(connection);
    match body.trailers().and_then(status) {
        Some(result) => result?,
        None => return Err(Status(INTERNAL, "server closed the stream without sending trailers".into())),
    }
    let bytes = body.to_bytes();
    let message = bytes
        .get(5..)
        .filter(|_| bytes[0] == 0)
        .ok_or_else(|| Status(INTERNAL, "the answer is no message".into()))?;
    let answer = Checked::decode(message).map_err(|e| Status(INTERNAL, e.to_string()))?;
    Ok(answer.status())
}

/// What headers or trailers say of the call; nothing when they do not.
fn status(headers: &HeaderMap) -> Option<Result<(), Status>> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let code = text("grpc-status")?.parse().unwrap_or(2);
    Some(if code == 0 {
        Ok(())
    } else {
        Err(Status(code, text("grpc-message").unwrap_or_default().to_owned()))
    })
}

/// A message as gRPC frames it: not compressed, with its length.
fn frame(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("a service's name is short"));
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

fn name(status: Health) -> &'static str {
    match status {
        Health::Unknown => "UNKNOWN",
        Health::Serving => "SERVING",
        Health::NotServing => "NOT_SERVING",
        Health::ServiceUnknown => "SERVICE_UNKNOWN",
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use http_body_util::StreamBody;
    use hyper::{Response, body::Frame, body::Incoming, service::service_fn};
    use tokio::net::TcpListener;

    /// A gRPC server that answers with this status of the service, or of the call.
    async fn server(answer: Result<Health, u32>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = move |request: Request<Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(Check::decode(&body[5..]).unwrap().service, "db");
            let (frames, code) = match answer {
                Ok(status) => {
                    let status = status.into();
                    (vec![Ok::<_, Infallible>(Frame::data(frame(&Checked { status })))], 0)
                }
                Err(code) => (vec![], code),
            };
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", code.into());
            trailers.insert("grpc-message", "words".parse().unwrap());
            let frames = frames.into_iter().chain([Ok(Frame::trailers(trailers))]);
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
        };
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(service))
                .await;
        });
        port
    }

    async fn ask(port: u16) -> Outcome {
        check("127.0.0.1", port, "db", Duration::from_secs(2)).await
    }

    #[tokio::test]
    async fn only_a_service_that_serves_is_a_success() {
        assert_eq!(ask(server(Ok(Health::Serving)).await).await, Outcome::Success);
        assert_eq!(
            ask(server(Ok(Health::NotServing)).await).await,
            Outcome::Failure("service unhealthy (responded with \"NOT_SERVING\")".into())
        );
    }

    #[tokio::test]
    async fn a_call_that_fails_is_told_in_gos_words() {
        assert_eq!(
            ask(server(Err(UNIMPLEMENTED)).await).await,
            Outcome::Failure("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): words".into())
        );
        assert_eq!(
            ask(server(Err(5)).await).await,
            Outcome::Failure("error: health rpc probe failed: rpc error: code = NotFound desc = words".into())
        );
    }

    #[tokio::test]
    async fn what_does_not_listen_or_does_not_answer_fails_at_the_timeout() {
        assert_eq!(
            ask(1).await,
            Outcome::Failure("timeout: failed to connect service \"127.0.0.1:1\" within 2s: context deadline exceeded".into())
        );
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(
            ask(silent.local_addr().unwrap().port()).await,
            Outcome::Failure("timeout: health rpc did not complete within 2s".into())
        );
    }
}
