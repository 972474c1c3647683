//! The authority of the port's clients (`tls.clientCAFile`): read again now and then, and used from then on when it has changed (the kubelet's
//! DynamicCAContentFromFile). A file that is gone, or holds no certificate, changes nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use kvmlet_server::ClientAuthority;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::reload::Loaded;

/// Who vouches for the port's clients, and the file that says so.
pub struct Clients {
    /// What the port uses.
    pub authority: ClientAuthority,
    file: PathBuf,
    loaded: Loaded<Vec<CertificateDer<'static>>>,
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
            loaded: Loaded::new("clientCAFile", certificates),
        })
    }

    /// Looks for ever.
    pub async fn keep(self) {
        let Self { authority, file, loaded } = self;
        loaded
            .keep(
                &[&file],
                || read(&file),
                |certificates| Ok(authority.replace(certificates.clone())?),
            )
            .await;
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
        let Clients { authority, mut loaded, .. } = Clients::open(&file).unwrap();
        let mut look = || loaded.look(read(&file), |certificates| Ok(authority.replace(certificates.clone())?));
        assert!(!look(), "nothing has changed");
        put("");
        assert!(!look());
        assert!(read(&file).unwrap_err().to_string().contains("holds no certificate"));
        put(&format!("{first}{second}"));
        assert!(look());
        assert_eq!(read(&file).unwrap().len(), 2);
        put(&second);
        assert!(look());
        std::fs::remove_file(&file).unwrap();
        assert!(!look());
        put(&second);
        assert!(!look(), "it is what is used");
    }
}
