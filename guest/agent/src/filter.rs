//! A filter of system calls that the pod's node has (Localhost), as instructions of this processor. What libseccomp and runc make of a
//! profile is made here: names that an architecture has not are left out, rules that say what is said anyhow too, and calls newer than all
//! that the profile knows answer ENOSYS, so that programs fall back to what they know.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kvmlet_protocol::{ErrorKind, Failure, Filter, FilterAnswer, FilterCompare, FilterRule, FilterTest};
use libc::sock_filter;
use serde::{Deserialize, Serialize};

use crate::bpf::{FIRST_ARGUMENT, NUMBER, Program};
use crate::failure::{Attempt, fail};
use crate::sys;

/// Name, number in 64-bit and in 32-bit programs, in the order of the names.
static CALLS: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let lines = include_str!("calls.txt").lines();
    lines.filter(|line| !line.starts_with('#')).collect()
});
/// The longest program that the kernel takes (BPF_MAXINSNS).
const MOST: usize = 4096;
/// Arguments of a call, and so the most tests of a rule.
const ARGUMENTS: usize = 6;
/// Numbers from here on are x32's, which the guest's kernel has not.
const X32: u32 = 0x4000_0000;
/// socketcall and ipc of 32-bit programs: which of their numbers stands for which call.
const SOCKETCALL: (u32, [(&str, u32); 20]) = (
    102,
    [
        ("socket", 1),
        ("bind", 2),
        ("connect", 3),
        ("listen", 4),
        ("accept", 5),
        ("getsockname", 6),
        ("getpeername", 7),
        ("socketpair", 8),
        ("send", 9),
        ("recv", 10),
        ("sendto", 11),
        ("recvfrom", 12),
        ("shutdown", 13),
        ("setsockopt", 14),
        ("getsockopt", 15),
        ("sendmsg", 16),
        ("recvmsg", 17),
        ("accept4", 18),
        ("recvmmsg", 19),
        ("sendmmsg", 20),
    ],
);
/// See there.
const IPC: (u32, [(&str, u32); 12]) = (
    117,
    [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ],
);

/// A filter as the kernel takes it, for all of a container's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compiled {
    /// The fields of each instruction (struct sock_filter).
    instructions: Vec<(u16, u8, u8, u32)>,
    /// SECCOMP_FILTER_FLAG_*.
    flags: libc::c_ulong,
}

