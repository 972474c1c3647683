//! The default seccomp profile (RuntimeDefault): what the usual runtimes allow. System calls known to this list are allowed unless
//! named in it; newer ones answer ENOSYS, so that programs fall back to what they know.
//!
//! Only x86-64's own system calls: those of 32-bit programs answer ENOSYS.

use kvmlet_protocol::Failure;
use libc::sock_filter;
use rustix::thread::CapabilitySet;

use super::credentials::capabilities;
use crate::failure::Attempt;
use crate::sys;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the seccomp profile is written for x86-64's system call numbers");

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// mseal, of Linux 6.10.
const LAST: u32 = 462;
/// Numbers between the old table of x86-64 and the one all architectures share.
const UNUSED: std::ops::RangeInclusive<u32> = 335..=423;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAME_SPACES: u32 = 0x7e02_0000;
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const FAMILIES_REFUSED: [libc::c_int; 2] = [libc::AF_ALG, libc::AF_VSOCK];

/// Never allowed.
const REFUSED: [libc::c_long; 27] = [
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_pivot_root,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_nfsservctl,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_vserver,
    libc::SYS_afs_syscall,
    libc::SYS_tuxcall,
    libc::SYS_getpmsg,
    libc::SYS_putpmsg,
    libc::SYS_security,
    libc::SYS_epoll_ctl_old,
    libc::SYS_epoll_wait_old,
];

/// Allowed to those who have one of the capabilities.
const PRIVILEGED: [(CapabilitySet, &[libc::c_long]); 14] = [
    (
        CapabilitySet::SYS_ADMIN,
        &[
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::BPF), &[libc::SYS_bpf]),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::PERFMON), &[libc::SYS_perf_event_open]),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYSLOG), &[libc::SYS_syslog]),
    (CapabilitySet::SYS_BOOT, &[libc::SYS_reboot]),
    (CapabilitySet::SYS_CHROOT, &[libc::SYS_chroot]),
    (
        CapabilitySet::SYS_MODULE,
        &[libc::SYS_delete_module, libc::SYS_init_module, libc::SYS_finit_module],
    ),
    (CapabilitySet::SYS_PACCT, &[libc::SYS_acct]),
    (
        CapabilitySet::SYS_PTRACE,
        &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise],
    ),
    (CapabilitySet::SYS_RAWIO, &[libc::SYS_iopl, libc::SYS_ioperm]),
    (CapabilitySet::SYS_TIME, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
    (CapabilitySet::SYS_TTY_CONFIG, &[libc::SYS_vhangup]),
    (CapabilitySet::DAC_READ_SEARCH, &[libc::SYS_open_by_handle_at]),
    (
        CapabilitySet::SYS_NICE,
        &[
            libc::SYS_get_mempolicy,
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
];

/// Installs the profile for a process that will have these capabilities.
pub(crate) fn install(names: &[String]) -> Result<(), Failure> {
    sys::seccomp(&program(capabilities(names)?)).attempt("install the seccomp profile")
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
/// Offsets in seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Instructions, one test after the other; each test answers or falls through to the next.
#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    fn add(&mut self, code: u32, jump_true: u8, jump_false: u8, value: u32) {
        let code = u16::try_from(code).expect("classic BPF codes are small");
        self.0.push(sock_filter {
            code,
            jt: jump_true,
            jf: jump_false,
            k: value,
        });
    }

    fn load(&mut self, offset: u32) {
        self.add(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    }

    fn answer(&mut self, answer: u32) {
        self.add(libc::BPF_RET | libc::BPF_K, 0, 0, answer);
    }

    fn answer_if_equal(&mut self, value: u32, answer: u32) {
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, value);
        self.answer(answer);
    }

    fn answer_if_above(&mut self, value: u32, answer: u32) {
        self.add(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, value);
        self.answer(answer);
    }

    /// `tests`, which must end with an answer, for one system call only.
    fn only_for(&mut self, number: libc::c_long, tests: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        tests(&mut inner);
        let length = u8::try_from(inner.0.len()).expect("a handful of tests for one call");
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, length, call(number));
        self.0.append(&mut inner.0);
    }
}

fn call(number: libc::c_long) -> u32 {
    u32::try_from(number).expect("system call numbers are small")
}

