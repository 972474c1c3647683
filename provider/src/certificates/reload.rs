//! Certificate files that somebody else renews (`tls.certFile`, the files of a kubeconfig): read again now and then, and used from then on when
//! they have changed. No connection is cut. Files that do not belong together yet, as while they are being replaced, change nothing.

use std::{path::Path, time::Duration};

use tracing::{info, warn};

/// How often they are looked at (the kubelet: at once by inotify, and each minute).
const PERIOD: Duration = Duration::from_secs(10);

/// What was made of files.
pub(super) struct Loaded<T> {
    /// As messages name it.
    what: &'static str,
    used: T,
    /// What was told last.
    trouble: String,
}

impl<T: PartialEq> Loaded<T> {
    /// This is in use.
    pub(super) fn new(what: &'static str, used: T) -> Self {
        Self {
            what,
            used,
            trouble: String::new(),
        }
    }

    /// Uses what the files hold now, if that is something else; answers whether it is.
    pub(super) fn look(&mut self, read: anyhow::Result<T>, take: impl FnOnce(&T) -> anyhow::Result<()>) -> bool {
        let done = read.and_then(|held| {
            if held == self.used {
                return Ok(false);
            }
            take(&held)?;
            info!("the {} has changed on disk and is used from now on", self.what);
            self.used = held;
            Ok(true)
        });
        let trouble = done.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        if !trouble.is_empty() && trouble != self.trouble {
            warn!(why = trouble, "the {} on disk cannot be used: the old one stays", self.what);
        }
        self.trouble = trouble;
        done.unwrap_or(false)
    }

    /// Looks for ever; makes something of these files only where they say something new.
    pub(super) async fn keep(
        mut self,
        files: &[impl AsRef<Path>],
        read: impl Fn() -> anyhow::Result<T>,
        take: impl Fn(&T) -> anyhow::Result<()>,
    ) {
        let mut said = Vec::new();
        loop {
            tokio::time::sleep(PERIOD).await;
            let says: Vec<_> = files.iter().map(|file| std::fs::read(file).ok()).collect();
            if says != said {
                said = says;
                self.look(read(), &take);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{pair::Pair, pair_of_files, plan::Template, show, testing::Authority},
        *,
    };

    #[test]
    fn files_that_change_are_used_once_they_belong_together() {
        let directory = tempfile::tempdir().unwrap();
        let files = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
        let authority = Authority::new();
        let template = Template::serving("n", "10.0.0.1".parse().unwrap());
        let (first, second) = (authority.pair(&template, 1, 100), authority.pair(&template, 2, 200));
        let put = |file: usize, text: &str| std::fs::write(&files[file], text).unwrap();
        put(0, &first.certificate);
        put(1, &first.key);

        let shown = kvmlet_server::ServingCertificate::none();
        show(&shown, &first).unwrap();
        let leaf = |pair: &Pair| pair.der().0[0].clone();
        let is_shown = |pair: &Pair| shown.present().unwrap().cert[0] == leaf(pair);
        let mut loaded = Loaded::new("serving certificate", pair_of_files(&files).unwrap());
        let mut look = || loaded.look(pair_of_files(&files), |pair| show(&shown, pair));
        assert!(!look(), "nothing has changed");
        put(0, &second.certificate);
        assert!(!look() && is_shown(&first), "the key is still the first one's");
        put(1, &second.key);
        assert!(look() && is_shown(&second));
        assert!(!look());
        put(0, "");
        assert!(!look() && is_shown(&second));
        std::fs::remove_file(&files[1]).unwrap();
        assert!(!look() && is_shown(&second));
    }
}
