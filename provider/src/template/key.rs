//! What a template depends on. A template of another key is thrown away: it may not run here, or not as what is installed now would.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};
use vmm_lib::kvm;

use super::{MEMORY, comb, command_line, guest_command_line};
use crate::{
    act::chain,
    config::{Guest, Machines},
};

/// Changes when templates are made or taken up in another way.
const FORM: u32 = 2;

/// The key of templates of this guest by this monitor on this host as it is now, in hexadecimal.
pub(super) fn key(guest: &Guest, machines: &Machines, program: &Path) -> Result<String, String> {
    let mut all = Sha256::new();
    let mut part = |name: &str, content: &[u8]| {
        // With its length, so that nothing can slip from one part into the next.
        all.update(format!("{name} {}\n", content.len()));
        all.update(content);
    };
    part("form", &FORM.to_le_bytes());
    part("shape", format!("{MEMORY} {:?}", comb()).as_bytes());
    part("command line", command_line(&guest_command_line(guest, machines)).as_bytes());
    for path in [program, &guest.kernel, &guest.initramfs] {
        part("file", &digest(path).map_err(|error| format!("read {}: {error}", path.display()))?);
    }
    let system = rustix::system::uname();
    part("host kernel", system.release().to_bytes());
    part("its build", system.version().to_bytes());
    let processors = fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("read /proc/cpuinfo: {error}"))?;
    part("processor", processor(&processors).as_bytes());
    part("KVM", &kvm::fingerprint().map_err(|error| chain(&error))?);
    Ok(hexadecimal(&all.finalize()))
}

/// Of the first processor what is not its own or the moment's: model and microcode, flags and bugs.
fn processor(cpuinfo: &str) -> String {
    const NAMES: [&str; 8] = [
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "microcode",
        "flags",
        "bugs",
    ];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let named = |line: &&str| line.split(':').next().is_some_and(|name| NAMES.contains(&name.trim()));
    first.lines().filter(named).fold(String::new(), |all, line| all + line + "\n")
}

fn digest(path: &Path) -> io::Result<Vec<u8>> {
    let (mut file, mut digest, mut piece) = (File::open(path)?, Sha256::new(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finalize().to_vec()),
            length => digest.update(&piece[..length]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microcode_counts_and_the_clock_does_not() {
        let of = |microcode: &str, clock: &str| {
            processor(&format!(
                "processor\t: 0\nmodel\t\t: 85\nmicrocode\t: {microcode}\ncpu MHz\t\t: {clock}\n\nprocessor\t: 1\nmodel\t\t: 85\n"
            ))
        };
        assert_eq!(of("0x1", "2000.1"), of("0x1", "2100.7"));
        assert_ne!(of("0x1", "2000.1"), of("0x2", "2000.1"));
    }

    #[test]
    fn a_key_is_the_same_until_a_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let guest = Guest {
            kernel: file("kernel"),
            initramfs: file("initramfs"),
            ..Guest::default()
        };
        let (monitor, plain) = (file("monitor"), Machines::default());
        let first = key(&guest, &plain, &monitor).unwrap();
        assert_eq!((first.len(), &key(&guest, &plain, &monitor).unwrap()), (64, &first));
        for name in ["kernel", "initramfs", "monitor"] {
            let before = key(&guest, &plain, &monitor).unwrap();
            fs::write(directory.path().join(name), "another").unwrap();
            assert_ne!(key(&guest, &plain, &monitor).unwrap(), before, "{name}");
        }
        let other = Guest {
            extra_command_line: "quiet".into(),
            ..guest.clone()
        };
        assert_ne!(key(&other, &plain, &monitor).unwrap(), key(&guest, &plain, &monitor).unwrap());
        let watched = Machines {
            watchdog_seconds: 30,
            ..Machines::default()
        };
        assert_ne!(key(&guest, &watched, &monitor).unwrap(), key(&guest, &plain, &monitor).unwrap());
        fs::remove_file(&guest.kernel).unwrap();
        assert!(key(&guest, &plain, &monitor).unwrap_err().contains("kernel"));
    }
}
