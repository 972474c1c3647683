//! Where the node's certificates come from. Names and meanings of the keys are the kubelet's where it has one.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Config;

/// Certificates of the kubelet port, PEM files.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tls {
    /// Serving certificate of the kubelet port, for `nodeIP` (PEM).
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "required without `serverTLSBootstrap`")))]
    cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[serde(default)]
    #[cfg_attr(test, schemars(extend("x-default" = "required without `serverTLSBootstrap`")))]
    key_file: Option<PathBuf>,
    /// Authority of the clients of the kubelet port, the API server among them.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: PathBuf,
}

impl Tls {
    /// Files of the serving certificate and its key, unless it is asked for.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        Some((self.cert_file.as_deref()?, self.key_file.as_deref()?))
    }
}

/// The shortest life that a request may ask for (validation of CertificateSigningRequest).
const SHORTEST: i32 = 600;

impl Config {
    /// Where certificates that were asked for are.
    pub fn pki_dir(&self) -> PathBuf {
        self.state_dir.join("pki")
    }

    /// Whether the client certificate is renewed.
    pub fn renews_client_certificate(&self) -> bool {
        self.rotate_certificates.unwrap_or(self.bootstrap_kubeconfig.is_some())
    }

    /// What of the certificates' settings does not go together, all of it.
    pub(super) fn certificate_conflicts(&self) -> Vec<String> {
        let mut conflicts = Vec::new();
        let files = [("tls.certFile", &self.tls.cert_file), ("tls.keyFile", &self.tls.key_file)];
        for (key, file) in files {
            match file {
                Some(_) if self.server_tls_bootstrap => conflicts.push(format!("{key} and serverTLSBootstrap: true exclude one another")),
                None if !self.server_tls_bootstrap => conflicts.push(format!("{key} is missing, or serverTLSBootstrap: true")),
                _ => {}
            }
        }
        if self.bootstrap_kubeconfig.as_ref() == Some(&self.kubeconfig) {
            conflicts.push("bootstrapKubeconfig and kubeconfig are the same file".into());
        }
        if let Some(seconds) = self.certificate_expiration_seconds {
            if seconds < SHORTEST {
                conflicts.push(format!("certificateExpirationSeconds: {seconds} is less than {SHORTEST}"));
            }
            if !self.server_tls_bootstrap && !self.renews_client_certificate() && self.bootstrap_kubeconfig.is_none() {
                conflicts.push(
                    "certificateExpirationSeconds means nothing without rotateCertificates, bootstrapKubeconfig or serverTLSBootstrap"
                        .into(),
                );
            }
        }
        conflicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &str, tls: &str) -> Result<Config, String> {
        let text = format!(
            "apiVersion: kvmlet.io/v1alpha1\nkind: KvmletConfiguration\nnodeName: n\nnodeIP: 10.0.0.1\nkubeconfig: /k\n\
             tls: {{clientCAFile: /a{tls}}}\n{keys}"
        );
        Config::parse(Path::new("config.yaml"), &text).map_err(|error| error.to_string())
    }

    #[test]
    fn certificates_are_files_or_asked_for() {
        let files = parse("", ", certFile: /c, keyFile: /y").unwrap();
        assert_eq!(files.tls.files(), Some((Path::new("/c"), Path::new("/y"))));
        assert!(!files.renews_client_certificate());
        let asked = parse("serverTLSBootstrap: true\nbootstrapKubeconfig: /b\n", "").unwrap();
        assert_eq!(asked.tls.files(), None);
        assert!(asked.renews_client_certificate());
        assert_eq!(asked.pki_dir(), Path::new("/var/lib/kvmlet/pki"));
        let once = parse("serverTLSBootstrap: true\nbootstrapKubeconfig: /b\nrotateCertificates: false\n", "").unwrap();
        assert!(!once.renews_client_certificate());
    }

    #[test]
    fn settings_that_do_not_go_together_are_all_named() {
        let error = parse("", "").unwrap_err();
        assert_eq!(
            error,
            "configuration config.yaml: tls.certFile is missing, or serverTLSBootstrap: true; \
             tls.keyFile is missing, or serverTLSBootstrap: true"
        );
        let error = parse("certificateExpirationSeconds: 60\n", ", certFile: /c").unwrap_err();
        for words in [
            "tls.keyFile is missing",
            "60 is less than 600",
            "means nothing without rotateCertificates",
        ] {
            assert!(error.contains(words), "{error}");
        }
        let keys = "serverTLSBootstrap: true\nbootstrapKubeconfig: /k\n";
        let error = parse(keys, ", certFile: /c, keyFile: /y").unwrap_err();
        for words in [
            "tls.certFile and serverTLSBootstrap",
            "tls.keyFile and serverTLSBootstrap",
            "the same file",
        ] {
            assert!(error.contains(words), "{error}");
        }
    }
}
