//! The configuration that the DaemonSet's pod brings: the files of a folder (a ConfigMap and a Secret), for /etc/kvmlet. `config.yaml` is a template,
//! as every host is another Node. What somebody else has put there stays as it is.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, anyhow};

use super::programs::{remove, sync};

/// Where they go.
pub(super) const FOLDER: &str = "/etc/kvmlet";
/// The node's configuration.
pub(super) const CONFIG: &str = "config.yaml";
/// In [`super::programs::BIN`]: the names of files that are ours, a line each.
const OURS: &str = "settings";

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// What is to be done with the files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// To be written.
    pub(super) write: Vec<Setting>,
    /// Somebody else's, which say something else than ours would: their names.
    pub(super) foreign: Vec<String>,
}

/// The files of `folder`, with `variables` in the template. A folder that is not there has none.
pub(super) fn read(folder: &Path, variables: &[(&str, String)]) -> anyhow::Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(settings),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let path = folder.join(&name);
        // A volume's own: ..data, and the folder that it leads to.
        if name.starts_with("..") || !path.is_file() {
            continue;
        }
        let mut content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        if name == CONFIG {
            let text = String::from_utf8(content).with_context(|| format!("read {}", path.display()))?;
            content = fill(&text, variables).map_err(|why| anyhow!("{CONFIG}: {why}"))?.into_bytes();
        }
        settings.push(Setting { name, content });
    }
    settings.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(settings)
}

/// Puts values in the place of `$(NAME)`, as Kubernetes does in a container's arguments.
fn fill(text: &str, variables: &[(&str, String)]) -> Result<String, String> {
    let mut parts = text.split("$(");
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once(')').ok_or("a $( has no end")?;
        let Some((_, value)) = variables.iter().find(|(known, _)| *known == name) else {
            let known: Vec<_> = variables.iter().map(|(known, _)| *known).collect();
            return Err(format!("there is no $({name}), only {}", known.join(", ")));
        };
        filled.push_str(value);
        filled.push_str(rest);
    }
    Ok(filled)
}

/// Compares. `there`: what a file says now, if there is one; `ours`: names of files that were written by this command.
pub(super) fn compare(wanted: &[Setting], there: impl Fn(&str) -> Option<Vec<u8>>, ours: &BTreeSet<String>) -> Changes {
    let mut changes = Changes::default();
    for setting in wanted {
        match there(&setting.name) {
            Some(found) if found == setting.content => {}
            Some(_) if !ours.contains(&setting.name) => changes.foreign.push(setting.name.clone()),
            _ => changes.write.push(setting.clone()),
        }
    }
    changes
}

/// Names of files that were written by this command.
pub(super) fn ours(bin: &Path) -> BTreeSet<String> {
    let names = fs::read_to_string(bin.join(OURS)).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// Notes that these files will be ours, before they are written.
pub(super) fn claim(bin: &Path, settings: &[Setting]) -> io::Result<()> {
    let mut names = ours(bin);
    names.extend(settings.iter().map(|setting| setting.name.clone()));
    let lines: String = names.into_iter().map(|name| name + "\n").collect();
    write(&bin.join(OURS), lines.as_bytes(), 0o600)
}

impl Setting {
    /// Writes it into `folder`, under another name if so wished.
    pub(super) fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        let path = folder.join(name);
        // Everything else may be a key, or have a token in it.
        let mode = if self.name == CONFIG { 0o644 } else { 0o600 };
        write(&path, &self.content, mode).with_context(|| format!("write {}", path.display()))
    }
}

/// Writes a file, whole or not at all, so that it lasts.
pub(super) fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let partial = path.with_extension("partial");
    remove(&partial)?;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(&partial)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    sync(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn variables() -> [(&'static str, String); 2] {
        [("NODE_NAME", "worker-1".into()), ("HOST_IP", "192.0.2.11".into())]
    }

    fn setting(name: &str, content: &str) -> Setting {
        Setting {
            name: name.into(),
            content: content.into(),
        }
    }

    #[test]
    fn a_template_gets_the_hosts_name_and_address() {
        let filled = fill(
            "nodeName: $(NODE_NAME)-kvm\nnodeIP: $(HOST_IP)\nshared: {nodeName: $(NODE_NAME)}\n",
            &variables(),
        );
        let expected = "nodeName: worker-1-kvm\nnodeIP: 192.0.2.11\nshared: {nodeName: worker-1}\n";
        assert_eq!(filled.as_deref(), Ok(expected));
        assert_eq!(fill("costs: $5", &variables()).as_deref(), Ok("costs: $5"));
        let said = fill("$(NODE)", &variables()).unwrap_err();
        assert!(said.contains("$(NODE)") && said.contains("NODE_NAME, HOST_IP"), "{said}");
        assert!(fill("$(NODE", &variables()).is_err());
    }

    #[test]
    fn the_files_of_a_volume_are_read_and_its_own_are_not() {
        let volume = tempfile::tempdir().unwrap();
        let data = volume.path().join("..2026");
        fs::create_dir(&data).unwrap();
        symlink("..2026", volume.path().join("..data")).unwrap();
        for (name, content) in [(CONFIG, "nodeName: $(NODE_NAME)"), ("ca.crt", "$(not a template)")] {
            fs::write(data.join(name), content).unwrap();
            symlink(Path::new("..data").join(name), volume.path().join(name)).unwrap();
        }
        let read = read(volume.path(), &variables()).unwrap();
        assert_eq!(
            read,
            [setting("ca.crt", "$(not a template)"), setting(CONFIG, "nodeName: worker-1")]
        );
        assert_eq!(super::read(Path::new("/nonexistent/kvmlet"), &variables()).unwrap(), []);
    }

    #[test]
    fn what_is_new_or_ours_is_written_and_what_is_somebody_elses_stays() {
        let wanted = ["same", "new", "ours", "theirs"].map(|name| setting(name, "wanted"));
        let there = |name: &str| match name {
            "same" => Some(b"wanted".to_vec()),
            "new" => None,
            _ => Some(b"other".to_vec()),
        };
        let changes = compare(&wanted, there, &BTreeSet::from(["ours".to_owned()]));
        assert_eq!(changes.write, [setting("new", "wanted"), setting("ours", "wanted")]);
        assert_eq!(changes.foreign, ["theirs"]);
    }

    #[test]
    fn what_is_written_is_ours_from_then_on_and_only_root_reads_keys() {
        let (bin, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for settings in [[setting(CONFIG, "a")], [setting("server.key", "b")]] {
            claim(bin.path(), &settings).unwrap();
            settings[0].write(folder.path(), &settings[0].name).unwrap();
        }
        assert_eq!(ours(bin.path()), BTreeSet::from([CONFIG.to_owned(), "server.key".to_owned()]));
        let mode = |name: &str| folder.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(CONFIG), mode("server.key")), (0o644, 0o600));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else");
    }
}
