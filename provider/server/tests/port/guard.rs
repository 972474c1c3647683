//! Who gets in, and what the paths without a file of their own answer.

use hyper::client::conn::http1;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use kvmlet_server::{Asked, BindError, Server, ServerConfig, ServingCertificate};
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::Fake;
use crate::support::{AUTHORITY, Authority, Port, config, reach, soon};

#[tokio::test]
async fn a_client_without_a_certificate_is_unauthorized_everywhere() {
    let port = Port::serve(Fake::new()).await;
    for path in ["/healthz", "/pods", "/exec/ns/p/c?command=a&output=1", "/nowhere"] {
        let answer = port.ask(None, Method::GET, path).await;
        assert_eq!(answer, (StatusCode::UNAUTHORIZED, "Unauthorized".into()), "{path}");
    }
    port.stop().await;
}

#[tokio::test]
async fn a_bearer_token_is_as_good_as_a_certificate_and_an_unknown_one_as_none() {
    let port = Port::serve(Fake::new()).await;
    let ask = async |value: &str| {
        let request = hyper::Request::builder().uri("/healthz").header("host", "node-1");
        let request = request.header("authorization", value).body(http_body_util::Empty::new());
        let answer = port.request(None, request.expect("valid request")).await.expect("an answer");
        answer.status().as_u16()
    };
    assert_eq!(ask("Bearer token-of-admin").await, 200);
    assert_eq!(ask("Bearer token-of-nobody").await, 403);
    for wrong in ["Bearer stolen", "Bearer broken", "Basic token-of-admin", "token-of-admin"] {
        assert_eq!(ask(wrong).await, 401, "{wrong}");
    }
    port.stop().await;
}

#[tokio::test]
async fn a_client_of_another_authority_or_purpose_or_time_does_not_get_through_tls() {
    let port = Port::serve(Fake::new()).await;
    let strangers = [
        Authority::new("somebody else").client("admin"),
        AUTHORITY.issue("admin", "system:masters", ExtendedKeyUsagePurpose::ServerAuth),
        AUTHORITY.expired("admin"),
        AUTHORITY.early("admin"),
    ];
    for stranger in strangers {
        let request = hyper::Request::builder().uri("/healthz").header("host", "node-1");
        let request = request.body(http_body_util::Empty::new()).expect("valid request");
        assert!(port.request(Some(stranger), request).await.is_err());
    }
    assert_eq!(port.get("/healthz").await, (200, "ok".into()), "others are still served");
    port.stop().await;
}

#[tokio::test]
async fn another_authority_counts_for_connections_to_come_and_those_that_are_there_stay() {
    let (authority, other) = (config().client_authority, Authority::new("the next one"));
    let port = Port::serve_config(
        Fake::new(),
        ServerConfig {
            client_authority: authority.clone(),
            ..config()
        },
    )
    .await;
    let request = || {
        let request = hyper::Request::builder().uri("/healthz").header("host", "node-1");
        request
            .body(http_body_util::Empty::<hyper::body::Bytes>::new())
            .expect("valid request")
    };
    assert!(port.request(Some(other.client("admin")), request()).await.is_err());
    let stream = port.tls(Some(AUTHORITY.client("admin"))).await.expect("connects");
    let (mut present, connection) = http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);

    assert!(authority.replace(Vec::new()).is_err(), "nobody could get in");
    authority.replace(vec![other.certificate.clone()]).expect("an authority");
    let answer = port.request(Some(other.client("admin")), request()).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(port.request(Some(AUTHORITY.client("admin")), request()).await.is_err());
    let answer = soon("an answer", present.send_request(request())).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    drop(present);
    port.stop().await;
}

#[tokio::test]
async fn rights_are_asked_for_each_request_and_exec_needs_create() {
    let port = Port::serve(Fake::new()).await;
    let ask = async |user: &str, path: &str| port.ask(Some(AUTHORITY.client(user)), Method::GET, path).await;
    assert_eq!(ask("reader", "/pods").await.0, StatusCode::OK);
    let (status, text) = ask("reader", "/exec/ns/p/c?command=a&output=1").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        text,
        "Forbidden (user=reader, verb=create, resource=nodes, subresource(s)=[proxy])\n"
    );
    let (status, text) = ask("nobody", "/runningpods/").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("subresource(s)=[pods proxy]"), "{text}");
    assert_eq!(ask("broken", "/pods").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    port.stop().await;
}

#[tokio::test]
async fn pods_are_lists_and_pages_that_are_not_there_are_not_found() {
    let port = Port::serve(Fake::new()).await;
    let (status, text) = port.get("/pods").await;
    let list: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((status, &list["kind"], &list["apiVersion"]), (200, &"PodList".into(), &"v1".into()));
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(list["items"][0]["metadata"]["name"], "p");
    assert_eq!(port.get("/healthz/ping").await, (200, "ok".into()));
    for path in ["/nowhere", "/metrics/nowhere"] {
        assert_eq!(port.get(path).await.0, 404, "{path}");
    }
    let posted = port.ask(Some(AUTHORITY.client("admin")), Method::POST, "/pods").await;
    assert_eq!(posted.0, StatusCode::METHOD_NOT_ALLOWED);
    port.stop().await;
}

