//! Lists into BPF programs, and programs onto threads. A thread has the process's filter, inherited, and its own on top: what it may call is
//! what both allow. Different threads have different ones, so none is synchronised to the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Condition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::{
    JailError,
    calls::{Call, Needs, OWN, Role, SHARE},
};

/// The filters of all roles, ready to be installed; made while the process may still do anything.
#[derive(Debug, Clone)]
pub struct Filters(Arc<BTreeMap<Role, Vec<BpfProgram>>>);

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Role {
    /// Numbers of the system calls on its lists, whatever their arguments; none for one that no machine of these needs has.
    pub fn listed(self, needs: Needs) -> BTreeSet<i64> {
        let rules = self.calls(needs).and_then(|calls| rules(calls).ok());
        rules.unwrap_or_default().into_keys().collect()
    }
}

impl Filters {
    /// Compiles them for a machine of these needs.
    pub fn new(needs: Needs) -> Result<Self, JailError> {
        let mut filters = BTreeMap::new();
        for role in OWN {
            let Some(calls) = role.calls(needs) else { continue };
            let calls = rules(calls)?;
            filters.insert(role, vec![compile(calls, SeccompAction::KillProcess, SeccompAction::Allow)?]);
        }
        filters.insert(Role::Process, whole(Role::Process.calls(needs).unwrap_or_default())?);
        Ok(Self(Arc::new(filters)))
    }

    /// Confines the calling thread to what its role calls. Never taken back.
    pub fn enter(&self, role: Role) -> Result<(), JailError> {
        let programs = self.0.get(&role);
        apply(programs.ok_or_else(|| JailError::Filter(format!("the machine was started without one for {role:?}")))?)
    }
}

/// Confines the calling thread, and those that it makes, to what a shared directory's process calls.
pub(super) fn enter_share() -> Result<(), JailError> {
    apply(&whole(SHARE.to_vec())?)
}

fn apply(programs: &[BpfProgram]) -> Result<(), JailError> {
    for program in programs {
        apply_filter(program).map_err(|error| JailError::Filter(error.to_string()))?;
    }
    Ok(())
}

/// Programs of a whole process, which makes threads.
fn whole(calls: Vec<&'static [Call]>) -> Result<Vec<BpfProgram>, JailError> {
    let process = compile(rules(calls)?, SeccompAction::KillProcess, SeccompAction::Allow)?;
    // clone3's flags cannot be looked at. Without it the C library takes clone, whose flags can.
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let clone3 = compile(Rules::from([(libc::SYS_clone3, vec![])]), SeccompAction::Allow, unknown)?;
    Ok(vec![clone3, process])
}

