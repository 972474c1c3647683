//! The default seccomp profile (RuntimeDefault): what the usual runtimes allow, to 64-bit and 32-bit programs. Calls known to this
//! file are allowed unless a table names them; newer ones answer ENOSYS, so that programs fall back to what they know.

use kvmlet_protocol::Failure;
use libc::sock_filter;
use rustix::thread::CapabilitySet;

use super::credentials::capabilities;
use crate::bpf::{FIRST_ARGUMENT, NUMBER, Program};
use crate::failure::Attempt;
use crate::sys;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the seccomp profile is written for x86's system call numbers");

/// mseal, of Linux 6.10.
const LAST: u32 = 462;
/// Numbers of x86-64 between its old table and the one that all architectures share.
const UNUSED: std::ops::RangeInclusive<u32> = 335..=423;
/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAME_SPACES: u32 = 0x7e02_0000;
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const FAMILIES_REFUSED: [libc::c_int; 2] = [libc::AF_ALG, libc::AF_VSOCK];

/// A system call's number in 64-bit and in 32-bit programs.
type Call = (u32, u32);
/// The architecture has no such call.
const NONE: u32 = u32::MAX;

const CLONE: Call = (56, 120);
const CLONE3: Call = (435, 435);
const PERSONALITY: Call = (135, 136);
const SOCKET: Call = (41, 359);

/// Never allowed: keys, swap, other kernels, pages of others, io_uring, what no program of this century calls.
#[rustfmt::skip]
const REFUSED: [Call; 30] = [
    /* add_key, request_key, keyctl */ (248, 286), (249, 287), (250, 288),
    /* userfaultfd, pivot_root */ (323, 374), (155, 217),
    /* swapon, swapoff */ (167, 87), (168, 115),
    /* kexec_load, kexec_file_load */ (246, 283), (320, NONE),
    /* migrate_pages, move_pages */ (256, 294), (279, 317),
    /* io_uring_setup, io_uring_enter, io_uring_register */ (425, 425), (426, 426), (427, 427),
    /* uselib, ustat, sysfs, _sysctl */ (134, 86), (136, 62), (139, 135), (156, 149),
    /* nfsservctl, getpmsg, putpmsg, vserver */ (180, 169), (181, 188), (182, 189), (236, 273),
    /* afs_syscall, tuxcall, security, epoll_ctl_old, epoll_wait_old */ (183, NONE), (184, NONE), (185, NONE), (214, NONE), (215, NONE),
    /* vm86old, vm86, bdflush */ (NONE, 113), (NONE, 166), (NONE, 134),
];

/// Allowed to those who have one of the capabilities.
#[rustfmt::skip]
const PRIVILEGED: [(CapabilitySet, &[Call]); 14] = [
    (CapabilitySet::SYS_ADMIN, &[
        /* mount, umount, umount2, setns, unshare */ (165, 21), (NONE, 22), (166, 52), (308, 346), (272, 310),
        /* open_tree, move_mount, fsopen, fsconfig, fsmount, fspick */ (428, 428), (429, 429), (430, 430), (431, 431), (432, 432), (433, 433),
        /* mount_setattr, quotactl, quotactl_fd */ (442, 442), (179, 131), (443, 443),
        /* sethostname, setdomainname, lookup_dcookie, fanotify_init */ (170, 74), (171, 121), (212, 253), (300, 338),
    ]),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::BPF), &[/* bpf */ (321, 357)]),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::PERFMON), &[/* perf_event_open */ (298, 336)]),
    (CapabilitySet::SYS_ADMIN.union(CapabilitySet::SYSLOG), &[/* syslog */ (103, 103)]),
    (CapabilitySet::SYS_BOOT, &[/* reboot */ (169, 88)]),
    (CapabilitySet::SYS_CHROOT, &[/* chroot */ (161, 61)]),
    (CapabilitySet::SYS_MODULE, &[/* init_module, delete_module, finit_module */ (175, 128), (176, 129), (313, 350)]),
    (CapabilitySet::SYS_PACCT, &[/* acct */ (163, 51)]),
    (CapabilitySet::SYS_PTRACE, &[/* kcmp, pidfd_getfd, process_madvise */ (312, 349), (438, 438), (440, 440)]),
    (CapabilitySet::SYS_RAWIO, &[/* iopl, ioperm */ (172, 110), (173, 101)]),
    (CapabilitySet::SYS_TIME, &[/* stime, settimeofday, clock_settime, clock_settime64 */ (NONE, 25), (164, 79), (227, 264), (NONE, 404)]),
    (CapabilitySet::SYS_TTY_CONFIG, &[/* vhangup */ (153, 111)]),
    (CapabilitySet::DAC_READ_SEARCH, &[/* open_by_handle_at */ (304, 342)]),
    (CapabilitySet::SYS_NICE, &[/* mbind, set_mempolicy, get_mempolicy, set_mempolicy_home_node */ (237, 274), (238, 276), (239, 275), (450, 450)]),
];

