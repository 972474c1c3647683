//! Prepares what all containers of the pod share. Once a machine.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvmlet_protocol::{ErrorKind, Failure, Resources, SandboxSpec};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::device::Images;
use crate::failure::{Attempt, fail};
use crate::spawn::{self, Holder};
use crate::volume::Volumes;
use crate::{cgroup, device, interface};

/// Holds the files that every container sees as /etc/hosts, /etc/hostname and /etc/resolv.conf.
pub(crate) const ETC: &str = "/run/kvmlet/etc";
/// The clock is set when it is off by more than this.
const TOLERATED: Duration = Duration::from_millis(10);

/// A pod that is prepared.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What was asked for.
    pub(crate) spec: SandboxSpec,
    /// Its volumes.
    pub(crate) volumes: Volumes,
    /// The process name space that containers share, when they do.
    pub(crate) holder: Option<Holder>,
}

impl Sandbox {
    /// Prepares all of it. What fails leaves the machine half prepared: it is of no use but to be powered off.
    pub(crate) fn prepare(spec: SandboxSpec, images: &mut Images) -> Result<Self, Failure> {
        set_clock(spec.time)?;
        rustix::system::sethostname(spec.hostname.as_bytes()).attempt("set the host name")?;
        if !spec.domain.is_empty() {
            rustix::system::setdomainname(spec.domain.as_bytes()).attempt("set the domain name")?;
        }
        spec.sysctls.iter().try_for_each(|(name, value)| set_sysctl(name, value))?;
        interface::configure(&spec.interfaces)?;
        cgroup::limit_pod(&Resources {
            memory_max: spec.memory_max,
            ..Resources::default()
        })?;
        device::mount_scratch(&spec.scratch)?;
        let volumes = Volumes::create(&spec.volumes, |image| images.mount(image, &spec.pmems))?;
        write_etc(&spec)?;
        let holder = if spec.share_processes { Some(spawn::holder()?) } else { None };
        Ok(Self { spec, volumes, holder })
    }
}

/// Sets the clock to nanoseconds since 1970, unless it is right.
pub(crate) fn set_clock(time: u64) -> Result<(), Failure> {
    let wanted = Duration::from_nanos(time);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if now.abs_diff(wanted) <= TOLERATED {
        return Ok(());
    }
    let wanted = Timespec::try_from(wanted).map_err(|_| fail(ErrorKind::Internal, "the host's time is out of range"))?;
    clock_settime(ClockId::Realtime, wanted).attempt("set the clock")
}

fn set_sysctl(name: &str, value: &str) -> Result<(), Failure> {
    let path = sysctl_path(name).ok_or_else(|| fail(ErrorKind::BadContainer, format!("{name:?} is not a kernel parameter's name")))?;
    fs::write(path, value).wanted(format_args!("set kernel parameter {name} to {value:?}"))
}

/// With a slash in it a name is separated by slashes (`net/ipv4/conf/eth0.1/forwarding`), else by dots.
fn sysctl_path(name: &str) -> Option<String> {
    let path = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    let plain = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
    plain.then(|| format!("/proc/sys/{path}"))
}

fn write_etc(spec: &SandboxSpec) -> Result<(), Failure> {
    fs::create_dir_all(ETC).attempt("create the directory of shared files")?;
    let hostname = format!("{}\n", spec.hostname);
    for (name, text) in [("hosts", &spec.hosts), ("hostname", &hostname), ("resolv.conf", &spec.resolv_conf)] {
        fs::write(format!("{ETC}/{name}"), text).attempt(format_args!("write /etc/{name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::sysctl_path;

    #[test]
    fn a_kernel_parameter_stays_below_proc_sys() {
        assert_eq!(sysctl_path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            sysctl_path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        for name in ["", "..", "a/../b", "/etc/passwd", "a..b", "a/"] {
            assert_eq!(sysctl_path(name), None, "{name:?}");
        }
    }
}
