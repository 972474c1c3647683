//! Filters, carried out as the kernel would, and by it.

use kvmlet_protocol::{MAX_HOST_FRAME, encode, read_frame};

use super::*;
use crate::bpf::{ARCHITECTURE, AUDIT_ARCH_I386, AUDIT_ARCH_X86_64};

const DENIED: FilterAnswer = FilterAnswer::Errno(libc::EPERM as u16);
const NEW: FilterAnswer = FilterAnswer::Errno(libc::ENOSYS as u16);

fn filter(default: FilterAnswer, rules: Vec<FilterRule>) -> Filter {
    Filter {
        default,
        narrow: true,
        log: false,
        speculation: false,
        rules,
    }
}

fn on(names: &[&str], answer: FilterAnswer, tests: Vec<FilterTest>) -> FilterRule {
    FilterRule {
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        answer,
        tests,
    }
}

fn when(argument: u8, compare: FilterCompare, value: u64, second: u64) -> FilterTest {
    FilterTest {
        argument,
        compare,
        value,
        second,
    }
}

/// What the program answers to a call.
fn ask(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let (mut at, mut held) = (0, 0_u32);
    loop {
        let one = &program[at];
        at += 1;
        let jump = |met: bool| usize::from(if met { one.jt } else { one.jf });
        match u32::from(one.code) {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                held = match one.k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    offset => {
                        let place = offset - FIRST_ARGUMENT;
                        let argument = arguments[place as usize / 8];
                        (if place % 8 == 4 { argument >> 32 } else { argument }) as u32
                    }
                }
            }
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => held &= one.k,
            code if code == libc::BPF_JMP | libc::BPF_JA => at += one.k as usize,
            code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += jump(held == one.k),
            code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => at += jump(held > one.k),
            code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += jump(held >= one.k),
            code if code == libc::BPF_RET | libc::BPF_K => return one.k,
            code => panic!("instruction {code} at {at}"),
        }
    }
}

#[test]
fn names_stand_for_the_numbers_of_the_kernels_tables() {
    for (name, meant) in [
        ("read", libc::SYS_read),
        ("clone3", libc::SYS_clone3),
        ("openat2", libc::SYS_openat2),
        ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
        ("memfd_secret", libc::SYS_memfd_secret),
        ("fchmodat2", libc::SYS_fchmodat2),
        ("mseal", libc::SYS_mseal),
        ("set_mempolicy_home_node", libc::SYS_set_mempolicy_home_node),
    ] {
        assert_eq!(number(name, true).map(i64::from), Some(meant), "{name}");
    }
    assert_eq!(
        (number("socketcall", true), number("socketcall", false)),
        (None, Some(SOCKETCALL.0))
    );
    assert_eq!((number("ipc", false), number("chown32", false)), (Some(IPC.0), Some(212)));
    assert_eq!(
        (number("no_such_call", true), number("", true), number("#", true)),
        (None, None, None)
    );
    assert!(CALLS.is_sorted_by_key(|line| name_of(line)) && CALLS.len() > 450);
    for line in CALLS.iter() {
        let numbers = [true, false].map(|wide| number(name_of(line), wide));
        assert!(numbers.iter().any(Option::is_some), "{line}");
    }
}

#[test]
fn arguments_are_compared_in_all_of_their_64_bits() {
    let big = 0x0000_0002_0000_0003;
    use FilterCompare::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual};
    for (compare, second, met, unmet) in [
        (Equal, 0, vec![big], vec![3, 2 << 32, big + 1, 0x0000_0003_0000_0003]),
        (NotEqual, 0, vec![3, 2 << 32, big + 1], vec![big]),
        (
            Greater,
            0,
            vec![big + 1, 3 << 32, u64::MAX],
            vec![big, big - 1, 0xffff_ffff, 0x0000_0001_ffff_ffff],
        ),
        (GreaterOrEqual, 0, vec![big, 3 << 32], vec![big - 1, 0x0000_0001_ffff_ffff]),
        (Less, 0, vec![big - 1, 0x0000_0001_ffff_ffff, 0], vec![big, 3 << 32]),
        (LessOrEqual, 0, vec![big, 0x0000_0001_ffff_ffff], vec![big + 1, 3 << 32]),
        (MaskedEqual, 0x0000_0002_0000_0001, vec![0x0000_0006_0000_0011], vec![big, 1, 0]),
    ] {
        let filter = filter(
            DENIED,
            vec![on(&["personality"], FilterAnswer::Allow, vec![when(2, compare, big, second)])],
        );
        let program = program(&filter);
        let of = |value| ask(&program, AUDIT_ARCH_X86_64, 135, [u64::MAX, 0, value, 0, 0, 0]);
        for value in met {
            assert_eq!(of(value), code(FilterAnswer::Allow), "{compare:?} {value:#x}");
        }
        for value in unmet {
            assert_eq!(of(value), code(DENIED), "{compare:?} {value:#x}");
        }
    }
}

