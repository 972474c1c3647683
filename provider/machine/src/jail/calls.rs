//! The lists: which system calls, with which arguments, a thread of each role may make. Whatever is not here ends the process. A list is
//! what the role was seen to call (`strace -f`), plus what an error on the way would make it call; the tests run each role under its list, and
//! `tests/calls.rs` traces a machine, names a call that is on none, and says what of the lists it did not see.

use libc::c_long;

/// What a thread does, and thereby what it may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Any thread of the process: all lists together, and what building a machine takes. The thread that builds the machine and makes its
    /// threads stays here; it waits while a guest runs.
    Process,
    /// Waits for the machine and writes the exit record.
    Main,
    /// Waits for signals.
    Signals,
    /// Accepts the daemon's connections and makes a thread for each.
    Control,
    /// Talks with the daemon.
    Client,
    /// Takes the guest's logs and writes them.
    Logs,
    /// Runs the guest.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves a disk by a ring of the kernel's.
    BlockRing,
    /// Serves a network device.
    Net,
    /// Serves the vsock device.
    Vsock,
    /// Serves random bytes.
    Rng,
    /// Takes memory back from the guest.
    Balloon,
    /// Serves an image that is read in place.
    Pmem,
    /// Gives the guest memory, and takes it back.
    Mem,
    /// Serves a console.
    Console,
    /// Gives the serial port its input.
    Serial,
    /// Counts a watchdog's time.
    Watchdog,
    /// Carries messages to and from a shared directory's process.
    Fs,
}

/// All but [`Role::Process`], in their order.
pub(super) const OWN: [Role; 18] = [
    Role::Main,
    Role::Signals,
    Role::Control,
    Role::Client,
    Role::Logs,
    Role::Vcpu,
    Role::Block,
    Role::BlockRing,
    Role::Net,
    Role::Vsock,
    Role::Rng,
    Role::Balloon,
    Role::Pmem,
    Role::Mem,
    Role::Console,
    Role::Serial,
    Role::Watchdog,
    Role::Fs,
];

/// A system call, and what must hold for one of its arguments.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    /// Any arguments.
    Any(c_long),
    /// This argument is one of these, compared in 32 bits (the kernel looks at no more).
    OneOf(c_long, u8, &'static [u64]),
    /// This argument is exactly this, in 64 bits.
    Exactly(c_long, u8, u64),
    /// This argument has none of these bits.
    Without(c_long, u8, u64),
}

use Call::{Any, Exactly, OneOf, Without};

/// What pthread_create passes: a thread of this process and nothing else, no namespace, no process.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
/// The signal that gets processors out of the guest (SIGRTMIN as C libraries hand it out), and abort's.
const SIGNALS: &[u64] = &[34, libc::SIGABRT as u64];
const FIONBIO: u64 = 0x5421;
const TUNSETQUEUE: u64 = 0x4004_54d9;
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Memory, locks, time, the end of a thread, words on standard error. Memory never becomes executable.
const ALL: &[Call] = &[
    Any(libc::SYS_write),
    Any(libc::SYS_close),
    Without(libc::SYS_mmap, 2, libc::PROT_EXEC as u64),
    Without(libc::SYS_mprotect, 2, libc::PROT_EXEC as u64),
    Any(libc::SYS_munmap),
    Any(libc::SYS_mremap),
    Any(libc::SYS_madvise),
    Any(libc::SYS_brk),
    Any(libc::SYS_futex),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_sigaltstack),
    Any(libc::SYS_restart_syscall),
    Any(libc::SYS_sched_yield),
    Any(libc::SYS_sched_getaffinity),
    Any(libc::SYS_clock_gettime),
    Any(libc::SYS_gettid),
    Any(libc::SYS_getpid),
    Any(libc::SYS_getrandom),
    OneOf(libc::SYS_tgkill, 2, SIGNALS),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
];

