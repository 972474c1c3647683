//! What the process may do: resource limits, user, groups, capabilities.

use std::io;

use kvmlet_protocol::{ErrorKind, Failure, Identity, Rlimit};
use rustix::fs::{FileType, Gid, Uid, fchown, fstat, major, minor};
use rustix::io::Errno;
use rustix::process::{Resource, setrlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::failure::{Attempt, fail};

/// By their numbers.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_STACK", Resource::Stack),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
];

/// Sets each limit; `u64::MAX` is none.
pub(crate) fn set_rlimits(limits: &[Rlimit]) -> Result<(), Failure> {
    for limit in limits {
        let unknown = || fail(ErrorKind::BadContainer, format!("{:?} is not a resource limit", limit.name));
        let (_, resource) = RESOURCES.iter().find(|(name, _)| *name == limit.name).ok_or_else(unknown)?;
        let value = |v: u64| (v != u64::MAX).then_some(v);
        let wanted = rustix::process::Rlimit {
            current: value(limit.soft),
            maximum: value(limit.hard),
        };
        setrlimit(*resource, wanted).wanted(format_args!("set {}", limit.name))?;
    }
    Ok(())
}

/// Gives the standard streams to the user, so that it may open /dev/stdout anew.
pub(crate) fn own_streams(uid: u32) {
    fn own(stream: impl std::os::fd::AsFd, uid: u32) {
        let Ok(stat) = fstat(&stream) else { return };
        let null =
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3);
        if !null {
            // A stream that cannot change hands still works as it is.
            let _ = fchown(stream, Some(Uid::from_raw(uid)), None);
        }
    }
    own(io::stdin(), uid);
    own(io::stdout(), uid);
    own(io::stderr(), uid);
}

/// The set of these names.
pub(crate) fn capabilities(names: &[String]) -> Result<CapabilitySet, Failure> {
    names.iter().try_fold(CapabilitySet::empty(), |set, name| {
        let number = name
            .strip_prefix("CAP_")
            .and_then(|short| CAPABILITIES.iter().position(|c| *c == short));
        let number = number.ok_or_else(|| fail(ErrorKind::BadContainer, format!("{name:?} is not a capability")))?;
        Ok(set | CapabilitySet::from_bits_retain(1 << number))
    })
}

/// Becomes the user, with these capabilities and no way to others: bounding, permitted, effective. None is inheritable, as in
/// current runtimes: files with inheritable capabilities must not raise an ordinary user.
pub(crate) fn assume(user: &Identity, names: &[String]) -> Result<(), Failure> {
    let wanted = capabilities(names)?;
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !wanted.contains(one) {
            match thread::remove_capability_from_bounding_set(one) {
                // Numbers the kernel does not know.
                Err(Errno::INVAL) => break,
                result => result.attempt("drop a capability")?,
            }
        }
    }
    thread::set_keep_capabilities(true).attempt("keep capabilities")?;
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    thread::set_thread_groups(&groups).attempt("set the supplementary groups")?;
    let gid = Gid::from_raw(user.gid);
    thread::set_thread_res_gid(gid, gid, gid).attempt("set the group")?;
    let uid = Uid::from_raw(user.uid);
    thread::set_thread_res_uid(uid, uid, uid).attempt("set the user")?;
    let permitted = thread::capabilities(None).attempt("read the capabilities")?.permitted & wanted;
    let sets = CapabilitySets {
        effective: permitted,
        permitted,
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, sets).attempt("set the capabilities")?;
    thread::set_keep_capabilities(false).attempt("keep no capabilities")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_names_stand_for_their_numbers() {
        let all = |names: &[&str]| capabilities(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            all(&["CAP_CHOWN", "CAP_MKNOD"]).unwrap(),
            CapabilitySet::CHOWN | CapabilitySet::MKNOD
        );
        assert_eq!(all(&["CAP_CHECKPOINT_RESTORE"]).unwrap(), CapabilitySet::CHECKPOINT_RESTORE);
        assert_eq!(all(&["CAP_SYS_ADMIN"]).unwrap(), CapabilitySet::SYS_ADMIN);
        assert!(all(&["CHOWN"]).is_err() && all(&["CAP_ALL"]).is_err());
    }
}
