//! Probes over TLS.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::{
    tests::{answer, server},
    *,
};

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_good_enough_and_a_server_without_tls_is_not() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let own = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(answer("200 OK", "").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let over_tls = |port| HttpGet {
        tls: true,
        host: None,
        port,
        path: "/".into(),
        headers: vec![],
    };
    let limit = Duration::from_secs(5);
    let clients = HttpClients::new().unwrap();
    assert_eq!(get(&clients, &over_tls(port), "127.0.0.1", limit).await, Outcome::Success);
    let (port, _asked) = server(vec![answer("200 OK", "")]).await;
    assert!(matches!(
        get(&clients, &over_tls(port), "127.0.0.1", Duration::from_secs(1)).await,
        Outcome::Failure(_)
    ));
}

/// A server over TLS that offers both and says by its status which was chosen: 200 for HTTP/2, 404 for HTTP/1.1.
async fn both() -> u16 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let own = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            let is_second = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = hyper::service::service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
                let second = request.version() == hyper::Version::HTTP_2;
                let answer = hyper::Response::builder().status(if second { 200 } else { 404 });
                Ok::<_, std::convert::Infallible>(answer.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap())
            });
            let io = hyper_util::rt::TokioIo::new(stream);
            let served = if is_second {
                let executor = hyper_util::rt::TokioExecutor::new();
                hyper::server::conn::http2::Builder::new(executor)
                    .serve_connection(io, service)
                    .await
            } else {
                hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
            };
            // A client that has its answer may go at once.
            drop(served);
        }
    });
    port
}

#[tokio::test]
async fn a_server_that_offers_http_2_is_probed_by_it_unless_the_host_is_another_and_hooks_never_do() {
    let port = both().await;
    let clients = HttpClients::new().unwrap();
    let spec = |headers: &[(&str, &str)]| HttpGet {
        tls: true,
        host: None,
        port,
        path: "/".into(),
        headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
    };
    let limit = Duration::from_secs(5);
    assert_eq!(get(&clients, &spec(&[("X-A", "b")]), "127.0.0.1", limit).await, Outcome::Success);
    let first = Outcome::Failure("HTTP probe failed with statuscode: 404".into());
    assert_eq!(get(&clients, &spec(&[("host", "web")]), "127.0.0.1", limit).await, first);
    let deadline = Instant::now() + limit;
    let told = send(clients.of_hooks(), &spec(&[]), "127.0.0.1", "lifecycle", deadline).await;
    assert_eq!(told.unwrap().version(), reqwest::Version::HTTP_11);
}

#[tokio::test]
async fn a_hook_over_https_at_a_server_of_http_is_told_plainly_and_without_credentials() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let mut hello = [0; 16];
        first.read_exact(&mut hello).await.unwrap();
        first.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(second.read_u8().await.unwrap());
        }
        second.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        String::from_utf8(request).unwrap()
    });
    let hook = HttpGet {
        tls: true,
        host: None,
        port,
        path: "/bye".into(),
        headers: vec![("Authorization".into(), "secret".into()), ("X-A".into(), "b".into())],
    };
    let told = tell(&HttpClients::new().unwrap(), &hook, "127.0.0.1", Duration::from_secs(20)).await;
    let words = format!("request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded");
    assert_eq!(told, Ok(Some(words)));
    let request = server.await.unwrap().to_lowercase();
    assert!(
        request.starts_with("get /bye ") && request.contains("x-a: b") && !request.contains("secret"),
        "{request}"
    );
}
