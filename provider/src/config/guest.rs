//! What machines boot.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The guest.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Guest {
    /// The guest's kernel: ELF with a PVH entry, or bzImage. Where `vmlinux` is beside the program, that.
    pub kernel: PathBuf,
    /// With the agent as `/init`. Where `initramfs.cpio` is beside the program, that.
    pub initramfs: PathBuf,
    /// Appended to the guest kernel's command line.
    pub extra_command_line: String,
    /// A serial console into `console.log` of each machine. For debugging: it makes a boot slow.
    pub serial: bool,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            kernel: beside("vmlinux"),
            initramfs: beside("initramfs.cpio"),
            extra_command_line: String::new(),
            serial: false,
        }
    }
}

/// A file of the guest: beside the program, where `kvmlet install` has put both into one folder, or where the package has it.
fn beside(name: &str) -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let file = program.with_file_name(name);
    if file.is_file() {
        file
    } else {
        Path::new("/usr/lib/kvmlet").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_guest_beside_the_program_the_packages_counts() {
        let guest = Guest::default();
        assert_eq!(guest.kernel, Path::new("/usr/lib/kvmlet/vmlinux"));
        assert_eq!(guest.initramfs, Path::new("/usr/lib/kvmlet/initramfs.cpio"));
    }

    #[test]
    fn a_guest_beside_the_program_goes_before_the_packages() {
        let program = std::env::current_exe().unwrap();
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(beside(name), program);
    }
}
