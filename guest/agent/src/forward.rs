//! Connections to TCP ports of the pod, for `kubectl port-forward`: the pod's network name space is the guest's, so its loopback is here.
//!
//! Owns the end of each direction. Refuses more than [`MOST`] at once: each costs the guest two threads and their buffers.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kvmlet_protocol::{ErrorKind, Failure, Forwarded, FrameError, MAX_HOST_FRAME, Response, read_frame, write_frame};
use vsock::VsockStream;

use crate::failure::{fail, reason};
use crate::session::{readable, write_while_connected};

/// Connections at once.
const MOST: usize = 256;
/// How long a connection may take to come about, in each family of addresses.
const CONNECT: Duration = Duration::from_secs(10);
/// Largest piece from the pod.
const PIECE: usize = 16 << 10;

static HELD: AtomicUsize = AtomicUsize::new(0);

/// A right to one of [`MOST`].
struct Place;

impl Place {
    fn take() -> Result<Self, Failure> {
        let taken = HELD.fetch_add(1, Ordering::Relaxed);
        let place = Self;
        if taken < MOST {
            Ok(place)
        } else {
            Err(fail(
                ErrorKind::NoSpace,
                format!("{MOST} connections are forwarded into this pod already"),
            ))
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection to a port.
pub(crate) struct Forward {
    stream: TcpStream,
    _place: Place,
}

/// Connects by IPv4, and if that cannot be by IPv6, as other runtimes do.
pub(crate) fn connect(port: u16) -> Result<Forward, Failure> {
    let place = Place::take()?;
    let dial = |ip: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT);
    let four = match dial(Ipv4Addr::LOCALHOST.into()) {
        Ok(stream) => return joined(stream, place),
        Err(error) => error,
    };
    match dial(Ipv6Addr::LOCALHOST.into()) {
        Ok(stream) => joined(stream, place),
        Err(six) => Err(fail(ErrorKind::Internal, refused(port, &four, &six))),
    }
}

fn joined(stream: TcpStream, place: Place) -> Result<Forward, Failure> {
    let prepared = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
    prepared.map_err(|e| fail(ErrorKind::Internal, format!("prepare the connection: {}", reason(&e))))?;
    Ok(Forward { stream, _place: place })
}

/// The words people search for.
fn refused(port: u16, four: &io::Error, six: &io::Error) -> String {
    let (four, six) = (why(four), why(six));
    format!(
        "failed to connect to localhost:{port} inside the pod, IPv4: dial tcp4 127.0.0.1:{port}: connect: {four} IPv6 dial tcp6 [::1]:{port}: connect: {six}"
    )
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "connection refused".into(),
        Some(libc::EADDRNOTAVAIL) => "cannot assign requested address".into(),
        Some(libc::EAFNOSUPPORT) => "address family not supported by protocol".into(),
        _ if error.kind() == io::ErrorKind::TimedOut => "connection timed out".into(),
        _ => reason(error),
    }
}

impl Forward {
    /// Carries bytes until both directions have ended, or one end has gone.
    pub(crate) fn run(self, mut connection: VsockStream) -> Result<(), FrameError> {
        write_frame(&mut connection, &Response::Done)?;
        let mut to = connection.try_clone().map_err(FrameError::Io)?;
        let stream = &self.stream;
        std::thread::scope(|scope| {
            let from_pod = move || {
                if from_pod(stream, &mut to).is_err() {
                    // Without an end of its own: the host sees that it was cut.
                    let _ = to.shutdown(Shutdown::Both);
                }
            };
            let reader = std::thread::Builder::new().name("forward".into()).stack_size(64 << 10);
            reader.spawn_scoped(scope, from_pod).map_err(FrameError::Io)?;
            // The host's end, or its going, ends the pod's connection.
            let ended = to_pod(&mut connection, stream);
            let _ = stream.shutdown(Shutdown::Both);
            ended
        })
    }
}

fn from_pod(mut from: &TcpStream, to: &mut VsockStream) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return write_frame(to, &Forwarded::End).map_err(io::Error::other),
            Ok(length) => write_frame(to, &Forwarded::Bytes(buffer[..length].to_vec())).map_err(io::Error::other)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => readable(from)?,
            Err(e) => return Err(e),
        }
    }
}

/// Until the host goes: it does so once it needs neither direction any more.
fn to_pod(from: &mut VsockStream, to: &TcpStream) -> Result<(), FrameError> {
    let mut open = true;
    loop {
        match read_frame(from, MAX_HOST_FRAME)? {
            // What comes after the pod has closed that direction is forgotten.
            Forwarded::Bytes(data) if open => match write_while_connected(to, &data, from) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => return Ok(()),
                result => open = result.is_ok(),
            },
            Forwarded::Bytes(_) => {}
            Forwarded::End => {
                open = false;
                let _ = to.shutdown(Shutdown::Write);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_closed_port_is_told_in_the_words_of_other_runtimes() {
        let port = {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap().port()
        };
        let failure = connect(port).err().unwrap();
        let words =
            format!("failed to connect to localhost:{port} inside the pod, IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused");
        assert!(failure.message.starts_with(&words), "{failure}");
        assert!(
            failure.message.contains(&format!("IPv6 dial tcp6 [::1]:{port}: connect: ")),
            "{failure}"
        );
    }

    #[test]
    fn only_so_many_connections_are_held_at_once() {
        let held: Vec<_> = (0..MOST).map_while(|_| Place::take().ok()).collect();
        assert!(held.len() > MOST - 8, "other tests may hold some");
        let failure = Place::take().err().unwrap();
        assert_eq!(failure.kind, ErrorKind::NoSpace);
        drop(held);
        assert!(Place::take().is_ok());
    }
}
