//! Reviews to the admission webhook at a given rate, over connections that stay open, as the API server's do. Each counts from the moment at which it
//! was due, so one that waits for an earlier one says so.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};

/// How much the slowest answer may take before all is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is asked of the webhook.
#[derive(Debug, Args)]
pub struct Load {
    /// Where it listens.
    #[arg(long)]
    address: SocketAddr,
    /// The name in its certificate.
    #[arg(long)]
    name: String,
    /// Its authority, PEM.
    #[arg(long)]
    authority: PathBuf,
    /// Requests a second.
    #[arg(long)]
    rate: u32,
    /// Seconds.
    #[arg(long)]
    seconds: u32,
    /// Connections that take turns.
    #[arg(long, default_value_t = 4)]
    connections: u32,
    /// Paths and bodies, asked in turn: PATH=FILE.
    #[arg(required = true, value_parser = path_and_file)]
    asked: Vec<(String, PathBuf)>,
}

fn path_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (path, file) = text.split_once('=').ok_or("it is not PATH=FILE")?;
    Ok((path.to_owned(), file.into()))
}

type Connection = StreamOwned<ClientConnection, TcpStream>;

impl Load {
    /// The time of each answer, seconds, sorted. Each is a patch, or it is an error.
    pub(super) fn run(&self) -> Result<Vec<f64>> {
        let mut requests = Vec::new();
        for (path, file) in &self.asked {
            let body = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                self.name,
                body.len()
            );
            requests.push([head.as_bytes(), &body].concat());
        }
        let config = self.config()?;
        let connections = (0..self.connections).map(|_| self.connect(&config)).collect::<Result<Vec<_>>>()?;
        let (period, begin) = (Duration::from_secs(1) / self.rate, Instant::now() + Duration::from_millis(100));
        let each = |first: u32, mut connection: Connection| -> Result<Vec<f64>> {
            let mut times = Vec::new();
            for number in (first..self.rate * self.seconds).step_by(self.connections as usize) {
                let due = begin + period * number;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                answer(&mut connection, &requests[number as usize % requests.len()])?;
                times.push(due.elapsed().as_secs_f64());
            }
            Ok(times)
        };
        let mut all = thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(connections)
                .map(|(first, one)| scope.spawn(move || each(first, one)))
                .collect();
            let times = threads.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?);
            times.collect::<Result<Vec<_>>>()
        })?
        .concat();
        all.sort_by(f64::total_cmp);
        Ok(all)
    }

    fn config(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_file_iter(&self.authority).context("read the authority")? {
            roots.add(authority.context("read the authority")?).context("trust the authority")?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = builder
            .context("choose versions of TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }

    fn connect(&self, config: &Arc<ClientConfig>) -> Result<Connection> {
        let name = ServerName::try_from(self.name.clone()).context("read the webhook's name")?;
        let stream = TcpStream::connect(self.address).context("connect to the webhook")?;
        stream.set_nodelay(true).context("send at once")?;
        stream.set_read_timeout(Some(PATIENCE)).context("set a deadline")?;
        let mut connection = StreamOwned::new(ClientConnection::new(config.clone(), name)?, stream);
        connection
            .conn
            .complete_io(&mut connection.sock)
            .context("speak TLS with the webhook")?;
        Ok(connection)
    }
}

/// Asks once and reads the whole answer.
fn answer(connection: &mut (impl Read + Write), request: &[u8]) -> Result<()> {
    connection.write_all(request).context("send a review")?;
    connection.flush().context("send a review")?;
    let (mut answer, mut part) = (Vec::new(), [0; 16 << 10]);
    loop {
        let count = connection.read(&mut part).context("read the answer")?;
        ensure!(
            count > 0,
            "the webhook closed the connection after {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if body.len() < length(head)? {
            continue;
        }
        ensure!(
            head.starts_with("HTTP/1.1 200 ") && body.contains("\"patch\""),
            "the webhook answered {text}"
        );
        return Ok(());
    }
}

fn length(head: &str) -> Result<usize> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let (_, length) = lengths.next().with_context(|| format!("no length in {head:?}"))?;
    length.trim().parse().with_context(|| format!("read the length in {head:?}"))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Reads what was written down, a few bytes at once, and swallows what is sent.
    struct Said(Cursor<Vec<u8>>);

    impl Read for Said {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(&mut into[..7])
        }
    }

    impl Write for Said {
        fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
            Ok(from.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_is_read_to_its_end_and_must_be_a_patch() {
        let said = |text: &str| answer(&mut Said(Cursor::new(text.as_bytes().to_vec())), b"?");
        assert!(said("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"patch\": 1}").is_ok());
        assert!(said("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").is_err());
        assert!(said("HTTP/1.1 500 No\r\ncontent-length: 12\r\n\r\n{\"patch\": 1}").is_err());
        let cut = said("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{\"patch\"").unwrap_err();
        assert!(cut.to_string().contains("closed"), "{cut}");
    }
}
