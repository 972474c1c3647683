//! Limits, user, capabilities and Landlock.

use landlock::{ABI, Access, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr, RulesetError, Scope};
use rustix::{
    process::{DumpableBehavior, Resource, Rlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{JailError, step};

/// How much a machine of this size may use of what is counted by process or user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open files.
    pub files: u64,
    /// Threads; the user is the machine's own, so that the count is too.
    pub threads: u64,
    /// Memory that stays, bytes: what rings take.
    pub locked: u64,
}

pub(super) fn limit(limits: &Limits, file_size: u64) -> Result<(), JailError> {
    let all = [
        (Resource::Nofile, limits.files),
        (Resource::Nproc, limits.threads),
        (Resource::Fsize, file_size),
        // A core would hold the guest's memory, secrets included.
        (Resource::Core, 0),
        (Resource::Memlock, limits.locked),
        (Resource::Msgqueue, 0),
    ];
    for (resource, most) in all {
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        setrlimit(resource, limit).map_err(step("set a resource limit"))?;
    }
    Ok(())
}

/// Becomes the machine's user, without groups, without capabilities but those to `keep`, and without a way to get any back.
pub(super) fn change_user(uid: u32, keep: CapabilitySet) -> Result<(), JailError> {
    clear_ambient_capability_set().map_err(step("clear the ambient capabilities"))?;
    for capability in CapabilitySet::all().difference(keep).iter() {
        match remove_capability_from_bounding_set(capability) {
            // Newer than the kernel.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(step("drop a capability")(error)),
        }
    }
    let gid = rustix::process::Gid::from_raw(uid);
    let uid = rustix::process::Uid::from_raw(uid);
    // The process has one thread.
    set_thread_groups(&[]).map_err(step("leave all groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(step("change the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(step("change the user"))?;
    let kept = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, kept).map_err(step("drop capabilities"))?;
    // Nobody but root reads its memory, the next process of the same user neither.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("refuse to be dumped"))?;
    set_no_new_privs(true).map_err(step("refuse new privileges"))
}

/// What Landlock leaves of files.
pub(super) enum Files {
    /// None but those that are open.
    None,
    /// All that the root has.
    Root,
}

/// No file, no port, no signal to others, as far as this kernel's Landlock goes; open files stay what they are. A second wall behind the
/// root, which hosts without Landlock have not.
pub(super) fn landlock(files: Files) -> Result<(), JailError> {
    let status = restrict(files).map_err(|error| step("restrict the process by Landlock")(std::io::Error::other(error)))?;
    tracing::debug!(?status.ruleset, "landlock");
    Ok(())
}

fn restrict(files: Files) -> Result<RestrictionStatus, RulesetError> {
    let rules = match files {
        Files::None => Ruleset::default().handle_access(AccessFs::from_all(ABI::V6)),
        Files::Root => Ok(Ruleset::default()),
    };
    rules
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V6)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{ErrorKind, Read},
        net::{Ipv4Addr, TcpListener},
        thread,
    };

    use landlock::LandlockStatus;

    use super::*;

    /// Runs `what` on a thread that Landlock alone confines, no filter and no other root; nothing where the kernel has no Landlock.
    fn behind_landlock(files: Files, what: impl FnOnce(ABI) + Send + 'static) {
        let work = move || match restrict(files).expect("Landlock, or none").landlock {
            LandlockStatus::Available { effective_abi, .. } => what(effective_abi),
            none => eprintln!("Landlock was not tested, as this kernel has none: {none:?}"),
        };
        // Only the thread is confined.
        if let Err(panic) = thread::spawn(work).join() {
            std::panic::resume_unwind(panic);
        }
    }

    #[test]
    fn landlock_alone_leaves_a_machine_no_file_but_those_that_are_open() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        std::fs::write(&path, "open").expect("it is written");
        let mut open = File::open(&path).expect("nothing forbids it yet");
        behind_landlock(Files::None, move |_| {
            let refused = |done: std::io::Result<()>| assert_eq!(done.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
            refused(File::open(&path).map(drop));
            refused(File::create(&path).map(drop));
            refused(File::create(path.with_extension("new")).map(drop));
            refused(std::fs::read_dir("/").map(drop));
            refused(std::fs::remove_file(&path));
            let mut text = String::new();
            open.read_to_string(&mut text).expect("an open file stays what it is");
            assert_eq!(text, "open");
        });
        // Other threads are as they were.
        assert!(directory.path().read_dir().is_ok());
    }

    #[test]
    fn landlock_alone_leaves_neither_a_machine_nor_a_shares_process_a_port() {
        for files in [Files::None, Files::Root] {
            behind_landlock(files, |abi| {
                if abi < ABI::V4 {
                    eprintln!("ports were not tested, as this kernel's Landlock knows none: {abi:?}");
                    return;
                }
                let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop);
                assert_eq!(bound.map_err(|error| error.kind()), Err(ErrorKind::PermissionDenied));
            });
        }
    }

    #[test]
    fn landlock_leaves_a_shares_process_the_files_of_its_root() {
        behind_landlock(Files::Root, |_| assert!(File::open("/").is_ok()));
    }
}