/// To make a thread, which then names itself and installs its own filter.
const SPAWN: &[Call] = &[
    // Its flags lie in memory: refused as unknown, so that the C library takes clone.
    Any(libc::SYS_clone3),
    Exactly(libc::SYS_clone, 0, THREAD),
    Any(libc::SYS_set_robust_list),
    Any(libc::SYS_rseq),
    OneOf(
        libc::SYS_prctl,
        0,
        &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64, PR_SET_VMA],
    ),
    OneOf(libc::SYS_seccomp, 0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
];

/// `/dev/kvm`, the machine and its processors before the guest runs; kernel and initramfs into its memory.
const BUILD: &[Call] = &[
    OneOf(
        libc::SYS_ioctl,
        1,
        &[
            0xae00,      // KVM_GET_API_VERSION
            0xae01,      // KVM_CREATE_VM
            0xae03,      // KVM_CHECK_EXTENSION
            0xae04,      // KVM_GET_VCPU_MMAP_SIZE
            0xc008_ae05, // KVM_GET_SUPPORTED_CPUID
            0xae41,      // KVM_CREATE_VCPU
            0x4020_ae46, // KVM_SET_USER_MEMORY_REGION
            0xae47,      // KVM_SET_TSS_ADDR
            0xae60,      // KVM_CREATE_IRQCHIP
            0x4010_ae67, // KVM_REGISTER_COALESCED_MMIO
            0x4090_ae82, // KVM_SET_REGS
            0x8138_ae83, // KVM_GET_SREGS
            0x4138_ae84, // KVM_SET_SREGS
            0x4008_ae89, // KVM_SET_MSRS
            0x4008_ae90, // KVM_SET_CPUID2
            0xc004_ae02, // KVM_GET_MSR_INDEX_LIST
            // What a snapshot is taken up with.
            0x4008_ae61, // KVM_IRQ_LINE
            0xc040_aed5, // KVM_PRE_FAULT_MEMORY
            0x8208_ae63, // KVM_SET_IRQCHIP
            0x4030_ae7b, // KVM_SET_CLOCK
            0xc008_ae88, // KVM_GET_MSRS
            0x4400_ae8f, // KVM_SET_LAPIC
            0x4004_ae99, // KVM_SET_MP_STATE
            0x4040_aea0, // KVM_SET_VCPU_EVENTS
            0x4080_aea2, // KVM_SET_DEBUGREGS
            0x5000_aea5, // KVM_SET_XSAVE
            0x4188_aea7, // KVM_SET_XCRS
        ],
    ),
    Any(libc::SYS_rt_sigaction),
    Any(libc::SYS_pread64),
    Any(libc::SYS_lseek),
    Any(libc::SYS_read),
    Any(libc::SYS_statx),
    Any(libc::SYS_fstat),
    Any(libc::SYS_fcntl),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
];

/// The virtual machine and its memory into files: what the thread that takes a snapshot needs.
const SNAPSHOT: &[Call] = &[
    OneOf(
        libc::SYS_ioctl,
        1,
        &[
            0xc208_ae62, // KVM_GET_IRQCHIP
            0x8030_ae7c, // KVM_GET_CLOCK
        ],
    ),
    Any(libc::SYS_pwrite64),
    Any(libc::SYS_ftruncate),
];

/// A processor's registers.
const SNAPSHOT_VCPU: &[Call] = &[OneOf(
    libc::SYS_ioctl,
    1,
    &[
        0x8138_ae83, // KVM_GET_SREGS
        0xc008_ae88, // KVM_GET_MSRS
        0x8400_ae8e, // KVM_GET_LAPIC
        0x8004_ae98, // KVM_GET_MP_STATE
        0x8040_ae9f, // KVM_GET_VCPU_EVENTS
        0x8080_aea1, // KVM_GET_DEBUGREGS
        0x9000_aea4, // KVM_GET_XSAVE
        0x8188_aea6, // KVM_GET_XCRS
    ],
)];