/// Makes the kernel's program of a filter.
pub(crate) fn compile(filter: &Filter) -> Result<Compiled, Failure> {
    let bad = |message| Err(fail(ErrorKind::BadContainer, message));
    if let Some(count) = filter.rules.iter().map(|rule| rule.tests.len()).find(|count| *count > ARGUMENTS) {
        return bad(format!(
            "a rule of the seccomp profile has {count} tests, and a call {ARGUMENTS} arguments"
        ));
    }
    let program = program(filter);
    if program.len() > MOST {
        return bad(format!(
            "the seccomp profile is {} instructions, and the kernel takes {MOST}",
            program.len()
        ));
    }
    let flag = |wanted: bool, flag| if wanted { flag } else { 0 };
    Ok(Compiled {
        instructions: program.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect(),
        flags: flag(filter.log, libc::SECCOMP_FILTER_FLAG_LOG) | flag(filter.speculation, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
    })
}

/// Installs the filter on the calling thread.
pub(crate) fn install(filter: &Compiled) -> Result<(), Failure> {
    let instruction = |&(code, jt, jf, k): &(u16, u8, u8, u32)| sock_filter { code, jt, jf, k };
    let program: Vec<_> = filter.instructions.iter().map(instruction).collect();
    sys::seccomp(&program, filter.flags).attempt("install the seccomp profile")
}

/// What the kernel is told of an answer.
fn code(answer: FilterAnswer) -> u32 {
    match answer {
        FilterAnswer::Allow => libc::SECCOMP_RET_ALLOW,
        FilterAnswer::Log => libc::SECCOMP_RET_LOG,
        FilterAnswer::Errno(number) => libc::SECCOMP_RET_ERRNO | u32::from(number),
        FilterAnswer::Trace(number) => libc::SECCOMP_RET_TRACE | u32::from(number),
        FilterAnswer::Trap => libc::SECCOMP_RET_TRAP,
        FilterAnswer::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        FilterAnswer::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
    }
}

fn program(filter: &Filter) -> Vec<sock_filter> {
    let mut foreign = Program::default();
    foreign.answer(code(FilterAnswer::KillThread));
    let narrow = if filter.narrow { calls(filter, false) } else { foreign };
    Program::of_architectures(calls(filter, true), narrow, code(FilterAnswer::KillThread))
}

/// A call's number in 64-bit (`wide`) or 32-bit programs.
fn number(name: &str, wide: bool) -> Option<u32> {
    let at = CALLS.binary_search_by(|line| name_of(line).cmp(name)).ok()?;
    CALLS[at].split(' ').nth(if wide { 1 } else { 2 })?.parse().ok()
}

fn name_of(line: &str) -> &str {
    line.split_once(' ').map_or(line, |(name, _)| name)
}

/// What is said of one call.
#[derive(Default)]
struct Said {
    /// Whatever its arguments.
    always: Option<FilterAnswer>,
    /// In order.
    when: Vec<(Vec<FilterTest>, FilterAnswer)>,
}

/// The rules by the calls' numbers, and the largest number that the profile knows.
fn said(filter: &Filter, wide: bool) -> (BTreeMap<u32, Said>, u32) {
    let (mut all, mut last) = (BTreeMap::<u32, Said>::new(), 0);
    for FilterRule { names, answer, tests } in &filter.rules {
        for name in names {
            let number = number(name, wide);
            last = last.max(number.unwrap_or(0));
            if *answer == filter.default {
                continue;
            }
            if let Some(said) = number.map(|number| all.entry(number).or_default()) {
                if tests.is_empty() {
                    said.always.get_or_insert(*answer);
                } else {
                    said.when.push((tests.clone(), *answer));
                }
            }
            if let Some((number, test)) = (!wide && tests.is_empty()).then(|| inner(name)).flatten() {
                all.entry(number).or_default().when.push((vec![test], *answer));
            }
        }
    }
    (all, last)
}

/// The call of 32-bit programs that this one is a part of, and which part.
fn inner(name: &str) -> Option<(u32, FilterTest)> {
    let part = |(call, parts): (u32, &[(&str, u32)])| Some((call, parts.iter().find(|(part, _)| *part == name)?.1));
    let (call, part) = part((SOCKETCALL.0, &SOCKETCALL.1)).or_else(|| part((IPC.0, &IPC.1)))?;
    let test = FilterTest {
        argument: 0,
        compare: FilterCompare::Equal,
        value: part.into(),
        second: 0,
    };
    Some((call, test))
}

/// The tests for one architecture.
fn calls(filter: &Filter, wide: bool) -> Program {
    let mut program = Program::default();
    let default = code(filter.default);
    let (all, last) = said(filter, wide);
    program.load(NUMBER);
    if wide {
        program.answer_if_above(X32 - 1, code(FilterAnswer::KillThread));
    }
    let unknown = FilterAnswer::Errno(libc::ENOSYS as u16);
    // A tracer answers for new calls itself.
    let lets_pass = matches!(filter.default, FilterAnswer::Allow | FilterAnswer::Log | FilterAnswer::Trace(_));
    if !lets_pass && filter.default != unknown {
        program.answer_if_above(last, code(unknown));
    }
    for (number, said) in all {
        if let Some(answer) = said.always {
            program.answer_if_equal(number, code(answer));
            continue;
        }
        program.only_for(number, |program| {
            for (tests, answer) in &said.when {
                rule(program, tests, code(*answer), wide);
            }
            program.answer(default);
        });
    }
    program.answer(default);
    program
}

/// Jumps here are to the end of the rule.
const FAILED: u8 = u8::MAX;

/// Answers if all tests are met, else goes on behind itself.
fn rule(program: &mut Program, tests: &[FilterTest], answer: u32, wide: bool) {
    let begin = program.0.len();
    tests.iter().for_each(|one| test(program, one, wide));
    program.answer(answer);
    let end = program.0.len();
    for (at, instruction) in program.0.iter_mut().enumerate().skip(begin) {
        // ARGUMENTS tests of eight instructions are the most.
        let over = u8::try_from(end - at - 1).expect("a rule is short");
        for jump in [&mut instruction.jt, &mut instruction.jf] {
            if *jump == FAILED {
                *jump = over;
            }
        }
    }
}

/// Goes on behind itself if the test is met. Arguments of 32-bit programs have no upper half.
fn test(program: &mut Program, test: &FilterTest, wide: bool) {
    let offset = FIRST_ARGUMENT + 8 * u32::from(test.argument);
    let jump = |kind: u32| libc::BPF_JMP | kind | libc::BPF_K;
    let (equal, above, least) = (jump(libc::BPF_JEQ), jump(libc::BPF_JGT), jump(libc::BPF_JGE));
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (upper, lower) = halves(test.value);
    let (second_upper, second_lower) = halves(test.second & test.value);
    match test.compare {
        FilterCompare::MaskedEqual => {
            for (at, mask, value) in [(offset + 4, upper, second_upper), (offset, lower, second_lower)] {
                if wide || at == offset {
                    program.load(at);
                    program.add(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask);
                    program.add(equal, 0, FAILED, value);
                }
            }
        }
        compare => {
            // What the upper half alone decides, then what the lower one does where the upper ones are equal: the test's last two instructions.
            if wide {
                program.load(offset + 4);
                match compare {
                    FilterCompare::Greater | FilterCompare::GreaterOrEqual => {
                        program.add(above, 3, 0, upper);
                        program.add(equal, 0, FAILED, upper);
                    }
                    FilterCompare::Less | FilterCompare::LessOrEqual => {
                        program.add(above, FAILED, 0, upper);
                        program.add(equal, 0, 2, upper);
                    }
                    FilterCompare::NotEqual => program.add(equal, 0, 2, upper),
                    FilterCompare::Equal | FilterCompare::MaskedEqual => program.add(equal, 0, FAILED, upper),
                }
            }
            program.load(offset);
            match compare {
                FilterCompare::Greater => program.add(above, 0, FAILED, lower),
                FilterCompare::GreaterOrEqual => program.add(least, 0, FAILED, lower),
                FilterCompare::Less => program.add(least, FAILED, 0, lower),
                FilterCompare::LessOrEqual => program.add(above, FAILED, 0, lower),
                FilterCompare::NotEqual => program.add(equal, FAILED, 0, lower),
                FilterCompare::Equal | FilterCompare::MaskedEqual => program.add(equal, 0, FAILED, lower),
            }
        }
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