#[tokio::test]
async fn each_page_of_figures_is_asked_for_by_its_path() {
    let port = Port::serve(Fake::new()).await;
    for (path, answer) in [
        ("/metrics", "Metrics"),
        ("/metrics/resource", "Resource"),
        ("/metrics/cadvisor", "Cadvisor"),
        ("/stats/summary", r#"{"page":"Summary { only_cpu_and_memory: false }"}"#),
        (
            "/stats/summary?only_cpu_and_memory=true",
            r#"{"page":"Summary { only_cpu_and_memory: true }"}"#,
        ),
        ("/configz", r#"{"page":"Configz"}"#),
    ] {
        assert_eq!(port.get(path).await, (200, answer.into()), "{path}");
    }
    assert_eq!(port.get("/metrics/probes").await, (500, "no probes\n".into()));
    port.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let port = Port::serve(Fake::new()).await;
    let error = Server::bind(port.address, config(), Fake::new()).await.expect_err("in use");
    assert!(matches!(error, BindError::InUse(address) if address == port.address));
    assert!(error.to_string().contains(&port.address.to_string()), "{error}");
    assert!(error.to_string().contains("another kubelet"), "{error}");
    port.stop().await;
}

#[tokio::test]
async fn a_new_serving_certificate_is_shown_to_new_connections() {
    let port = Port::serve(Fake::new()).await;
    let shown = async || {
        let stream = port.tls(Some(AUTHORITY.client("admin"))).await.expect("handshake");
        stream.get_ref().1.peer_certificates().expect("certificates")[0].clone()
    };
    let before = shown().await;
    let (chain, key) = AUTHORITY.server();
    let leaf = chain[0].clone();
    port.certificate.replace(chain, key).expect("own certificate");
    assert_eq!(shown().await, leaf);
    assert_ne!(before, leaf);
    let (_, other_key) = AUTHORITY.server();
    assert!(
        port.certificate.replace(vec![leaf.clone()], other_key).is_err(),
        "a key of another certificate"
    );
    assert_eq!(shown().await, leaf, "the old one stays");
    port.stop().await;
}

#[tokio::test]
async fn a_port_without_a_certificate_refuses_handshakes_until_it_has_one() {
    let none = ServingCertificate::none();
    let port = Port::serve_with(Fake::new(), none.clone()).await;
    let refused = port.tls(None).await.expect_err("no certificate");
    assert!(refused.to_string().contains("alert"), "{refused}");
    let (chain, key) = AUTHORITY.server();
    none.replace(chain, key).expect("own certificate");
    assert_eq!(port.get("/healthz").await, (200, "ok".into()));
    port.stop().await;
}

#[tokio::test]
async fn a_connection_that_was_made_with_the_old_certificate_goes_on() {
    let port = Port::serve(Fake::new()).await;
    let stream = port.tls(Some(AUTHORITY.client("admin"))).await.expect("handshake");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    for _ in 0..2 {
        let request = hyper::Request::builder().uri("/healthz").header("host", "node-1");
        let request = request
            .body(http_body_util::Empty::<hyper::body::Bytes>::new())
            .expect("valid request");
        assert_eq!(sender.send_request(request).await.expect("an answer").status(), 200);
        let (chain, key) = AUTHORITY.server();
        port.certificate.replace(chain, key).expect("own certificate");
    }
    port.stop().await;
}

/// A hello of a client that knows nothing newer than a version (RFC 5246, section 7.4.1.2).
fn hello(version: [u8; 2]) -> Vec<u8> {
    // secp256r1, uncompressed points, ecdsa_secp256r1_sha256.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3];
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
    let mut body = version.to_vec();
    body.extend([7; 32]);
    // No session; TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, length(&extensions)]);
    body.extend(extensions);
    let handshake = [&[1, 0, 0, length(&body)], &body[..]].concat();
    [&[22, 3, 1, 0, length(&handshake)], &handshake[..]].concat()
}

#[tokio::test]
async fn tls_1_2_is_spoken_and_what_is_older_is_not() {
    let port = Port::serve(Fake::new()).await;
    let answer = async |version: [u8; 2]| {
        let mut stream = tokio::net::TcpStream::connect(port.address).await.expect("connects");
        stream.write_all(&hello(version)).await.expect("is heard");
        let mut answer = [0; 7];
        soon("an answer", stream.read_exact(&mut answer)).await.expect("an answer");
        answer
    };
    // A record of type handshake, and in it a ServerHello.
    let hello = answer([3, 3]).await;
    assert_eq!((hello[0], hello[5]), (22, 2), "{hello:?}");
    for older in [[3, 2], [3, 1], [3, 0]] {
        // A fatal alert, protocol_version (section 7.2).
        assert_eq!(answer(older).await, [21, 3, 3, 0, 2, 2, 70], "{older:?}");
    }
    port.stop().await;
}

#[tokio::test]
async fn each_request_is_counted_whoever_asks_and_once_its_answer_has_been_sent() {
    let fake = Fake::new();
    let (asked, mut served) = (fake.asked.clone(), fake.served.subscribe());
    let port = Port::serve(fake).await;
    port.get("/metrics/resource").await;
    port.ask(None, Method::POST, "/exec/ns/p/c").await;
    reach(&mut served, 2, "both answers").await;
    let of = |method, path, long_running| Asked {
        method,
        path,
        long_running,
    };
    assert_eq!(
        *asked.lock().expect("no holder panics"),
        [of("GET", "metrics/resource", false), of("POST", "exec", true)]
    );
    port.stop().await;
}