fn program(held: CapabilitySet) -> Vec<sock_filter> {
    let mut program = Program::default();
    program.load(ARCHITECTURE);
    program.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, AUDIT_ARCH_X86_64);
    program.answer(UNKNOWN);
    program.load(NUMBER);
    program.answer_if_above(LAST, UNKNOWN);
    // Below the gap most calls live; the gap itself is unknown.
    program.add(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 2, *UNUSED.start());
    program.add(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, 0, *UNUSED.end());
    program.answer(UNKNOWN);
    for number in REFUSED {
        program.answer_if_equal(call(number), NOT_PERMITTED);
    }
    for (capabilities, numbers) in PRIVILEGED {
        if !held.intersects(capabilities) {
            numbers
                .iter()
                .for_each(|number| program.answer_if_equal(call(*number), NOT_PERMITTED));
        }
    }
    program.only_for(libc::SYS_personality, |program| {
        program.load(FIRST_ARGUMENT);
        PERSONALITIES.iter().for_each(|value| program.answer_if_equal(*value, ALLOW));
        program.answer(NOT_PERMITTED);
    });
    program.only_for(libc::SYS_socket, |program| {
        program.load(FIRST_ARGUMENT);
        for family in FAMILIES_REFUSED {
            program.answer_if_equal(call(family.into()), NOT_PERMITTED);
        }
        program.answer(ALLOW);
    });
    if !held.contains(CapabilitySet::SYS_ADMIN) {
        program.only_for(libc::SYS_clone, |program| {
            program.load(FIRST_ARGUMENT);
            program.add(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, NEW_NAME_SPACES);
            program.answer_if_equal(0, ALLOW);
            program.answer(NOT_PERMITTED);
        });
        // Its flags are in memory, where a filter cannot look: programs then use clone.
        program.answer_if_equal(call(libc::SYS_clone3), UNKNOWN);
    }
    program.answer(ALLOW);
    program.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::thread::UnshareFlags;

    /// What `act` gives on a thread that has the profile.
    fn under<T: Send>(names: &[&str], act: impl FnOnce() -> T + Send) -> T {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        std::thread::scope(|scope| {
            let filtered = || {
                // Needed when the tests are not run by root; of no effect on the profile.
                rustix::thread::set_no_new_privs(true).unwrap();
                install(&names).unwrap();
                act()
            };
            scope.spawn(filtered).join().unwrap()
        })
    }

    #[test]
    fn ordinary_programs_run_under_the_profile() {
        under(&[], || {
            let output = std::process::Command::new("/bin/sh")
                .args(["-c", "echo $((6*7)) | cat"])
                .output()
                .unwrap();
            assert_eq!(output.stdout, b"42\n");
            std::thread::spawn(|| ()).join().unwrap();
            assert!(socket(AddressFamily::INET, SocketType::DGRAM, None).is_ok());
        });
    }

    #[test]
    fn what_could_reach_the_agent_or_the_kernel_is_refused() {
        under(&["CAP_CHOWN"], || {
            assert_eq!(socket(AddressFamily::VSOCK, SocketType::STREAM, None).unwrap_err(), Errno::PERM);
            let unshared = sys::unshare(UnshareFlags::NEWNS).unwrap_err();
            assert_eq!(unshared.raw_os_error(), Some(libc::EPERM));
            assert_eq!(
                rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::empty()).unwrap_err(),
                Errno::PERM
            );
        });
    }

    #[test]
    fn a_capability_opens_its_calls() {
        let held = |names: &[&str]| {
            under(names, || {
                rustix::mount::fsopen("no such thing", rustix::mount::FsOpenFlags::empty()).unwrap_err()
            })
        };
        assert_eq!(held(&[]), Errno::PERM);
        // Past the filter: the kernel itself refuses (ENODEV to root, EPERM to others).
        if rustix::process::geteuid().is_root() {
            assert_eq!(held(&["CAP_SYS_ADMIN"]), Errno::NODEV);
        }
    }

    #[test]
    fn every_jump_stays_inside_the_program() {
        for held in [CapabilitySet::empty(), CapabilitySet::all()] {
            let program = program(held);
            for (at, i) in program.iter().enumerate() {
                if u32::from(i.code) & 7 == libc::BPF_JMP {
                    assert!(at + 1 + usize::from(i.jt.max(i.jf)) < program.len(), "at {at}");
                }
            }
            assert_eq!(program.last().map(|i| i.k), Some(ALLOW));
        }
    }
}