/// The guest, its interrupts and notifications, and what a device's start takes. KVM_RUN first: filters are read from the front.
const VCPU: &[Call] = &[
    OneOf(
        libc::SYS_ioctl,
        1,
        &[
            0xae80,      // KVM_RUN
            0x4020_ae76, // KVM_IRQFD
            0x4040_ae79, // KVM_IOEVENTFD
            0x4010_ae67, // KVM_REGISTER_COALESCED_MMIO
            0x4010_ae68, // KVM_UNREGISTER_COALESCED_MMIO
            0x4008_ae6a, // KVM_SET_GSI_ROUTING
            0x8090_ae81, // KVM_GET_REGS
            FIONBIO,
            0x4004_54d0, // TUNSETOFFLOAD
            0x4004_54d8, // TUNSETVNETHDRSZ
            TUNSETQUEUE,
        ],
    ),
    Any(libc::SYS_read),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_epoll_create1),
    Any(libc::SYS_epoll_ctl),
    DUPLICATE_AND_FLAGS,
];

const DUPLICATE_AND_FLAGS: Call = OneOf(
    libc::SYS_fcntl,
    1,
    &[
        libc::F_DUPFD_CLOEXEC as u64,
        libc::F_GETFD as u64,
        libc::F_GETFL as u64,
        libc::F_SETFL as u64,
    ],
);

/// Waits of a device's thread.
const DEVICE: &[Call] = &[
    Any(libc::SYS_epoll_pwait),
    Any(libc::SYS_epoll_pwait2),
    Any(libc::SYS_epoll_ctl),
    Any(libc::SYS_read),
];

/// What a machine does that not every one does, and what its process may call besides for that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// A snapshot of it can be taken.
    pub template: bool,
    /// Some of its disks have rings (io_uring).
    pub rings: bool,
}

/// A ring is made, restricted and enabled with the disk. What is asked for through it no filter sees: the kernel's own restrictions hold there.
const RINGS: &[Call] = &[Any(libc::SYS_io_uring_setup), Any(libc::SYS_io_uring_register)];
/// What it is used by.
const RING: &[Call] = &[Any(libc::SYS_io_uring_enter)];

impl Role {
    /// All that there are.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Process).chain(OWN)
    }

    /// Its lists; `None` for one that no machine of these needs has.
    pub(super) fn calls(self, needs: Needs) -> Option<Vec<&'static [Call]>> {
        let mut calls = self.usual_calls();
        match self {
            Self::Process => {
                if needs.template {
                    calls.extend([SNAPSHOT, SNAPSHOT_VCPU]);
                }
                if needs.rings {
                    calls.extend([RINGS, RING]);
                }
            }
            Self::BlockRing if !needs.rings => return None,
            Self::Vcpu if needs.template => calls.push(SNAPSHOT_VCPU),
            _ => {}
        }
        Some(calls)
    }

    fn usual_calls(self) -> Vec<&'static [Call]> {
        let own: &[&'static [Call]] = match self {
            Self::Process => {
                let mut all = vec![BUILD, SPAWN];
                // What a ring takes is added where there are rings.
                let own = OWN.into_iter().filter(|role| *role != Self::BlockRing);
                all.extend(own.flat_map(Self::usual_calls));
                return all;
            }
            Self::Main => &[&[Any(libc::SYS_fsync)]],
            Self::Signals => &[&[Any(libc::SYS_rt_sigtimedwait)]],
            Self::Control => &[
                SPAWN,
                CLIENT,
                &[Any(libc::SYS_accept4), Any(libc::SYS_clock_nanosleep), Any(libc::SYS_nanosleep)],
            ],
            Self::Client => &[CLIENT],
            Self::Logs => &[LOGS],
            Self::Vcpu => &[VCPU],
            Self::Block => &[
                DEVICE,
                &[
                    Any(libc::SYS_preadv2),
                    Any(libc::SYS_pwritev2),
                    Any(libc::SYS_fdatasync),
                    Any(libc::SYS_fallocate),
                ],
            ],
            Self::BlockRing => &[DEVICE, RING],
            Self::Net => &[
                DEVICE,
                &[
                    Any(libc::SYS_readv),
                    Any(libc::SYS_writev),
                    OneOf(libc::SYS_ioctl, 1, &[TUNSETQUEUE]),
                ],
            ],
            Self::Vsock => &[
                DEVICE,
                &[
                    Any(libc::SYS_accept4),
                    Any(libc::SYS_readv),
                    Any(libc::SYS_sendmsg),
                    Any(libc::SYS_recvfrom),
                    Any(libc::SYS_sendto),
                    Any(libc::SYS_shutdown),
                    OneOf(libc::SYS_ioctl, 1, &[FIONBIO]),
                ],
            ],
            Self::Rng | Self::Pmem | Self::Balloon | Self::Mem | Self::Console => &[DEVICE],
            Self::Serial => &[DEVICE, &[Any(libc::SYS_epoll_create1)]],
            // Waits by futex.
            Self::Watchdog => &[],
            Self::Fs => &[DEVICE, &[Any(libc::SYS_recvfrom), Any(libc::SYS_sendto), Any(libc::SYS_shutdown)]],
        };
        own.iter().copied().chain([ALL]).collect()
    }
}

