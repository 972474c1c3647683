//! The host's unit: the package's own, with the programs where `kvmlet install` has put them. Pure.

use std::path::Path;

/// Its name, as the package's: who has one cannot have the other.
pub(super) const NAME: &str = "kvmlet.service";
/// The folder of units that are neither a package's nor gone after a restart of the host (systemd.unit(5)).
pub(super) const FOLDER: &str = "/etc/systemd/system";

/// What the package has.
const PACKAGED: &str = include_str!("../../manifests/systemd/kvmlet.service");
/// By which the file is known again. Edits of the file itself would be lost with the next upgrade.
const MARK: &str = "# Written by `kvmlet install`: change it by `systemctl edit kvmlet`.\n";
/// The package's line of its documents, which are not there.
const DOCUMENTS: &str = "file:///usr/share/doc/kvmlet/install.md";

/// The unit's text for programs in this folder.
pub(super) fn text(programs: &Path) -> String {
    let program = programs.join("kvmlet").display().to_string();
    let unit = PACKAGED.replace("/usr/bin/kvmlet ", &format!("{program} "));
    MARK.to_owned() + &unit.replace(DOCUMENTS, env!("CARGO_PKG_REPOSITORY"))
}

/// Whether a file with this text is `kvmlet install`'s.
pub(super) fn is_ours(text: &str) -> bool {
    text.starts_with(MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_packages_but_for_where_programs_and_documents_are() {
        let made = text(Path::new("/var/lib/kvmlet/bin/d1"));
        let made = made.strip_prefix(MARK).expect("it begins with what it is known by");
        let other: Vec<_> = PACKAGED.lines().zip(made.lines()).filter(|(one, other)| one != other).collect();
        assert_eq!(PACKAGED.lines().count(), made.lines().count());
        assert_eq!(other.len(), 2, "{other:?}");
        assert_eq!(other[0].1, "Documentation=https://github.com/kvmlet/kvmlet");
        assert_eq!(
            other[1].1,
            "ExecStart=/var/lib/kvmlet/bin/d1/kvmlet node --config /etc/kvmlet/config.yaml"
        );
    }

    #[test]
    fn only_what_was_written_by_this_command_is_taken_for_ours() {
        assert!(is_ours(&text(Path::new("/any"))));
        assert!(!is_ours(PACKAGED));
    }
}
