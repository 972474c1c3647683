//! Reads what a host is like. Opens `/dev/kvm` and `/dev/net/tun`, and makes nothing of them.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use kvmlet_network::NetworkConfig;
use kvmlet_provider::{act::chain, cgroup::IoLimits, config::Config};
use rustix::process::{Resource, getrlimit};
use vmm_lib::kvm;

use crate::facts::{Device, Facts, Space};

/// Where daemons without one find programs.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Programs that the daemon and CNI plugins run.
const PROGRAMS: [&str; 3] = ["nft", "mkfs.ext4", "iptables"];

impl Facts {
    /// Looks at this host for a node of this configuration, whose machines run `program`. Whether its processor may be an emulated one is asked for.
    pub fn gather(config: &Config, program: &Path, use_emulation: bool) -> Self {
        let system = rustix::system::uname();
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let has = |flag: &str| cpuinfo.split_ascii_whitespace().any(|word| word == flag);
        let status = read("/proc/self/status").unwrap_or_default();
        let network = NetworkConfig::without_addresses(config.network_dir()).with_plugin_dirs(&config.network.plugin_dirs);
        let kvm = device("/dev/kvm", (10, 232));
        let kvm_works = match kvm {
            Device::Opens => kvm::check().map_err(|error| chain(&error)),
            _ => Err("/dev/kvm does not open".into()),
        };
        Self {
            architecture: system.machine().to_string_lossy().into_owned(),
            kernel: system.release().to_string_lossy().into_owned(),
            virtualization: ["vmx", "svm"].into_iter().find(|flag| has(flag)),
            nested: has("hypervisor"),
            emulated: has("hypervisor") && is_emulated(),
            use_emulation,
            product: product(),
            user: rustix::process::geteuid().as_raw(),
            capabilities: field(&status, "CapEff:")
                .and_then(|hex| u64::from_str_radix(hex, 16).ok())
                .unwrap_or(0),
            kvm,
            kvm_works,
            tun: device("/dev/net/tun", (10, 200)),
            open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
            max_pods: config.max_pods,
            controllers: controllers(Path::new("/sys/fs/cgroup")),
            io: IoLimits::of_node(config).map(drop).map_err(|error| chain(&error)),
            plugins: plugins(&network),
            plugin_dirs: network.plugin_dirs,
            programs: programs(&env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.into())),
            namespaces: names("/proc/self/ns"),
            root: read("/proc/self/mountinfo").and_then(|text| root_type(&text)),
            seccomp: field(&status, "Seccomp:").is_some(),
            security_modules: read("/sys/kernel/security/lsm"),
            guest_kernel: file(&config.guest.kernel),
            guest_initramfs: file(&config.guest.initramfs),
            program: file(program),
            state_dir: config.state_dir.clone(),
            space: space(&config.state_dir),
            reserved: config.reserved.ephemeral_storage.value(),
            now: SystemTime::now(),
        }
    }
}