fn compile(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<BpfProgram, JailError> {
    let refused = |error: seccompiler::BackendError| JailError::Filter(error.to_string());
    SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(refused)
}

/// One rule is enough to let a call pass; a call without rules always passes.
fn rules(calls: Vec<&'static [Call]>) -> Result<Rules, JailError> {
    let mut all = Rules::new();
    let (any, some): (Vec<&Call>, Vec<&Call>) = calls.into_iter().flatten().partition(|call| matches!(call, Call::Any(_)));
    for call in some {
        let (number, new) = alternatives(call)?;
        let rules = all.entry(number).or_default();
        for rule in new {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
    }
    for call in any {
        all.insert(alternatives(call)?.0, vec![]);
    }
    Ok(all)
}

fn alternatives(call: &Call) -> Result<(i64, Vec<SeccompRule>), JailError> {
    let refused = |error: seccompiler::BackendError| JailError::Filter(error.to_string());
    let rule = |argument, length, is, value| {
        let condition = Condition::new(argument, length, is, value)?;
        SeccompRule::new(vec![condition])
    };
    Ok(match *call {
        Call::Any(number) => (number, vec![]),
        Call::OneOf(number, argument, values) => {
            let rules = values.iter().map(|value| rule(argument, Length::Dword, Is::Eq, *value));
            (number, rules.collect::<Result<_, _>>().map_err(refused)?)
        }
        Call::Exactly(number, argument, value) => (number, vec![rule(argument, Length::Qword, Is::Eq, value).map_err(refused)?]),
        Call::Without(number, argument, bits) => (number, vec![rule(argument, Length::Qword, Is::MaskedEq(bits), 0).map_err(refused)?]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that a machine may be.
    const ALL: Needs = Needs {
        template: true,
        rings: true,
    };
    const NO_RINGS: Needs = Needs { rings: false, ..ALL };

    fn of(role: Role, needs: Needs) -> Rules {
        rules(role.calls(needs).unwrap()).unwrap()
    }

    #[test]
    fn no_kind_of_thread_is_forgotten() {
        for (number, role) in Role::all().enumerate() {
            assert_eq!(role as usize, number, "{role:?}");
        }
        // The last one that is declared.
        assert_eq!(Role::all().last(), Some(Role::Fs));
    }

    #[test]
    fn every_list_becomes_a_program_that_the_kernel_takes() {
        let filters = Filters::new(ALL).unwrap();
        for (role, programs) in &*filters.0 {
            // BPF_MAXINSNS.
            assert!(programs.iter().all(|program| program.len() < 4096), "{role:?}");
        }
    }

    #[test]
    fn no_thread_may_open_execute_mount_trace_or_make_a_process_or_a_socket() {
        let never = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_kill,
            libc::SYS_pidfd_getfd,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_io_uring_enter,
            libc::SYS_keyctl,
            libc::SYS_memfd_create,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
        ];
        let process = of(Role::Process, NO_RINGS);
        for number in never {
            assert!(!process.contains_key(&number), "system call {number}");
        }
    }

    #[test]
    fn only_a_disk_with_a_ring_uses_one_and_only_a_process_that_has_such_disks_makes_one() {
        for role in OWN {
            let Some(calls) = role.calls(ALL) else { continue };
            let calls = rules(calls).unwrap();
            assert_eq!(calls.contains_key(&libc::SYS_io_uring_enter), role == Role::BlockRing, "{role:?}");
            assert!(!calls.contains_key(&libc::SYS_io_uring_setup) && !calls.contains_key(&libc::SYS_io_uring_register));
        }
        // With a ring, no file is reached in any other way.
        let ring = of(Role::BlockRing, ALL);
        for number in [libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_fdatasync, libc::SYS_fallocate] {
            assert!(!ring.contains_key(&number), "system call {number}");
        }
        let process = of(Role::Process, ALL);
        assert!(process.contains_key(&libc::SYS_io_uring_setup) && process.contains_key(&libc::SYS_io_uring_register));
        assert!(Role::BlockRing.calls(NO_RINGS).is_none());
        let without = Filters::new(NO_RINGS).unwrap().enter(Role::BlockRing);
        assert!(without.unwrap_err().to_string().contains("BlockRing"));
    }

    #[test]
    fn what_a_role_may_call_the_process_may_call() {
        let process = of(Role::Process, ALL);
        for role in OWN {
            for (number, own) in of(role, ALL) {
                let all = &process[&number];
                assert!(
                    all.is_empty() || (!own.is_empty() && own.iter().all(|rule| all.contains(rule))),
                    "{role:?} {number}"
                );
            }
        }
    }

    #[test]
    fn only_processors_run_a_guest_and_none_makes_threads_or_machines() {
        let ioctls = |role: Role| of(role, ALL).get(&libc::SYS_ioctl).cloned().unwrap_or_default();
        let (_, run) = alternatives(&Call::OneOf(libc::SYS_ioctl, 1, &[0xae80])).unwrap();
        for role in OWN {
            assert_eq!(ioctls(role).contains(&run[0]), role == Role::Vcpu, "{role:?}");
            assert_eq!(of(role, ALL).contains_key(&libc::SYS_clone), role == Role::Control, "{role:?}");
        }
        let (_, create) = alternatives(&Call::OneOf(libc::SYS_ioctl, 1, &[0xae01])).unwrap();
        assert!(!ioctls(Role::Vcpu).contains(&create[0]));
    }
}
