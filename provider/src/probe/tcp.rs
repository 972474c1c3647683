//! A connection that is opened and closed again.

use std::{io, time::Duration};

use tokio::{net::TcpStream, time::timeout};

use super::ask::Outcome;

/// Connects once.
pub(super) async fn connect(host: &str, port: u16, limit: Duration) -> Outcome {
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => Outcome::Failure(dial_error(host, port, &error)),
        Err(_) => Outcome::Failure(format!("dial tcp {}: i/o timeout", join(host, port))),
    }
}

/// An error of connecting as Go says it.
pub(super) fn dial_error(host: &str, port: u16, error: &io::Error) -> String {
    let what = match error.raw_os_error() {
        Some(number) => {
            let text = io::Error::from_raw_os_error(number).to_string();
            let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
            format!("connect: {text}")
        }
        None => error.to_string(),
    };
    format!("dial tcp {}: {what}", join(host, port))
}

/// Host and port; an IPv6 address in brackets.
pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_open_port_is_a_success_and_a_closed_one_is_told_in_gos_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(connect("127.0.0.1", port, Duration::from_secs(5)).await, Outcome::Success);
        drop(listener);
        assert_eq!(
            connect("127.0.0.1", port, Duration::from_secs(5)).await,
            Outcome::Failure(format!("dial tcp 127.0.0.1:{port}: connect: connection refused"))
        );
        assert_eq!(join("fd00::1", 80), "[fd00::1]:80");
    }
}