/// Whether the hypervisor calls itself TCG, QEMU's emulation (CPUID leaf 0x4000_0000, which only guests have: `target/i386/cpu.c`).
fn is_emulated() -> bool {
    let said = std::arch::x86_64::__cpuid(0x4000_0000);
    [said.ebx, said.ecx, said.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG"
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The word after a name at the beginning of a line.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn product() -> Option<String> {
    let of = |name: &str| read(&format!("/sys/class/dmi/id/{name}")).map(|text| text.trim().to_owned());
    let parts = [of("sys_vendor"), of("product_name")].into_iter().flatten();
    let all = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    (!all.is_empty()).then_some(all)
}

fn device(path: &str, (major, minor): (u32, u32)) -> Device {
    let is = match fs::metadata(path) {
        Ok(is) => is,
        Err(error) if error.kind() == ErrorKind::NotFound => return Device::Missing,
        Err(error) => {
            return Device::Refused {
                error: error.to_string(),
                mode: 0,
                owner: (0, 0),
            };
        }
    };
    if !is.file_type().is_char_device() || is.rdev() != rustix::fs::makedev(major, minor) {
        return Device::Other;
    }
    match fs::File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Opens,
        Err(error) => Device::Refused {
            error: error.to_string(),
            mode: is.permissions().mode() & 0o7777,
            owner: (is.uid(), is.gid()),
        },
    }
}

fn controllers(root: &Path) -> Option<Vec<String>> {
    let is = rustix::fs::statfs(root).ok()?;
    // CGROUP2_SUPER_MAGIC of linux/magic.h.
    if is.f_type != 0x6367_7270 {
        return None;
    }
    let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    Some(text.split_ascii_whitespace().map(str::to_owned).collect())
}

fn plugins(network: &NetworkConfig) -> Vec<(String, bool)> {
    let is_there = |name: &str| network.plugin_dirs.iter().any(|dir| is_program(&dir.join(name)));
    let types = network.config_list(true).plugins;
    let types = types.iter().flat_map(|plugin| [&plugin["type"], &plugin["ipam"]["type"]]);
    let names = types.filter_map(|name| name.as_str());
    names.map(|name| (name.to_owned(), is_there(name))).collect()
}

fn programs(path: &str) -> Vec<(&'static str, bool)> {
    let is_there = |name: &str| env::split_paths(path).any(|dir| is_program(&dir.join(name)));
    PROGRAMS.into_iter().map(|name| (name, is_there(name))).collect()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|is| is.is_file() && is.permissions().mode() & 0o111 != 0)
}

/// The type of what is mounted last at `/` (proc_pid_mountinfo(5)).
fn root_type(mountinfo: &str) -> Option<String> {
    let at_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let (_, after) = mountinfo.lines().rfind(at_root)?.split_once(" - ")?;
    after.split(' ').next().map(str::to_owned)
}

fn file(path: &Path) -> (PathBuf, Result<SystemTime, String>) {
    let written = fs::File::open(path).and_then(|file| file.metadata()?.modified());
    (path.into(), written.map_err(|error| error.to_string()))
}

fn space(directory: &Path) -> Result<Space, String> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let seen = rustix::fs::statvfs(there).map_err(|error| format!("look at {}: {error}", there.display()))?;
    Ok(Space {
        available: seen.f_bavail.saturating_mul(seen.f_frsize),
        total: seen.f_blocks.saturating_mul(seen.f_frsize),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_what_was_mounted_there_last() {
        let text = "1 1 0:2 / / rw - rootfs rootfs rw\n22 1 0:21 / /proc rw - proc proc rw\n30 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n";
        assert_eq!(root_type(text).as_deref(), Some("ext4"));
        assert_eq!(root_type("1 1 0:2 / / rw - rootfs none rw\n").as_deref(), Some("rootfs"));
        assert_eq!(root_type(""), None);
    }

    #[test]
    fn a_device_is_known_by_its_number_not_by_its_name() {
        assert_eq!(device("/dev/null", (1, 3)), Device::Opens);
        assert_eq!(device("/dev/null", (10, 232)), Device::Other);
        assert_eq!(device("/dev/no-such-device", (10, 232)), Device::Missing);
    }

    #[test]
    fn plugins_are_those_of_kvmlets_own_network_and_have_to_be_programs() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("portmap"), "").unwrap();
        let bridge = dir.path().join("bridge");
        fs::write(&bridge, "").unwrap();
        fs::set_permissions(&bridge, fs::Permissions::from_mode(0o755)).unwrap();
        let network = NetworkConfig::without_addresses(dir.path().into()).with_plugin_dirs(&[dir.path().into()]);
        let found = plugins(&network);
        let expected = [("bridge", true), ("host-local", false), ("portmap", false)];
        assert_eq!(found, expected.map(|(name, is_there)| (name.to_owned(), is_there)));
    }

    #[test]
    fn a_file_system_that_holds_no_control_groups_is_not_version_2() {
        assert_eq!(controllers(Path::new("/proc")), None);
        assert_eq!(controllers(Path::new("/nonexistent")), None);
    }

    #[test]
    fn room_is_looked_for_where_the_directory_will_be() {
        let dir = tempfile::tempdir().unwrap();
        let found = space(&dir.path().join("not/yet")).unwrap();
        assert!(found.total > 0 && found.available <= found.total, "{found:?}");
    }
}
