//! Programs of classic BPF that look at a system call (seccomp_data).

use libc::sock_filter;

pub(crate) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
pub(crate) const AUDIT_ARCH_I386: u32 = 0x4000_0003;
/// Offsets in seccomp_data.
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCHITECTURE: u32 = 4;
/// Its lower half; the upper one follows, then the next argument.
pub(crate) const FIRST_ARGUMENT: u32 = 16;

/// Instructions, one test after the other; each test answers or falls through to the next.
#[derive(Default)]
pub(crate) struct Program(pub(crate) Vec<sock_filter>);

impl Program {
    pub(crate) fn add(&mut self, code: u32, jump_true: u8, jump_false: u8, value: u32) {
        let code = u16::try_from(code).expect("classic BPF codes are small");
        self.0.push(sock_filter {
            code,
            jt: jump_true,
            jf: jump_false,
            k: value,
        });
    }

    pub(crate) fn load(&mut self, offset: u32) {
        self.add(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    }

    pub(crate) fn answer(&mut self, answer: u32) {
        self.add(libc::BPF_RET | libc::BPF_K, 0, 0, answer);
    }

    pub(crate) fn answer_if_equal(&mut self, value: u32, answer: u32) {
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, value);
        self.answer(answer);
    }

    pub(crate) fn answer_if_above(&mut self, value: u32, answer: u32) {
        self.add(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, value);
        self.answer(answer);
    }

    /// `tests`, which must end with an answer, for one system call only.
    pub(crate) fn only_for(&mut self, number: u32, tests: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        tests(&mut inner);
        self.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, number);
        self.skip(inner.0.len());
        self.0.append(&mut inner.0);
    }

    /// Goes on behind the next `count` instructions.
    pub(crate) fn skip(&mut self, count: usize) {
        let count = u32::try_from(count).expect("a program is a few thousand instructions");
        self.add(libc::BPF_JMP | libc::BPF_JA, 0, 0, count);
    }

    /// Tests of 64-bit programs, then those of 32-bit ones; all others get `foreign`.
    pub(crate) fn of_architectures(mut wide: Self, mut narrow: Self, foreign: u32) -> Vec<sock_filter> {
        let mut program = Self::default();
        program.load(ARCHITECTURE);
        program.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 3, 0, AUDIT_ARCH_X86_64);
        program.add(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, AUDIT_ARCH_I386);
        program.answer(foreign);
        program.skip(wide.0.len());
        program.0.append(&mut wide.0);
        program.0.append(&mut narrow.0);
        program.0
    }
}