/// A shared directory's process: its threads, requests and answers, and what files take. No device is made, by type (bit 13 of the mode).
pub(super) const SHARE: &[&[Call]] = &[
    ALL,
    SPAWN,
    &[
        // The C library's own signals, with its first thread.
        Any(libc::SYS_rt_sigaction),
        Any(libc::SYS_read),
        Any(libc::SYS_recvfrom),
        Any(libc::SYS_sendto),
        Any(libc::SYS_shutdown),
        Any(libc::SYS_openat),
        Any(libc::SYS_openat2),
        Any(libc::SYS_statx),
        Any(libc::SYS_fstat),
        Any(libc::SYS_fstatfs),
        Any(libc::SYS_getdents64),
        Any(libc::SYS_lseek),
        Any(libc::SYS_pread64),
        Any(libc::SYS_pwrite64),
        Any(libc::SYS_copy_file_range),
        Any(libc::SYS_fallocate),
        Any(libc::SYS_ftruncate),
        Any(libc::SYS_fsync),
        Any(libc::SYS_fdatasync),
        Any(libc::SYS_readlinkat),
        Any(libc::SYS_symlinkat),
        Without(libc::SYS_mknodat, 2, 0o020_000),
        Any(libc::SYS_mkdirat),
        Any(libc::SYS_unlinkat),
        Any(libc::SYS_renameat2),
        Any(libc::SYS_linkat),
        Any(libc::SYS_fchmodat),
        Any(libc::SYS_fchownat),
        Any(libc::SYS_utimensat),
        Any(libc::SYS_fgetxattr),
        Any(libc::SYS_fsetxattr),
        Any(libc::SYS_flistxattr),
        Any(libc::SYS_fremovexattr),
        Any(libc::SYS_getuid),
        Any(libc::SYS_geteuid),
        Any(libc::SYS_getgid),
        Any(libc::SYS_getegid),
        Any(libc::SYS_setresuid),
        Any(libc::SYS_setresgid),
        DUPLICATE_AND_FLAGS,
    ],
];

/// Requests with descriptors, answers, events; a log file that is taken over.
const CLIENT: &[Call] = &[
    Any(libc::SYS_poll),
    Any(libc::SYS_ppoll),
    Any(libc::SYS_read),
    Any(libc::SYS_recvmsg),
    Any(libc::SYS_sendmsg),
    Any(libc::SYS_setsockopt),
    Any(libc::SYS_eventfd2),
    Any(libc::SYS_statx),
    Any(libc::SYS_fstat),
    DUPLICATE_AND_FLAGS,
];

/// The connection to the agent, and the files.
const LOGS: &[Call] = &[
    OneOf(libc::SYS_socketpair, 0, &[libc::AF_UNIX as u64]),
    Any(libc::SYS_setsockopt),
    OneOf(libc::SYS_ioctl, 1, &[FIONBIO]),
    Any(libc::SYS_poll),
    Any(libc::SYS_ppoll),
    Any(libc::SYS_read),
    Any(libc::SYS_recvfrom),
    Any(libc::SYS_sendto),
    Any(libc::SYS_ftruncate),
    Any(libc::SYS_fcntl),
];
