//! The authority of the port's clients (`tls.clientCAFile`): read again now and then, and used from then on when it has changed (the kubelet's
//! DynamicCAContentFromFile). A file that is gone, or holds no certificate, changes nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use kvmlet_server::ClientAuthority;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tracing::{info, warn};

use super::reload::PERIOD;

/// Who vouches for the port's clients, and the file that says so.
pub struct Clients {
    /// What the port uses.
    pub authority: ClientAuthority,
    file: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
    /// What was told last.
    trouble: String,
}

impl Clients {
    /// As the file says now.
    ///
    /// # Errors
    /// When it cannot be read, or holds no usable certificate.
    pub fn open(file: &Path) -> anyhow::Result<Self> {
        let certificates = read(file)?;
        let authority = ClientAuthority::new(certificates.clone()).with_context(|| format!("use {}", file.display()))?;
        Ok(Self {
            authority,
            file: file.to_owned(),
            certificates,
            trouble: String::new(),
        })
    }

    /// Looks for ever.
    pub async fn keep(mut self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.look();
        }
    }

    /// Uses what the file holds now; answers whether that is something else.
    fn look(&mut self) -> bool {
        let done = read(&self.file).and_then(|certificates| {
            if certificates == self.certificates {
                return Ok(false);
            }
            self.authority.replace(certificates.clone())?;
            info!(
                number = certificates.len(),
                "clientCAFile has changed on disk and is used from now on"
            );
            self.certificates = certificates;
            Ok(true)
        });
        let trouble = done.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        if !trouble.is_empty() && trouble != self.trouble {
            warn!(why = trouble, "clientCAFile cannot be used: the old one stays");
        }
        self.trouble = trouble;
        done.unwrap_or(false)
    }
}

fn read(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("read certificates of {}", file.display()))?;
    ensure!(!certificates.is_empty(), "{} holds no certificate", file.display());
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Authority, *};

    #[test]
    fn another_authority_is_used_and_a_file_without_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.crt");
        let put = |text: &str| std::fs::write(&file, text).unwrap();
        let [first, second] = [Authority::new().certificate, Authority::new().certificate];
        assert!(Clients::open(&file).is_err());
        put(&first);
        let mut clients = Clients::open(&file).unwrap();
        assert!(!clients.look(), "nothing has changed");
        put("");
        assert!(!clients.look() && clients.trouble.contains("holds no certificate"));
        put(&format!("{first}{second}"));
        assert!(clients.look() && clients.trouble.is_empty());
        assert_eq!(clients.certificates.len(), 2);
        put(&second);
        assert!(clients.look() && clients.certificates.len() == 1);
        std::fs::remove_file(&file).unwrap();
        assert!(!clients.look() && clients.certificates.len() == 1);
    }
}