#[test]
fn all_tests_of_a_rule_must_be_met_and_one_rule_of_several() {
    let tests = vec![when(0, FilterCompare::Equal, 1, 0), when(1, FilterCompare::Less, 10, 0)];
    let rules = vec![
        on(&["socket"], FilterAnswer::Allow, tests),
        on(
            &["socket", "no_such_call"],
            FilterAnswer::Trap,
            vec![when(0, FilterCompare::Equal, 2, 0)],
        ),
        on(&["keyctl"], FilterAnswer::Trap, vec![when(0, FilterCompare::Equal, 2, 0)]),
        on(&["keyctl"], FilterAnswer::Log, vec![]),
    ];
    let program = program(&filter(DENIED, rules));
    let of = |number, a, b| ask(&program, AUDIT_ARCH_X86_64, number, [a, b, 0, 0, 0, 0]);
    assert_eq!(of(41, 1, 9), code(FilterAnswer::Allow));
    assert_eq!((of(41, 1, 10), of(41, 3, 0)), (code(DENIED), code(DENIED)));
    assert_eq!(of(41, 2, 99), code(FilterAnswer::Trap));
    assert_eq!(of(250, 2, 0), code(FilterAnswer::Log), "a rule without tests wins");
}

#[test]
fn calls_newer_than_the_profile_are_unknown_and_others_get_its_default() {
    let rules = || vec![on(&["read", "close"], FilterAnswer::Allow, vec![]), on(&["clone3"], DENIED, vec![])];
    let strict = program(&filter(DENIED, rules()));
    let of = |program: &[_], architecture, number| ask(program, architecture, number, [0; 6]);
    assert_eq!(of(&strict, AUDIT_ARCH_X86_64, 0), code(FilterAnswer::Allow));
    assert_eq!(
        (of(&strict, AUDIT_ARCH_X86_64, 1), of(&strict, AUDIT_ARCH_X86_64, 435)),
        (code(DENIED), code(DENIED))
    );
    assert_eq!(of(&strict, AUDIT_ARCH_X86_64, 436), code(NEW));
    assert_eq!(of(&strict, AUDIT_ARCH_I386, 6), code(FilterAnswer::Allow), "its own close");
    let open = program(&filter(FilterAnswer::Allow, rules()));
    assert_eq!(
        (of(&open, AUDIT_ARCH_X86_64, 435), of(&open, AUDIT_ARCH_X86_64, 436)),
        (code(DENIED), code(FilterAnswer::Allow))
    );
    let killed = code(FilterAnswer::KillThread);
    assert_eq!((of(&open, AUDIT_ARCH_X86_64, X32), of(&open, 1, 0)), (killed, killed));
    let wide = Filter {
        narrow: false,
        ..filter(FilterAnswer::Allow, rules())
    };
    assert_eq!(of(&program(&wide), AUDIT_ARCH_I386, 6), killed);
}

#[test]
fn a_call_of_32_bit_programs_is_answered_by_whichever_way_it_is_made() {
    let rules = vec![on(&["socket", "shmget"], DENIED, vec![])];
    let program = program(&filter(FilterAnswer::Allow, rules));
    let of = |number, which| ask(&program, AUDIT_ARCH_I386, number, [which, 0, 0, 0, 0, 0]);
    assert_eq!(
        (of(359, 0), of(102, 1), of(102, 2)),
        (code(DENIED), code(DENIED), code(FilterAnswer::Allow))
    );
    assert_eq!((of(117, 23), of(117, 24)), (code(DENIED), code(FilterAnswer::Allow)));
}

#[test]
fn the_kernel_does_as_a_filter_says() {
    let rules = vec![
        on(&["getppid"], FilterAnswer::Errno(4095), vec![]),
        on(
            &["kill"],
            FilterAnswer::Errno(libc::EXDEV as u16),
            vec![when(1, FilterCompare::Equal, 0, 0)],
        ),
    ];
    let filter = Filter {
        log: true,
        speculation: true,
        ..filter(FilterAnswer::Allow, rules)
    };
    // As a helper gets it.
    let sent = encode(&compile(&filter).unwrap());
    let compiled = read_frame(&mut sent.as_slice(), MAX_HOST_FRAME).unwrap();
    std::thread::scope(|scope| {
        let filtered = || {
            rustix::thread::set_no_new_privs(true).unwrap();
            install(&compiled).unwrap();
            rustix::process::test_kill_process(rustix::process::getpid())
        };
        assert_eq!(scope.spawn(filtered).join().unwrap(), Err(rustix::io::Errno::XDEV));
    });
}

#[test]
fn a_rule_of_more_tests_than_a_call_has_arguments_is_refused_in_words() {
    let tests = |count: u8| {
        (0..count)
            .map(|argument| when(argument, FilterCompare::Greater, 1 << 40, 0))
            .collect()
    };
    let compiled = |count| compile(&filter(DENIED, vec![on(&["mmap"], FilterAnswer::Allow, tests(count))]));
    assert!(compiled(6).is_ok());
    let failure = compiled(7).unwrap_err();
    assert!(failure.message.contains("has 7 tests"), "{}", failure.message);
}

#[test]
fn a_profile_that_the_kernel_would_not_take_is_refused_in_words() {
    let tests: Vec<_> = (0..6).map(|argument| when(argument, FilterCompare::Greater, 1 << 40, 0)).collect();
    let rules = (0..150).map(|_| on(&["mmap"], FilterAnswer::Allow, tests.clone())).collect();
    let failure = compile(&filter(DENIED, rules)).unwrap_err();
    assert!(failure.message.contains("the kernel takes 4096"), "{}", failure.message);
}