/// Installs the profile for a process that will have these capabilities.
pub(crate) fn install(names: &[String]) -> Result<(), Failure> {
    sys::seccomp(&program(capabilities(names)?), 0).attempt("install the seccomp profile")
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOT_PERMITTED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
fn program(held: CapabilitySet) -> Vec<sock_filter> {
    let wide = calls(held, |call| call.0, Some(UNUSED));
    let narrow = calls(held, |call| call.1, None);
    Program::of_architectures(wide, narrow, UNKNOWN)
}

/// The tests for one architecture, whose numbers `of` picks.
fn calls(held: CapabilitySet, of: impl Fn(Call) -> u32, unused: Option<std::ops::RangeInclusive<u32>>) -> Program {
    let mut program = Program::default();
    program.load(NUMBER);
    program.answer_if_above(LAST, UNKNOWN);
    if let Some(unused) = unused {
        program.add(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 2, *unused.start());
        program.add(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, 0, *unused.end());
        program.answer(UNKNOWN);
    }
    let without = PRIVILEGED
        .iter()
        .filter(|(capabilities, _)| !held.intersects(*capabilities))
        .flat_map(|(_, calls)| calls.iter());
    for number in REFUSED.iter().chain(without).map(|call| of(*call)).filter(|number| *number != NONE) {
        program.answer_if_equal(number, NOT_PERMITTED);
    }
    program.only_for(of(PERSONALITY), |program| {
        program.load(FIRST_ARGUMENT);
        PERSONALITIES.iter().for_each(|value| program.answer_if_equal(*value, ALLOW));
        program.answer(NOT_PERMITTED);
    });
    program.only_for(of(SOCKET), |program| {
        program.load(FIRST_ARGUMENT);
        for family in FAMILIES_REFUSED {
            program.answer_if_equal(u32::try_from(family).expect("address families are small numbers"), NOT_PERMITTED);
        }
        program.answer(ALLOW);
    });
    if !held.contains(CapabilitySet::SYS_ADMIN) {
        program.only_for(of(CLONE), |program| {
            program.load(FIRST_ARGUMENT);
            program.add(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, NEW_NAME_SPACES);
            program.answer_if_equal(0, ALLOW);
            program.answer(NOT_PERMITTED);
        });
        // Its flags are in memory, where a filter cannot look: programs then use clone.
        program.answer_if_equal(of(CLONE3), UNKNOWN);
    }
    program.answer(ALLOW);
    program
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
    fn the_tables_hold_the_numbers_they_mean() {
        let numbers = [
            (CLONE.0, libc::SYS_clone),
            (CLONE3.0, libc::SYS_clone3),
            (PERSONALITY.0, libc::SYS_personality),
            (SOCKET.0, libc::SYS_socket),
            (REFUSED[2].0, libc::SYS_keyctl),
            (REFUSED[8].0, libc::SYS_kexec_file_load),
            (REFUSED[21].0, libc::SYS_vserver),
            (PRIVILEGED[0].1[0].0, libc::SYS_mount),
            (PRIVILEGED[0].1[4].0, libc::SYS_unshare),
            (PRIVILEGED[0].1[17].0, libc::SYS_fanotify_init),
            (PRIVILEGED[13].1[3].0, libc::SYS_set_mempolicy_home_node),
        ];
        for (number, meant) in numbers {
            assert_eq!(i64::from(number), meant);
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
